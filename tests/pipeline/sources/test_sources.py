from __future__ import annotations

import csv
import hashlib
import os
import shutil
import struct
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps
from projects import digests, make_params, write_picture

from pipeline.base import files
from pipeline.base.errors import UserError
from pipeline.base.files import GIB
from pipeline.decoding.decode import ImageOptions
from pipeline.sources import clothing1m, digits, imagefolder, seen
from pipeline.sources.labelled_files.to_dataset import FileOptions
from pipeline.sources.limit import limited_rows
from pipeline.sources.places.archive import unpack
from pipeline.stages import download
from pipeline.store.dataset import TEST, TRAIN, VALIDATION, Dataset, read_dataset

AS_THEY_ARE = FileOptions(ImageOptions("auto", None, None, 100, "white"), "error", None, None, "memory", 0)
CLASSES = ("cat", "dog", "emu")


def load(root: Path, **options: Any) -> Dataset:
    image = AS_THEY_ARE.image._replace(**{key: value for key, value in options.items() if key in ImageOptions._fields})
    files = {key: value for key, value in options.items() if key not in ImageOptions._fields}
    return imagefolder.load(root, AS_THEY_ARE._replace(image=image, **files))


def refused(root: Path, *expected: str, **options: Any) -> None:
    """Loading ends with one message that contains all of this."""
    with pytest.raises(UserError) as caught:
        load(root, **options)
    assert all(part in str(caught.value) for part in expected), caught.value
    assert "\n" not in str(caught.value)


def write_tree(root: Path, splits: dict[str, int], prefix: str = "") -> dict[str, NDArray[np.uint8]]:
    """`count` images a class in each split; name → [C, H, W]."""
    written: dict[str, NDArray[np.uint8]] = {}
    for split, count in splits.items():
        for label in CLASSES:
            for i in range(count):
                name = "/".join(part for part in (prefix, split, label, f"{label}-{i}.png") if part)
                image = write_picture(root / name, len(written))
                written[name] = np.asarray(image).transpose(2, 0, 1)
    return written


def pack(root: Path, path: Path) -> Path:
    """All files below `root` in an archive of the kind that the suffix says."""
    names = sorted(file for file in root.rglob("*") if file.is_file())
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name in names:
                archive.write(name, name.relative_to(root))
    else:
        with tarfile.open(path, "w:gz") if path.suffix == ".gz" else tarfile.open(path, "w:xz") as tar:
            for name in names:
                tar.add(name, f"./{name.relative_to(root)}")
    return path


def pack_csv(root: Path, path: Path, with_split: bool) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", *(["split"] if with_split else [])])
        for name in sorted(file for file in root.rglob("*") if file.is_file()):
            parts = name.relative_to(root).parts
            split = [parts[0]] if with_split else []
            writer.writerow([name.relative_to(path.parent), parts[-2], *split])
    return path


def summary(dataset: Dataset) -> dict[str, tuple[str, int, bytes]]:
    """File name → class, split and pixels."""
    return {
        f"{dataset.split[i]}/{Path(name).name}": (
            dataset.class_names[dataset.labels[i]],
            int(dataset.split[i]),
            dataset.images[i].tobytes(),
        )
        for i, name in enumerate(dataset.names)
    }


# Own images: layouts


@pytest.mark.parametrize("suffix", ["folder", ".zip", ".tar.gz", ".tar.xz", ".csv"])
@pytest.mark.parametrize("prefix", ["", "inner/my images"])
def test_every_container_gives_the_same_images(suffix: str, prefix: str, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    written = write_tree(tree, {"train": 4, "val": 2, "test": 1}, prefix)
    root = tree
    if suffix == ".csv":
        root = pack_csv(tree / prefix, tmp_path / "labels.csv", with_split=True)
    elif suffix != "folder":
        root = unpack(pack(tree, tmp_path / f"archive{suffix}"), tmp_path / "raw", GIB)
        shutil.rmtree(tree)
    dataset = load(root)
    assert dataset.class_names == list(CLASSES)
    assert np.bincount(dataset.split).tolist() == [12, 6, 3]
    assert not dataset.labels_are_true
    assert dataset.images.shape == (21, 3, 5, 6)
    numbers = {"train": TRAIN, "val": VALIDATION, "test": TEST}
    expected = {}
    for name, image in written.items():
        split, label, file = name.removeprefix(prefix).strip("/").split("/")
        expected[f"{numbers[split]}/{file}"] = (label, numbers[split], image.tobytes())
    assert summary(dataset) == expected


@pytest.mark.parametrize(
    ("splits", "counts"),
    [
        ({"train": 3, "test": 2}, [9, 0, 6]),
        ({"train": 3, "validation": 2}, [9, 6, 0]),
        ({"train": 3, "valid": 2}, [9, 6, 0]),
        ({"train": 3}, [9, 0, 0]),
        ({"": 3}, [9, 0, 0]),
    ],
)
def test_validation_and_test_may_be_missing(splits: dict[str, int], counts: list[int], tmp_path: Path) -> None:
    write_tree(tmp_path, splits)
    dataset = load(tmp_path)
    assert np.bincount(dataset.split, minlength=3).tolist() == counts
    assert [dataset.class_names[label] for label in dataset.labels] == [Path(name).parts[-2] for name in dataset.names]


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [("Train", "Val", "Test"), ("training", "dev", "testing"), ("TRAINING", "Validation", "Testing")],
)
def test_splits_go_by_other_names_too(train: str, val: str, test: str, tmp_path: Path) -> None:
    write_tree(tmp_path, {train: 3, val: 1, test: 2})
    dataset = load(tmp_path)
    assert np.bincount(dataset.split).tolist() == [9, 3, 6]
    assert dataset.class_names == list(CLASSES)


def test_folders_inside_of_a_class_folder_belong_to_it(tmp_path: Path) -> None:
    write_tree(tmp_path, {"train": 1})
    write_picture(tmp_path / "train" / "dog" / "puppies" / "1.png", 0)
    dataset = load(tmp_path)
    assert [dataset.class_names[label] for label in dataset.labels] == ["cat", "dog", "dog", "emu"]


def test_a_csv_without_splits_is_all_for_training(tmp_path: Path) -> None:
    write_tree(tmp_path / "images", {"": 2})
    dataset = load(pack_csv(tmp_path / "images", tmp_path / "labels.csv", with_split=False))
    assert dataset.split.tolist() == [TRAIN] * 6
    assert [Path(name).parts[-2] for name in dataset.names] == [dataset.class_names[i] for i in dataset.labels]


def test_the_files_of_a_csv_may_be_anywhere_below_it_and_its_classes_anything(tmp_path: Path) -> None:
    for i in range(4):
        write_picture(tmp_path / "a" / f"{i}.png", i)
    lines = ["path,label,split", "a/0.png,<b>x</b>,train", '"a/1.png","y, or z",train', "a/2.png,<b>x</b>,val"]
    (tmp_path / "list.csv").write_text("\ufeff" + "\n".join(lines), encoding="utf-8")
    dataset = load(tmp_path / "list.csv")
    assert dataset.class_names == ["<b>x</b>", "y, or z"]
    assert dataset.split.tolist() == [TRAIN, TRAIN, VALIDATION]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("file,class\na/0.png,cat\n", ["labels.csv", "path,label[,split]", "file,class"]),
        ("", ["labels.csv", "path,label[,split]"]),
        ("path,label,split\na/0.png,cat,training\n", ["line 2", "training", "train"]),
        ("path,label\na/0.png,cat\na/0.png,\n", ["line 3"]),
        ("path,label\na/0.png\n", ["line 2"]),
        ("path,label\na/0.png,cat\na/9.png,dog\n", ["line 3", "no such file: a/9.png"]),
        ("path,label\na/0.png,cat\n", ["two or more classes", "cat"]),
        ("path,label\n", ["two or more classes"]),
    ],
)
def test_wrong_csv_files_are_explained(text: str, expected: list[str], tmp_path: Path) -> None:
    write_picture(tmp_path / "a" / "0.png", 0)
    (tmp_path / "labels.csv").write_text(text, encoding="utf-8")
    refused(tmp_path / "labels.csv", "data.root", *expected)


def test_a_csv_of_another_encoding_is_refused(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_bytes("path,label\na.png,größe\n".encode("latin-1"))
    refused(tmp_path / "labels.csv", "data.root", "labels.csv", "not readable as CSV")


def test_images_are_numbered_by_their_names_where_these_are_numbers(tmp_path: Path) -> None:
    for number, label in ((10, "cat"), (9, "cat"), (0, "dog"), (2, "dog")):
        write_picture(tmp_path / "train" / label / f"{number:05}.png", number)
    dataset = load(tmp_path)
    assert [int(Path(name).stem) for name in dataset.names] == dataset.source_index.tolist()
    (tmp_path / "train" / "dog" / "00002.png").rename(tmp_path / "train" / "dog" / "two.png")
    assert load(tmp_path).source_index.tolist() == [0, 1, 2, 3]


# Own images: what can be wrong


def test_a_missing_path_is_named(tmp_path: Path) -> None:
    refused(tmp_path / "nosuch", "data.root", "nosuch: no such folder or file")
    refused(tmp_path / "nosuch.csv", "data.root", "nosuch.csv: no such file")


def test_a_folder_without_images_is_explained(tmp_path: Path) -> None:
    refused(tmp_path, "data.root", str(tmp_path), "no images", "train/CLASS/FILE", ".csv")
    (tmp_path / "train" / "cat").mkdir(parents=True)
    (tmp_path / "train" / "cat" / "notes.txt").write_text("x", encoding="utf-8")
    refused(tmp_path, "no images")


def test_images_outside_of_class_folders_are_refused(tmp_path: Path) -> None:
    write_tree(tmp_path, {"train": 2})
    write_picture(tmp_path / "train" / "loose.png", 0)
    refused(tmp_path, "data.root", "train/loose.png lies in no class folder", "train/CLASS/FILE")


def test_images_in_no_split_are_refused_where_others_are_in_one(tmp_path: Path) -> None:
    write_tree(tmp_path, {"train": 2, "test": 1})
    for i in range(7):
        write_picture(tmp_path / "unlabeled" / f"{i}.png", i)
    refused(
        tmp_path, "data.root", "7 images in it lie in no split", "unlabeled/0.png; ", "; and 2 more", "train/CLASS/"
    )


def test_images_in_two_splits_are_refused(tmp_path: Path) -> None:
    write_tree(tmp_path, {"train": 1, "test": 1}, prefix="Training")
    refused(
        tmp_path, "data.root", "6 images in it lie below two folders that name a split: Training/test/cat/cat-0.png"
    )


@pytest.mark.parametrize("other", ["dog/puppies/1.png", "more/images/fox/1.png"])
def test_class_folders_without_splits_lie_in_one_folder(other: str, tmp_path: Path) -> None:
    write_tree(tmp_path, {"": 2})
    write_picture(tmp_path / other, 0)
    refused(tmp_path, "data.root", "class folders lie in 2 different folders", "cat/cat-0.png", other, "CLASS/FILE")


def test_one_class_is_not_enough(tmp_path: Path) -> None:
    write_picture(tmp_path / "train" / "cat" / "1.png", 0)
    refused(tmp_path, "data.root", "two or more classes, found ['cat']")


def test_only_test_images_are_not_enough(tmp_path: Path) -> None:
    write_tree(tmp_path, {"test": 2})
    refused(tmp_path, "data.root", "training images")


@pytest.mark.parametrize(("split", "called"), [("val", "validation"), ("test", "test")])
def test_a_class_that_training_lacks_is_named(split: str, called: str, tmp_path: Path) -> None:
    write_tree(tmp_path, {"train": 2, split: 1})
    write_picture(tmp_path / split / "fox" / "1.png", 0)
    refused(tmp_path, "data.root", f"{called} has the class 'fox'", f"{split}/fox/1.png", "cat, dog, emu")


def test_files_that_do_not_decode_are_named(tmp_path: Path) -> None:
    write_tree(tmp_path, {"train": 4})
    (tmp_path / "train/cat/cat-1.png").write_bytes(b"no image")
    whole = (tmp_path / "train/dog/dog-2.png").read_bytes()
    (tmp_path / "train/dog/dog-2.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "train/dog/dog-3.png").write_bytes(b"")
    refused(tmp_path, "data.root: 3 of 12 images do not decode", "cat/cat-1.png", "dog/dog-2.png", "dog/dog-3.png")


# Own images: pixels


@pytest.mark.parametrize(
    ("modes", "channels", "expected"),
    [
        (["L", "L"], "auto", 1),
        (["1", "LA"], "auto", 1),
        (["RGB", "RGB"], "auto", 3),
        (["L", "RGB"], "auto", 3),
        (["RGBA", "P"], "auto", 3),
        (["RGB", "L"], 1, 1),
        (["L", "LA"], 3, 3),
    ],
)
def test_grey_and_colour_images(modes: list[str], channels: Any, expected: int, tmp_path: Path) -> None:
    written = []
    for i, (mode, label) in enumerate(zip(modes, ("cat", "dog"), strict=True)):
        image = write_picture(tmp_path / "train" / label / "1.png", i, mode=mode)
        if mode == "RGBA":  # transparent here and there
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        target = "L" if expected == 1 or mode in ("1", "L", "LA") else "RGB"
        pixels = np.atleast_3d(np.asarray(image.convert(target))).transpose(2, 0, 1)
        written.append(np.broadcast_to(pixels, (expected, 5, 6)))
    assert np.array_equal(load(tmp_path, channels=channels).images, np.stack(written))


def test_a_palette_with_transparent_entries_is_decoded_without_a_warning(tmp_path: Path) -> None:
    for i, label in enumerate(("cat", "dog")):
        image = Image.new("P", (6, 5), 1)
        image.putpalette([0, 0, 0, 10 * i, 20, 30])
        (tmp_path / "train" / label).mkdir(parents=True)
        image.save(tmp_path / "train" / label / "1.png", transparency=b"\x80\xff")
    images = load(tmp_path).images
    assert images.shape == (2, 3, 5, 6)
    assert images[:, :, 0, 0].tolist() == [[0, 20, 30], [10, 20, 30]]  # entry 1 is opaque


@pytest.mark.parametrize(("suffix", "kind"), [("png", "u2"), ("tif", "u2"), ("tif", ">u2"), ("pgm", "u2")])
def test_sixteen_bits_keep_their_upper_half(suffix: str, kind: str, tmp_path: Path) -> None:
    values = np.arange(0, 65536, 2048).reshape(4, 8).astype(kind)
    for label in ("cat", "dog"):
        path = tmp_path / f"train/{label}/1.{suffix}"
        path.parent.mkdir(parents=True)
        Image.fromarray(values).save(path)
    images = load(tmp_path).images
    assert images.shape == (2, 1, 4, 8)
    assert np.array_equal(images[0, 0], (values >> 8).astype(np.uint8))


def test_floating_point_pixels_are_refused(tmp_path: Path) -> None:
    write_tree(tmp_path, {"train": 2})
    Image.fromarray(np.linspace(0, 1, 30, dtype=np.float32).reshape(5, 6)).save(tmp_path / "train" / "cat" / "x.tif")
    refused(tmp_path, "1 of 7 images do not decode: train/cat/x.tif (its pixels are floating-point", "8 or 16 bits")
    assert len(load(tmp_path, on_bad_image="skip").names) == 6


def test_a_photograph_is_turned_as_its_camera_says(tmp_path: Path) -> None:
    for label in ("cat", "dog"):
        (tmp_path / "train" / label).mkdir(parents=True)
        image = Image.new("L", (6, 4))
        exif = image.getexif()
        exif[0x0112] = 6
        image.save(tmp_path / "train" / label / "1.jpg", exif=exif)
    assert load(tmp_path).images.shape == (2, 1, 6, 4)


def exif(*entries: tuple[int, int, int, bytes], orientation: int = 6) -> bytes:
    """An EXIF block of the orientation and then these entries: tag, type, count, value or offset."""
    rows = [(0x0112, 3, 1, struct.pack("<HH", orientation, 0)), *entries]
    packed = b"".join(struct.pack("<HHI4s", *row) for row in rows)
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(rows)) + packed + bytes(4)


GOOD_EXIF = exif()


def photograph(path: Path, block: bytes) -> NDArray[np.uint8]:
    """A JPEG file with this EXIF block; its pixels as they are stored, [H, W]."""
    image = Image.fromarray(np.arange(24, dtype=np.uint8).reshape(4, 6) * 10)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, "JPEG", exif=block, dpi=(72, 72))  # without dpi Pillow looks for them in EXIF, and forgives more
    return np.asarray(Image.open(path))


@pytest.mark.parametrize("orientation", range(10))
def test_orientations_are_those_of_pillow(orientation: int, tmp_path: Path) -> None:
    for label in ("cat", "dog"):
        photograph(tmp_path / "train" / label / "1.jpg", exif(orientation=orientation))
    with Image.open(tmp_path / "train" / "cat" / "1.jpg") as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    assert np.array_equal(load(tmp_path).images[0, 0], expected)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(
    "entry",
    [
        (0x011A, 2, 4, b"abc\0"),
        (0x0100, 2, 4, b"abc\0"),
        (0x0128, 9, 1, b"\xff\xff\xff\xff"),
        (0x8769, 9, 1, b"\xff\xff\xff\xff"),
        (0x8769, 4, 1, b"\xff\xff\xff\x7f"),
    ],
    ids=["a resolution of letters", "a width of letters", "a unit below 0", "a place below 0", "a place far away"],
)
def test_a_damaged_exif_block_is_no_reason_to_refuse_a_photograph(
    entry: tuple[int, int, int, bytes], turned: bool, tmp_path: Path
) -> None:
    for label in ("cat", "dog"):
        stored = photograph(tmp_path / "train" / label / "1.jpg", exif(entry, orientation=6 if turned else 1))
    assert np.array_equal(load(tmp_path).images[0, 0], np.rot90(stored, -1) if turned else stored)


@pytest.mark.parametrize(
    "block",
    [b"Exif\0\0", b"Exif\0\0rubbish, not a block", GOOD_EXIF[:-20], GOOD_EXIF[:8], b"Exif\0\0II*\0\xff\xff\xff\xff"],
)
def test_an_exif_block_of_which_nothing_can_be_read_says_nothing(block: bytes, tmp_path: Path) -> None:
    for label in ("cat", "dog"):
        stored = photograph(tmp_path / "train" / label / "1.jpg", block)
    assert np.array_equal(load(tmp_path).images[0, 0], stored)


def test_images_of_different_sizes_need_a_common_one(tmp_path: Path) -> None:
    write_tree(tmp_path, {"train": 2})
    write_picture(tmp_path / "train" / "dog" / "dog-1.png", 0, size=(9, 7))
    refused(tmp_path, "data.resize", "6×5", "9×7", "train/dog/dog-1.png")
    assert load(tmp_path, resize=4).images.shape == (6, 3, 4, 4)


def test_resize_is_followed_by_a_centre_crop(tmp_path: Path) -> None:
    path = tmp_path / "train" / "cat" / "1.png"
    image = write_picture(path, 0, size=(16, 12))
    write_picture(tmp_path / "train" / "dog" / "1.png", 1)
    small = np.asarray(image.resize((8, 8), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    assert np.array_equal(load(tmp_path, resize=8).images[0], small)
    assert np.array_equal(load(tmp_path, resize=8, crop=4).images[0], small[:, 2:6, 2:6])


@pytest.mark.parametrize("storage", ["memory", "files"])
def test_a_crop_larger_than_an_image_is_refused(storage: str, tmp_path: Path) -> None:
    write_tree(tmp_path, {"train": 2})
    write_picture(tmp_path / "train/cat/small.png", 0, size=(4, 4))
    refused(tmp_path, "data.crop: 5", "4×4", "train/cat/small.png", "data.resize", crop=5, storage=storage)
    options = AS_THEY_ARE._replace(image=AS_THEY_ARE.image._replace(crop=6))
    with pytest.raises(UserError, match=r"^data\.crop: 6 .*6×5 .*train/cat/cat-0\.png"):
        imagefolder.look(tmp_path, options)


# Limits


def test_limits_take_the_same_share_of_every_class(tmp_path: Path) -> None:
    write_tree(tmp_path, {"train": 10, "val": 3, "test": 6})
    dataset = load(tmp_path, limit=12, limit_test=9)
    for split, each in ((TRAIN, 4), (VALIDATION, 3), (TEST, 3)):
        assert np.bincount(dataset.labels[dataset.split == split]).tolist() == [each] * 3
    whole = load(tmp_path)
    assert summary(dataset).items() <= summary(whole).items()
    numbers = dict(zip(whole.names, whole.source_index, strict=True))
    assert [numbers[name] for name in dataset.names] == dataset.source_index.tolist()


@pytest.mark.parametrize(
    ("sizes", "limit", "expected"),
    [
        ([90, 9, 1], 10, [8, 1, 1]),  # rounded: 9, 1, 0
        ([3] * 6, 9, [1, 1, 1, 2, 2, 2]),  # rounded: 2 each
        ([4, 4, 1, 1], 2, [1, 1, 1, 1]),
        ([40, 20, 10], 35, [20, 10, 5]),
    ],
)
def test_a_limit_leaves_some_of_each_class_and_is_kept(sizes: list[int], limit: int, expected: list[int]) -> None:
    labels = np.repeat(np.arange(len(sizes)), sizes)
    for part, limits in ((TRAIN, (limit, None)), (TEST, (None, limit))):
        rows = limited_rows(labels, np.full(len(labels), part, np.uint8), *limits)
        assert np.bincount(labels[rows]).tolist() == expected
        assert len(set(rows)) == len(rows)


@pytest.mark.parametrize("limit", [30, 1000, None])
def test_a_limit_above_the_size_changes_nothing(limit: int | None, tmp_path: Path) -> None:
    write_tree(tmp_path, {"train": 10})
    assert summary(load(tmp_path, limit=limit)) == summary(load(tmp_path))


def test_a_limit_is_decoded_alone(tmp_path: Path) -> None:
    write_tree(tmp_path, {"train": 10})
    chosen = set(load(tmp_path, limit=6).names)
    for name in digests(tmp_path):
        if name not in chosen:
            (tmp_path / name).write_bytes(b"no image")
    assert set(load(tmp_path, limit=6).names) == chosen


def test_the_data_set_does_not_depend_on_the_seed(project: Path) -> None:
    contents = []
    for seed in (0, 1):
        download.run(make_params(seed=seed, data__limit=100, data__limit_test=50))
        contents.append(files.DATASET.read_bytes())
    assert contents[0] == contents[1]


# Fetching


@pytest.fixture
def archive(tmp_path: Path) -> tuple[Path, str]:
    """A good archive in a folder with a space, and its SHA-256."""
    write_tree(tmp_path / "tree", {"train": 2})
    (tmp_path / "far away").mkdir()
    path = pack(tmp_path / "tree", tmp_path / "far away" / "archive.tar.gz")
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


def own(**data: Any) -> Any:
    return make_params(data__source="imagefolder", **{f"data__{key}": value for key, value in data.items()})


def test_a_url_is_fetched_once_and_checked(archive: tuple[Path, str], project: Path) -> None:
    path, sha256 = archive
    params = own(url=path.as_uri(), sha256=sha256)
    download.run(params)
    first = read_dataset()
    assert len(first.names) == 6
    path.unlink()
    files.DATASET.unlink()
    download.run(params)
    assert read_dataset().digest == first.digest


def test_a_local_archive_is_checked_too(archive: tuple[Path, str], project: Path) -> None:
    path, sha256 = archive
    download.run(own(root=str(path), sha256=sha256))
    with pytest.raises(UserError, match=r"^data.sha256: .*another file or damaged"):
        download.run(own(root=str(path), sha256="0" * 64))


@pytest.mark.parametrize("source", ["imagefolder", "clothing1m"])
def test_own_data_needs_a_place(source: str, project: Path) -> None:
    with pytest.raises(UserError, match=r"^data.root: found null, expected the path"):
        download.run(make_params(data__source=source))


# digits


def test_digits_has_one_fixed_stratified_test_split() -> None:
    dataset = digits.load()
    assert dataset.images.shape == (1797, 1, 8, 8)
    assert (dataset.images.min(), dataset.images.max()) == (0, 255)
    assert np.bincount(dataset.split).tolist() == [1078, 0, 719]
    totals = np.bincount(dataset.labels)
    assert np.bincount(dataset.labels[dataset.split == TEST]).tolist() == np.round(0.4 * totals).tolist()
    assert np.flatnonzero(dataset.split == TEST)[:10].tolist() == [0, 4, 5, 6, 7, 9, 14, 16, 17, 22]
    assert dataset.class_names == list("0123456789")
    assert dataset.labels_are_true


def test_what_file_managers_leave_behind_is_no_image(tmp_path: Path) -> None:
    write_tree(tmp_path, {"train": 4})
    names = load(tmp_path).names
    for hidden in ("__MACOSX/train/cat/._cat-0.png", "train/.thumbnails/cat-0.png", "train/cat/._cat-0.png"):
        (tmp_path / hidden).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / hidden).write_bytes(b"no image")
    assert load(tmp_path).names == names


@pytest.mark.parametrize("prefix", ["", "train"])
def test_files_in_class_folders_that_no_name_makes_images_are_counted_and_named(
    prefix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tree(tmp_path, {prefix: 2})
    for name in ("notes.txt", "Thumbs.db", "cat.xml", ".hidden"):
        (tmp_path / prefix / "cat" / name).write_bytes(b"x")
    (tmp_path / "LICENSE").write_bytes(b"x")
    load(tmp_path)
    assert capsys.readouterr().err == ""
    names = [f"cat/{i}.HEIC" for i in range(6)] + ["fox/\x1b[2J"]
    for name in names:
        path = tmp_path / prefix / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
    assert load(tmp_path).class_names == list(CLASSES)
    said = capsys.readouterr().err
    assert said.startswith(f"warning: data.root: {tmp_path}: 7 files in class folders are left out")
    shown = "; ".join(f"{prefix}/{name}".strip("/") for name in names[:5])
    assert f".jpg .jpeg .jpe .jfif .png .bmp .gif .webp .tif .tiff .ppm .pgm: {shown}; and 2 more; convert" in said
    assert said.count("\n") == 1
    for path in (tmp_path / prefix / "cat").glob("*.HEIC"):
        path.unlink()
    load(tmp_path)
    assert "fox/\\x1b[2J" in capsys.readouterr().err


@pytest.mark.parametrize("suffix", [".jfif", ".jpe", ".JPE"])
def test_photographs_have_other_suffixes_too(suffix: str, tmp_path: Path) -> None:
    write_tree(tmp_path, {"train": 1})
    Image.new("RGB", (6, 5)).save(tmp_path / "train" / "cat" / f"photo{suffix}", "JPEG")
    assert f"train/cat/photo{suffix}" in load(tmp_path).names


# Folders of one's own


def test_names_may_have_any_character_but_are_utf_8(tmp_path: Path) -> None:
    names = [r"train/C:/a\b.png", "train/new\nline/1.png"]
    for i, name in enumerate(names):
        write_picture(tmp_path / name, i)
    assert load(tmp_path).names == names
    write_picture(tmp_path / "train/cat/\udcff.png", 0)
    refused(tmp_path, "1 images in it have names that are not UTF-8", r"train/cat/\udcff.png")


def test_links_are_followed_to_wherever_they_lead(tmp_path: Path) -> None:
    disk, root = tmp_path / "disk", tmp_path / "folder"
    for name in ("cats/1.png", "dogs/1.png", "one.png"):
        write_picture(disk / name, len(name))
    (root / "train").mkdir(parents=True)
    (root / "train" / "cat").symlink_to(disk / "cats")
    (root / "train" / "dog").symlink_to("../../disk/dogs")
    (disk / "dogs" / "2.png").symlink_to(disk / "one.png")
    (root / "train" / "cat" / "up").symlink_to(root)  # no end, if it were followed again and again
    (tmp_path / "link").symlink_to(root)
    expected = ["train/cat/1.png", "train/dog/1.png", "train/dog/2.png"]
    assert load(root).names == load(tmp_path / "link").names == expected


@pytest.mark.parametrize("name", ["train/cat/x.png", "train/fox"])
@pytest.mark.parametrize("target", ["/nosuch", "x.png", None], ids=["a broken link", "a circle", "a pipe"])
def test_pipes_and_links_that_lead_nowhere_are_named(name: str, target: str | None, tmp_path: Path) -> None:
    write_tree(tmp_path, {"train": 1})
    if target is None:
        os.mkfifo(tmp_path / name)
    else:
        (tmp_path / name).symlink_to(target)
    refused(tmp_path, f"data.root: {tmp_path}: 1 images in it are links that lead nowhere, devices or pipes: {name};")


def test_a_csv_may_point_anywhere_but_not_at_a_pipe(tmp_path: Path) -> None:
    outside, lists = tmp_path / "elsewhere" / "1.png", tmp_path / "lists"
    for i, path in enumerate((outside, lists / "2.png", outside.with_name("3.png"))):
        write_picture(path, i)
    table = lists / "labels.csv"
    table.write_text(f"path,label\n{outside},cat\n2.png,dog\n../elsewhere/3.png,cat\n", encoding="utf-8")
    assert load(table).names == [str(outside), "2.png", "../elsewhere/3.png"]
    os.mkfifo(lists / "pipe.png")
    table.write_text("path,label\n2.png,dog\npipe.png,cat\n", encoding="utf-8")
    refused(table, "line 3: no such file: pipe.png")


def test_a_pipe_is_neither_folder_nor_archive(project: Path) -> None:
    os.mkfifo(project / "pipe.zip")
    with pytest.raises(UserError, match=r"^data\.root: pipe\.zip: expected a folder, a tar or zip archive"):
        download.run(own(root="pipe.zip"))


# What may not be read


def no_access(*_: object, **__: object) -> None:
    raise PermissionError(13, "Permission denied")


@pytest.mark.parametrize("name", ["images.csv", "images.zip", "images"])
def test_a_place_below_a_folder_that_may_not_be_entered_is_named(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "stat", no_access)
    refused(tmp_path / name, f"data.root: {tmp_path / name}: not readable (", "Permission denied")
    with pytest.raises(UserError, match=r"^data\.root: .*not readable \(.*Permission denied"):
        clothing1m.load(tmp_path / name, AS_THEY_ARE)


@pytest.mark.parametrize("name", ["images.csv", "images.zip", "images.tar"])
def test_a_file_that_may_not_be_read_is_named(name: str, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / name).write_bytes(b"path,label\n")
    params = own(root=name)
    monkeypatch.setattr(Path, "open", no_access)
    with pytest.raises(UserError, match=rf"^data\.root: {name}: not readable \(.*Permission denied"):
        download.run(params)


def test_a_local_archive_is_looked_at_before_its_sum(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    params = own(root="images.zip", sha256="0" * 64)
    monkeypatch.setattr(Path, "stat", no_access)
    with pytest.raises(UserError, match=r"^data\.root: images\.zip: not readable"):
        download.run(params)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read all folders")
def test_a_folder_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    write_tree(tmp_path, {"train": 1})
    (tmp_path / "train" / "cat").chmod(0)
    refused(tmp_path, "train/cat", "not readable")
    (tmp_path / "train" / "cat").chmod(0o755)


def test_a_look_that_was_stopped_does_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(seen, "AT_ONCE", 2)
    folder = tmp_path / "images"
    for i in range(5):
        write_picture(folder / f"{i}.png", i)
    expected = seen.look(folder)
    shutil.rmtree(tmp_path / "cache")
    stopped = True
    read: list[str] = []

    def digest(path: Path) -> str:
        if stopped and path.name == "2.png":
            raise KeyboardInterrupt
        read.append(path.name)
        return file_digest(path)

    file_digest = files.file_digest
    monkeypatch.setattr(files, "file_digest", digest)
    with pytest.raises(KeyboardInterrupt):
        seen.look(folder)
    read.clear()
    stopped = False
    assert seen.look(folder) == expected
    assert sorted(read) == ["2.png", "3.png", "4.png"]
