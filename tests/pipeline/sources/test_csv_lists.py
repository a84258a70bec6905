"""Lists of images as people and spreadsheets write them, and what a list or a folder holds twice."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from projects import make_params, write_picture

from pipeline.base.errors import UserError
from pipeline.decoding.decode import ImageOptions
from pipeline.sources import imagefolder
from pipeline.sources.labelled_files.classes import in_order
from pipeline.sources.labelled_files.same import picture_digest
from pipeline.sources.labelled_files.to_dataset import FileOptions, look_at_files
from pipeline.sources.places import delimited
from pipeline.stages import download
from pipeline.store.dataset import TEST, TRAIN, Dataset, read_dataset, write_dataset

OPTIONS = FileOptions(ImageOptions("auto", None, None, 100, "white"), "error", None, None, "memory", 0)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """0.png to 5.png, all different."""
    for i in range(6):
        write_picture(tmp_path / "pics" / f"{i}.png", i)
    return tmp_path


def load(root: Path, **options: Any) -> Dataset:
    return imagefolder.load(root, OPTIONS._replace(**options))


def listed(folder: Path, text: str | bytes, **options: Any) -> Dataset:
    path = folder / "list.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load(path, **options)


def refused(folder: Path, text: str | bytes, *expected: str) -> None:
    with pytest.raises(UserError) as caught:
        listed(folder, text)
    assert str(caught.value).startswith(f"data.root: {folder / 'list.csv'}")
    assert all(part in str(caught.value) for part in expected), caught.value
    assert "\n" not in str(caught.value)


def named(dataset: Dataset) -> list[tuple[str, str]]:
    return [(name, dataset.class_names[label]) for name, label in zip(dataset.names, dataset.labels, strict=True)]


def test_a_list_without_images_is_named_when_it_is_looked_at(tmp_path: Path) -> None:
    """Before anything is fetched or decoded, for `mlnt doctor` and the estimate of the time."""
    with pytest.raises(UserError, match="expected training images of two or more classes"):
        look_at_files([], tmp_path, OPTIONS)


# Dialects

EXPECTED = [("pics/0.png", "a"), ("pics/1.png", "b, or c"), ("pics/2.png", "a")]


@pytest.mark.parametrize(
    "text",
    [
        'path,label\npics/0.png,a\npics/1.png,"b, or c"\npics/2.png,a\n',
        'path, label\npics/0.png, a\npics/1.png, "b, or c"\npics/2.png,a \n',
        ' path ,label \n pics/0.png ,a\t\n"pics/1.png" , "b, or c" \npics/2.png,"a"\n',
        '"path","label"\r\n"pics/0.png","a"\r\n"pics/1.png","b, or c"\r\n"pics/2.png","a"\r\n',
        "path;label\npics/0.png;a\npics/1.png;b, or c\npics/2.png;a\n",
        "path\tlabel\npics/0.png\ta\npics/1.png\tb, or c\npics/2.png\ta\n",
        '\ufeffpath,label\npics/0.png,a\npics/1.png,"b, or c"\npics/2.png,a',
        '\n\npath,label\n\npics/0.png,a\n  \npics/1.png,"b, or c"\n,\npics/2.png,a\n\n',
        'label,path\na,pics/0.png\n"b, or c",pics/1.png\na,pics/2.png\n',
        'width,path,,label,height\n6,pics/0.png,,a,5\n6,pics/1.png,x,"b, or c",5\n6,pics/2.png,,a,\n',
        'path,label\rpics/0.png,a\rpics/1.png,"b, or c"\rpics/2.png,a\r',
        'Path,LABEL,Split,x,X\npics/0.png,a,Train,,\npics/1.png,"b, or c",TRAIN,,\npics/2.png,a,train,,\n',
    ],
    ids=[
        "plain",
        "blanks",
        "all-blanks",
        "quotes",
        "semicolons",
        "tabs",
        "mark",
        "empty-lines",
        "order",
        "more",
        "CR",
        "capitals",
    ],
)
def test_a_table_may_be_written_in_many_ways(text: str, pictures: Path) -> None:
    dataset = listed(pictures, text)
    assert named(dataset) == EXPECTED
    assert dataset.split.tolist() == [TRAIN] * 3


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ('" ,a.png",x,', [" ,a.png", "x", ""]),
        ('a.png,x,"" ', ["a.png", "x", ""]),
        ('a.png , "" ,"x" ', ["a.png ", "", "x"]),
        ('"a ""b"" ,c.png" ,"""x""" ,y', ['a "b" ,c.png', '"x"', "y"]),
        ('"a; "" ,b.png","x, "" "  ,"""" ', ['a; " ,b.png', 'x, " ', '"']),
    ],
)
def test_quoted_fields_keep_their_blanks_and_may_have_some_after_them(
    row: str, expected: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "list.csv"
    path.write_text(f"path,label,note\n{row}\n{row}\n", encoding="utf-8")
    found = delimited.rows(path, "data.root", ("path", "label", "note"))
    assert [list(fields.values()) for _, fields in found] == [expected] * 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("path,label\npics/0.png,a\npics/1.png,b, long\n", ["line 3: found 3 fields", "'b', 'long'", "needs quotes"]),
        ("path,label,split\npics/0.png,a\n", ["line 2: found 2 fields, ['pics/0.png', 'a'], expected 3"]),
        ("path;label\npics/0.png,a\n", ["line 2: found 1 fields", "a semicolon that belongs to a field"]),
        ('path,label\n\n"pics/0.png","a\n b"\npics/1.png,b,c\n', ["line 5: found 3 fields"]),
        ("", ["found nothing in its first line"]),
        ("path,label,Label\npics/0.png,a,b\n", ["more than one column called label"]),
        ("path,label,label\npics/0.png,a,b\n", ["more than one column called label"]),
        ("path, path,label\npics/0.png,a,b\n", ["more than one column called path"]),
        ('path,label\npics/0.png,"a\npics/1.png,b\n', ["not readable as CSV", "stands in quotes"]),
        ("path|label\npics/0.png|a\n", ["found path|label in its first line; commas, semicolons or tabs"]),
        ("pics/0.png,a\npics/1.png,b\n", ["expected the columns path,label[,split]", "found pics/0.png,a"]),
        ("path,label\npics/0.png,\n", ["line 2", "expected a path, a label"]),
        ("path,label,split\npics/0.png,a,\n", ["line 2", "one of train, val"]),
        ("path,label\npics/0.png,größe\n".encode("latin-1"), ["another encoding", "expected UTF-8"]),
        ("path,label\npics/0.png,a\n".encode("utf-16"), ["another encoding", "expected UTF-8"]),
        ("path,label\npics/0.png,a\n".encode("utf-16-le"), ["expected the columns"]),
    ],
)
def test_what_a_table_must_not_be(text: str | bytes, expected: list[str], pictures: Path) -> None:
    refused(pictures, text, *expected)


def test_classes_that_look_alike_are_said(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["Cat", "cat", "dog", "e\u0301mu", "\xe9mu", "fox  cub", "fox cub"]
    rows = [f"pics/{i % 6}.png,{name}" for i, name in enumerate(names[:6])]
    assert len(listed(pictures, "\n".join(["path,label", *rows])).class_names) == 6
    said = capsys.readouterr().err
    assert "2 classes have names that differ in case, blanks, zeros or the coding of a character alone" in said
    assert "'Cat' and 'cat'; " in said
    listed(pictures, "path,label\npics/0.png,1\npics/1.png,01\npics/2.png,1.0\npics/3.png,2\n")
    assert "'01' and '1' and '1.0'" in capsys.readouterr().err
    listed(pictures, "path,label\npics/0.png,1\npics/1.png,11\n")
    assert capsys.readouterr().err == ""


# The order of classes


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["10", "9", "0", "2"], ["0", "2", "9", "10"]),
        (["10", "-1", "+3", "2"], ["-1", "2", "+3", "10"]),
        (["10.0", "9.0", "2.5"], ["2.5", "9.0", "10.0"]),
        (["10", "9", "none"], ["10", "9", "none"]),
        (["class10", "class9", "Class1"], ["Class1", "class10", "class9"]),
        (["01", "1", "001"], ["001", "01", "1"]),
        (["1" + "0" * 20, "1" + "0" * 19 + "1"], ["1" + "0" * 20, "1" + "0" * 19 + "1"]),
        (["\u0661", "10", "9"], ["10", "9", "\u0661"]),
    ],
)
def test_numbers_come_in_counting_order_and_names_as_ever(names: list[str], expected: list[str]) -> None:
    assert in_order(names) == expected


@pytest.mark.parametrize("kind", ["folder", "table"])
def test_folders_and_tables_have_the_same_order(kind: str, tmp_path: Path) -> None:
    rows = ["path,label"]
    for number in range(12):
        write_picture(tmp_path / "images" / str(number) / "1.png", number)
        rows.append(f"images/{number}/1.png,{number}")
    dataset = load(tmp_path / "images") if kind == "folder" else listed(tmp_path, "\n".join(rows))
    assert dataset.class_names == [str(number) for number in range(12)]
    assert all(Path(name).parts[-2] == str(label) for name, label in zip(dataset.names, dataset.labels, strict=True))


# A class called like a split


def test_a_class_called_like_a_split_is_refused_with_the_reason_and_the_remedy(tmp_path: Path) -> None:
    for i, label in enumerate(("train", "bus")):
        write_picture(tmp_path / label / "1.png", i)
    with pytest.raises(UserError) as caught:
        load(tmp_path)
    said = str(caught.value)
    assert f"data.root: {tmp_path}: train/1.png lies in no class folder: 'train' is taken for a split" in said
    assert "rename its folder, or list the images in a .csv file" in said
    table = "path,label\ntrain/1.png,train\nbus/1.png,bus\n"
    assert named(listed(tmp_path, table)) == [("train/1.png", "train"), ("bus/1.png", "bus")]


def test_where_it_lies_in_a_split_it_is_a_class(tmp_path: Path) -> None:
    for i, name in enumerate(("train/train/1.png", "train/bus/1.png", "test/train/2.png")):
        write_picture(tmp_path / name, i)
    dataset = load(tmp_path)
    assert dataset.class_names == ["bus", "train"]
    assert dataset.split.tolist().count(TEST) == 1


@pytest.mark.parametrize("names", [("train/sub/1.png", "bus/sub/1.png"), ("train/train/sub/1.png", "train/bus/1.png")])
def test_where_it_cannot_be_told_the_remedy_is_named_too(names: tuple[str, str], tmp_path: Path) -> None:
    for i, name in enumerate(names):
        write_picture(tmp_path / name, i)
    with pytest.raises(UserError, match=r"is a class, rename its folder, or list the images in a \.csv file"):
        load(tmp_path)


# The same file again


@pytest.mark.parametrize(
    "again", ["pics/0.png", "./pics/0.png", "pics//0.png", "pics/../pics/0.png", "{root}/pics/0.png"]
)
def test_a_file_listed_again_with_its_label_is_taken_once(
    again: str, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = again.format(root=pictures)
    dataset = listed(pictures, f"path,label\npics/0.png,a\npics/1.png,b\n{again},a\n")
    assert named(dataset) == [("pics/0.png", "a"), ("pics/1.png", "b")]
    said = capsys.readouterr().err
    assert f"list.csv: 1 rows list a file again with the same label, and are left out: {again}; remove them" in said
    assert said.count("warning") == 1


@pytest.mark.parametrize("kind", ["link", "hard link", "copy"])
def test_another_name_for_a_file_is_another_image(
    kind: str, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    new = pictures / "pics/new.png"
    if kind == "link":
        new.symlink_to("0.png")
    elif kind == "hard link":
        os.link(pictures / "pics/0.png", new)
    else:
        shutil.copy(pictures / "pics/0.png", new)
    dataset = listed(pictures, "path,label\npics/0.png,a\npics/1.png,b\npics/new.png,a\n")
    assert len(dataset.names) == (2 if kind == "link" else 3)
    assert ("again" in capsys.readouterr().err) == (kind == "link")


def test_files_that_a_file_system_gives_one_number_are_still_two(
    pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stat = Path.stat

    def numberless(path: Path, **how: Any) -> os.stat_result:
        found = stat(path, **how)
        return os.stat_result([found.st_mode, 0, 0, *tuple(found)[3:]])

    monkeypatch.setattr(Path, "stat", numberless)
    assert len(listed(pictures, "path,label\npics/0.png,a\npics/1.png,b\npics/2.png,a\n").names) == 3


@pytest.mark.parametrize("storage", ["memory", "files"])
def test_a_file_with_two_labels_is_a_certain_label_error(
    storage: str, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = listed(pictures, "path,label\npics/0.png,a\npics/1.png,b\n./pics/0.png,b\n", storage=storage)
    assert named(dataset) == [("pics/0.png", "a"), ("pics/1.png", "b"), ("./pics/0.png", "b")]
    said = capsys.readouterr().err
    assert "warning: data.root: 1 images have more than one label, " in said
    assert "pics/0.png (a) = ./pics/0.png (b); correct them" in said
    assert said.count("warning") == 1
    assert dataset.same_picture is not None
    assert dataset.same_picture.tolist() == [0, -1, 0]


def test_a_file_in_two_splits_is_named(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    listed(pictures, "path,label,split\npics/0.png,a,train\npics/1.png,b,train\npics/0.png,a,test\n")
    said = capsys.readouterr().err
    assert "1 images are in more than one split" in said
    assert "pics/0.png (test) = pics/0.png (train); remove" in said
    assert said.count("warning") == 1


# True labels beside the given ones

WITH_TRUTH = "path,label,true_label\npics/0.png,a,a\npics/1.png,b,a\npics/2.png,b,b\npics/3.png,a,b\n"


@pytest.mark.parametrize("storage", ["memory", "files"])
def test_a_table_may_have_true_labels(storage: str, pictures: Path) -> None:
    dataset = listed(pictures, WITH_TRUTH, storage=storage)
    assert dataset.labels.tolist() == [0, 1, 1, 0]
    assert dataset.true_labels is not None
    assert dataset.true_labels.tolist() == [0, 0, 1, 1]
    assert not dataset.labels_are_true


def test_true_labels_stay_with_their_images_where_others_are_left_out(pictures: Path) -> None:
    (pictures / "pics/0.png").write_bytes(b"no image")
    expected = {"pics/1.png": 0, "pics/2.png": 1, "pics/3.png": 1}
    skipped = listed(pictures, WITH_TRUTH, on_bad_image="skip")
    limited = listed(pictures, WITH_TRUTH.replace("pics/0.png", "pics/4.png"), limit=2)
    for dataset, count in ((skipped, 3), (limited, 2)):
        assert dataset.true_labels is not None
        assert len(dataset.true_labels) == len(dataset.names) == count
        for name, true in zip(dataset.names, dataset.true_labels.tolist(), strict=True):
            assert true == expected.get(name, 0)


def test_an_empty_column_is_none(project: Path, pictures: Path) -> None:
    plain = "path,label\npics/0.png,a\npics/1.png,b\n"
    digests = [
        write_dataset(listed(pictures, text))
        for text in (plain, "path,label,true_label\npics/0.png,a,\npics/1.png,b,\n", WITH_TRUTH)
    ]
    assert digests[0] == digests[1] != digests[2]
    (pictures / "list.csv").write_text(WITH_TRUTH.replace("b,a", "b,b"))
    assert write_dataset(load(pictures / "list.csv")) != digests[2]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (WITH_TRUTH.replace("b,a", "b,"), ["1 of 4 rows have no true_label: pics/1.png; expected one in every row"]),
        (WITH_TRUTH.replace("b,a", "b,c"), ["1 true labels are no class: c (pics/1.png)", "a, b; correct these rows"]),
        ("path,label,true_label,true_label\npics/0.png,a,a,b\n", ["more than one column called true_label"]),
    ],
)
def test_what_true_labels_must_not_be(text: str, expected: list[str], pictures: Path) -> None:
    with pytest.raises(UserError) as caught:
        listed(pictures, text)
    assert all(part in str(caught.value) for part in ("data.root: ", *expected)), caught.value


def test_two_truths_about_a_file_are_both_kept(pictures: Path) -> None:
    dataset = listed(pictures, f"{WITH_TRUTH}pics/0.png,a,b\npics/1.png,b,a\n")
    assert [name for name, _ in named(dataset)].count("pics/0.png") == 2
    assert [name for name, _ in named(dataset)].count("pics/1.png") == 1


# The same picture again


def test_equal_pictures_are_found_however_they_are_saved(tmp_path: Path) -> None:
    grey = Image.fromarray(np.random.default_rng(0).integers(0, 256, (5, 6), dtype=np.uint8))
    digests = set()
    for image in (np.asarray(grey)[None], np.asarray(grey.convert("RGB")).transpose(2, 0, 1)):
        digests.add(picture_digest(image))
    assert len(digests) == 1
    assert picture_digest(np.zeros((1, 2, 3), np.uint8)) != picture_digest(np.zeros((1, 3, 2), np.uint8))


@pytest.mark.parametrize(("storage", "workers"), [("memory", 0), ("files", 0), ("files", 2)])
def test_equal_pictures_in_two_classes_or_splits_are_counted_and_named(
    storage: str, workers: int, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in range(80):
        write_picture(Path(f"own/train/{'ab'[i % 2]}/{i:02}.png"), i)
    for i in range(7):  # in both classes, and another kind of file
        with Image.open(f"own/train/a/{2 * i:02}.png") as image:
            image.save(f"own/train/b/copy{i}.bmp")
    write_picture(Path("own/train/a/again.png"), 20)  # in one class: no harm
    write_picture(Path("own/test/a/1.png"), 40)
    write_picture(Path("own/test/b/1.png"), 1000)
    keys = {"data__source": "imagefolder", "data__root": "own", "data__limit": None, "data__limit_test": None}
    download.run(make_params(**keys, data__storage=storage, run__workers=workers))
    dataset = read_dataset()
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    pairs = "; ".join(f"train/a/{2 * i:02}.png (a) = train/b/copy{i}.bmp (b)" for i in range(5))
    assert "7 images have more than one label, in equal files or pixel for pixel, so that one" in said[0]
    assert f"{pairs}; and 2 more; correct them" in said[0]
    assert "1 images are in more than one split" in said[1]
    assert "test/a/1.png (test) = train/a/40.png (train); remove them" in said[1]
    assert dataset.same_picture is not None
    groups: dict[int, list[str]] = {}
    for name, group in zip(dataset.names, dataset.same_picture.tolist(), strict=True):
        groups.setdefault(group, []).append(name)
    assert len(groups.pop(-1)) == 90 - 18
    expected = [[f"train/a/{2 * i:02}.png", f"train/b/copy{i}.bmp"] for i in range(7)]
    expected += [["train/a/20.png", "train/a/again.png"], ["train/a/40.png", "test/a/1.png"]]
    assert sorted(groups.values()) == sorted(expected)


def test_where_all_differ_nothing_is_said_or_stored(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = listed(pictures, "path,label\npics/0.png,a\npics/1.png,b\n")
    assert dataset.same_picture is None
    assert capsys.readouterr().err == ""
