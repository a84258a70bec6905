"""`mlnt list`: folders in the owners' layouts, through the list and the stages that read it."""

from __future__ import annotations

import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
from projects import make_params, write_picture

from pipeline.base.errors import UserError
from pipeline.cli import helpers
from pipeline.stages import download, noise
from pipeline.store.dataset import DECISIONS, SPLITS, Dataset, read_dataset, read_labels
from pipeline.workspace import known_datasets


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def pictures(folder: Path, *names: str) -> None:
    for name in names:
        write_picture(folder / name, zlib.crc32(name.encode()), size=(12, 9))


def animal10n(folder: Path) -> None:
    pictures(folder, *(f"training/{label}_{i}.jpg" for label in (0, 5, 9) for i in (3, 48932)))
    pictures(folder, "testing/0_7.jpg", "testing/9_8.JPG")
    write(folder / "training/.DS_Store", "what a file manager leaves")


def food101n(folder: Path) -> None:
    release = folder / "Food-101N_release"
    keys = [f"{label}/{i:032x}.jpg" for label in ("apple_pie", "waffles") for i in range(5)]
    pictures(release / "images", *keys)
    write(release / "meta/imagelist.tsv", "\n".join(["class_name/key", *keys]))
    header = "class_name/key\tverification_label"
    write(release / "meta/verified_val.tsv", "\n".join([header, f"{keys[0]}\t1", f"{keys[5]}\t1", f"{keys[1]}\t0"]))
    write(release / "meta/verified_train.tsv", "\n".join([header, f"{keys[2]}\t1", f"{keys[6]}\t0\n"]))
    pictures(folder / "food-101/images", "apple_pie/1011328.jpg", "waffles/42.jpg")
    write(folder / "food-101/meta/test.txt", "apple_pie/1011328\nwaffles/42\n")


def mini_webvision(folder: Path) -> None:
    train = {f"google/q000{i}/{i}{j}.jpg": i for i in (1, 2, 50) for j in range(3)}
    val = {f"val00000{i}.jpg": i for i in (1, 2, 50)}
    pictures(folder, *train, *(f"val_images_256/{name}" for name in val))
    names = [f"n{1440764 + i:08} fish {i}, another name" for i in range(51)]
    write(folder / "info/synsets.txt", "\n".join(names))
    write(folder / "info/train_filelist_google.txt", "\n".join(f"{name} {i}" for name, i in train.items()))
    write(folder / "info/val_filelist.txt", "\n".join(f"{name} {i}" for name, i in val.items()))


def tiny_imagenet(folder: Path) -> None:
    wnids = ("n01443537", "n01629819")
    pictures(folder, *(f"train/{wnid}/images/{wnid}_{i}.JPEG" for wnid in wnids for i in range(3)))
    write(folder / "train/n01443537/n01443537_boxes.txt", "n01443537_0.JPEG\t0\t10\t63\t58\n")
    pictures(folder, "val/images/val_0.JPEG", "val/images/val_1.JPEG", "test/images/test_0.JPEG")
    write(
        folder / "val/val_annotations.txt", "val_0.JPEG\tn01629819\t0\t32\t44\t62\nval_1.JPEG\tn01443537\t0\t0\t9\t9\n"
    )
    write(folder / "wnids.txt", "\n".join(reversed(wnids)))
    write(folder / "words.txt", "n01443537\tgoldfish, Carassius auratus\nn01629819\tEuropean fire salamander\n")


MAKE: dict[str, Callable[[Path], None]] = {
    "animal10n": animal10n,
    "food101n": food101n,
    "mini-webvision": mini_webvision,
    "tiny-imagenet": tiny_imagenet,
}
A, W = (f"Food-101N_release/images/{label}/" for label in ("apple_pie", "waffles"))
EXPECTED: dict[str, dict[str, dict[str, str]]] = {
    "animal10n": {
        "train": {f"training/{label}_{i}.jpg": str(label) for label in (0, 5, 9) for i in (3, 48932)},
        "test": {"testing/0_7.jpg": "0", "testing/9_8.JPG": "9"},
    },
    "food101n": {
        "train": {
            **{f"{A}{i:032x}.jpg": "apple_pie" for i in range(1, 5)},
            **{f"{W}{i:032x}.jpg": "waffles" for i in range(1, 5)},
        },
        "validation": {f"{A}{0:032x}.jpg": "apple_pie", f"{W}{0:032x}.jpg": "waffles"},
        "test": {"food-101/images/apple_pie/1011328.jpg": "apple_pie", "food-101/images/waffles/42.jpg": "waffles"},
    },
    "mini-webvision": {
        "train": {f"google/q000{i}/{i}{j}.jpg": f"n{1440764 + i:08} fish {i}" for i in (1, 2) for j in range(3)},
        "test": {f"val_images_256/val00000{i}.jpg": f"n{1440764 + i:08} fish {i}" for i in (1, 2)},
    },
    "tiny-imagenet": {
        "train": {
            f"train/{wnid}/images/{wnid}_{i}.JPEG": f"{wnid} {name}"
            for wnid, name in (("n01443537", "goldfish"), ("n01629819", "European fire salamander"))
            for i in range(3)
        },
        "test": {
            "val/images/val_0.JPEG": "n01629819 European fire salamander",
            "val/images/val_1.JPEG": "n01443537 goldfish",
        },
    },
}


def of(dataset: Dataset) -> dict[str, dict[str, str]]:
    """Split → path → class."""
    found: dict[str, dict[str, str]] = {}
    for name, label, split in zip(dataset.names, dataset.labels, dataset.split, strict=True):
        found.setdefault(SPLITS[split], {})[name] = dataset.class_names[label]
    return found


def read(root: Path, **changes: Any) -> Dataset:
    params = make_params(
        data__source="imagefolder", data__root=str(root), data__limit=None, data__limit_test=None, **changes
    )
    download.run(params)
    return read_dataset(str(root))


@pytest.fixture(params=MAKE)
def name(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    MAKE[request.param](tmp_path / "data")
    return str(request.param)


def test_every_layout_is_listed_and_read(name: str, tmp_path: Path, project: Path) -> None:
    said = known_datasets.run(name, tmp_path / "data", None)
    dataset = read(tmp_path / "data/labels.csv")
    assert of(dataset) == EXPECTED[name]
    assert dataset.class_names == sorted(dataset.class_names)
    assert f"{len(EXPECTED[name]['train'])} train" in said


def test_the_list_may_lie_elsewhere(name: str, tmp_path: Path, project: Path) -> None:
    known_datasets.run(name, tmp_path / "data", Path("lists/all.csv"))
    there = of(read(Path("lists/all.csv")))
    found = {
        part: {Path("lists", path).resolve(): label for path, label in each.items()} for part, each in there.items()
    }
    assert found == {
        part: {(tmp_path / "data" / path).resolve(): label for path, label in each.items()}
        for part, each in EXPECTED[name].items()
    }


def test_what_was_verified_are_decisions(tmp_path: Path, project: Path) -> None:
    food101n(tmp_path)
    known_datasets.run("food101n", tmp_path, None)
    dataset = read(tmp_path / "labels.csv")
    own = {"noise__kind": "none", "noise__corrections": str(tmp_path / "labels-verified.csv")}
    noise.run(make_params(data__source="imagefolder", data__root=str(tmp_path / "labels.csv"), **own))
    decisions = read_labels(dataset).decisions
    assert decisions is not None
    decided = {dataset.names[row]: DECISIONS[decisions[row]] for row in np.flatnonzero(decisions)}
    assert decided == {f"{A}{2:032x}.jpg": "keep", f"{W}{1:032x}.jpg": "drop"}


def test_the_command_has_all_of_them() -> None:
    assert set(get_args(get_type_hints(helpers.list_images)["name"])) == set(known_datasets.LAYOUTS) == set(MAKE)


def refused(name: str, folder: Path, expected: str) -> None:
    before = sorted(folder.rglob("*"))
    with pytest.raises(UserError, match=expected) as caught:
        known_datasets.run(name, folder, None)
    assert "\n" not in str(caught.value)
    assert sorted(folder.rglob("*")) == before


def test_another_folder_is_told_what_is_missing(name: str, tmp_path: Path) -> None:
    for need in known_datasets.LAYOUTS[name].needs:
        moved = (tmp_path / "data" / need).rename(tmp_path / "moved")
        refused(name, tmp_path / "data", f"^mlnt list: .*no {need} in it; expected .* as its owners hand it out")
        moved.rename(tmp_path / "data" / need)


def test_a_list_that_is_there_stays(name: str, tmp_path: Path) -> None:
    known_datasets.run(name, tmp_path / "data", None)
    refused(name, tmp_path / "data", "labels.csv is there already")


@pytest.mark.parametrize(
    ("name", "path", "text", "expected"),
    [
        ("animal10n", "training/cat.jpg", "", "training: 1 of 7 files are not called LABEL_NAME.jpg.*: cat.jpg"),
        ("animal10n", "testing/10_1.jpg", "", "testing: 1 of 3 files are not called LABEL_NAME.jpg"),
        (
            "food101n",
            "Food-101N_release/meta/imagelist.tsv",
            "class_name/key\nwaffles/1.jpg\n",
            "1 of the 3 images that its lists name are not there: Food-101N_release/images/waffles/1.jpg",
        ),
        ("food101n", "Food-101N_release/meta/imagelist.tsv", "waffles/1.jpg\n", "expected the columns class_name/key"),
        (
            "food101n",
            "Food-101N_release/meta/verified_val.tsv",
            "class_name/key\tverification_label\nwaffles/1.jpg\tyes\n",
            "verified_val.tsv, line 2: .*yes.*, expected a verification_label of 0 or 1",
        ),
        ("mini-webvision", "info/val_filelist.txt", "val000001.jpg 1000", "'val000001.jpg 1000', .* from 0 to 50"),
        ("mini-webvision", "info/train_filelist_google.txt", "google/q0001/1.jpg", "expected an image and a label"),
        ("mini-webvision", "info/val_filelist.txt", "val000009.jpg 3", "are not there: val_images_256/val000009.jpg"),
        ("tiny-imagenet", "val/val_annotations.txt", "val_0.JPEG\tn00000001", "a class of wnids.txt"),
        ("tiny-imagenet", "val/val_annotations.txt", "val_0.JPEG", "a class of wnids.txt"),
    ],
)
def test_damaged_lists_are_named(name: str, path: str, text: str, expected: str, tmp_path: Path) -> None:
    MAKE[name](tmp_path)
    write(tmp_path / path, text)
    refused(name, tmp_path, expected)


def test_text_that_is_none_is_named(tmp_path: Path) -> None:
    tiny_imagenet(tmp_path)
    (tmp_path / "words.txt").write_bytes("größe".encode("latin-1"))
    refused("tiny-imagenet", tmp_path, "words.txt: not readable as text")
    (tmp_path / "words.txt").unlink()
    shutil.copytree(tmp_path / "val", tmp_path / "words.txt")
    refused("tiny-imagenet", tmp_path, "words.txt: not readable")
