"""Clothing1M's lists: the paper's split, and what can be wrong with them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from projects import write_picture

from pipeline.base.errors import UserError
from pipeline.decoding.decode import ImageOptions
from pipeline.sources import clothing1m
from pipeline.sources.labelled_files.to_dataset import FileOptions
from pipeline.store.dataset import TEST, TRAIN, VALIDATION

AS_THEY_ARE = FileOptions(ImageOptions("auto", None, None, 100, "white"), "error", None, None, "memory", 0)


@pytest.fixture
def clothing(tmp_path: Path) -> Path:
    """The owners' layout: two noisy images a class, one for validation and one for test."""
    root = tmp_path / "clothing1m"
    lists: dict[str, list[str]] = {"noisy_train": [], "clean_train": [], "clean_val": [], "clean_test": []}
    labels: dict[str, list[str]] = {"noisy": [], "clean": []}
    number = 0
    for label in range(14):
        for name, count in (("noisy_train", 2), ("clean_train", 1), ("clean_val", 1), ("clean_test", 1)):
            for _ in range(count):
                key = f"images/{number % 3}/{number}.png"
                write_picture(root / key, number)
                lists[name].append(key)
                labels["noisy"].append(f"{key} {(label + 1) % 14 if name != 'noisy_train' else label}")
                if name != "noisy_train":
                    labels["clean"].append(f"{key} {label}")
                number += 1
    for name, keys in lists.items():
        (root / f"{name}_key_list.txt").write_text("\n".join(keys), encoding="utf-8")
    for name, lines in labels.items():
        (root / f"{name}_label_kv.txt").write_text("\n".join(lines), encoding="utf-8")
    return root


def test_clothing1m_keeps_the_papers_split_and_its_clean_labels(clothing: Path) -> None:
    dataset = clothing1m.load(clothing, AS_THEY_ARE)
    assert np.bincount(dataset.split).tolist() == [28, 14, 14]
    assert dataset.class_names[0] == "T-Shirt"
    assert dataset.class_names[13] == "Underwear"
    for split, each in ((TRAIN, 2), (VALIDATION, 1), (TEST, 1)):
        assert dataset.labels[dataset.split == split].tolist() == np.repeat(np.arange(14), each).tolist()
    for name, image in zip(dataset.names, dataset.images, strict=True):
        assert np.array_equal(image, np.asarray(Image.open(clothing / name)).transpose(2, 0, 1))


def append(path: Path, *lines: str) -> None:
    path.write_text("\n".join([path.read_text(encoding="utf-8"), *lines]), encoding="utf-8")


def remove(root: Path, *names: str) -> None:
    for name in names:
        (root / name).unlink()


TRAIN_KEYS, NOISY = "noisy_train_key_list.txt", "noisy_label_kv.txt"


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (
            lambda root: remove(root, "clean_val_key_list.txt", NOISY),
            "no such file: clean_val_key_list.txt, noisy_label_kv.txt; expected",
        ),
        (
            lambda root: append(root / TRAIN_KEYS, *(f"images/x{i}.png" for i in range(7))),
            f"{TRAIN_KEYS}: 7 keys have no label in {NOISY}: images/x0.png; images/x1.png; images/x2.png; "
            "images/x3.png; images/x4.png; and 2 more",
        ),
        (
            lambda root: remove(root, "images/0/0.png", "images/1/1.png"),
            "2 of 56 listed files are missing: images/0/0.png; images/1/1.png",
        ),
        (lambda root: append(root / NOISY, "images/0/0.png"), f"{NOISY}: found 141 words, expected pairs"),
        (
            lambda root: append(root / NOISY, "images/0/0.png 1", "images/1/1.png 0", "images/0/0.png 2"),
            f"{NOISY}: 1 keys have more than one label: images/0/0.png",
        ),
        (lambda root: append(root / NOISY, "images/x.png 14"), "found label '14' of images/x.png"),
        (lambda root: append(root / NOISY, "images/x.png -1"), "found label '-1' of images/x.png"),
        *(
            (
                lambda root, key=key: (append(root / TRAIN_KEYS, key), append(root / NOISY, f"{key} 1")),
                f"{TRAIN_KEYS}: 1 keys point outside of data.root: {key}",
            )
            for key in ("../../etc/passwd", "/etc/passwd", "images/../../x.png", "C:/x.png", r"..\x.png")
        ),
        (lambda root: (root / NOISY).write_bytes("größe.png 1".encode("latin-1")), f"{NOISY}: not readable as text"),
        (lambda root: (root / TRAIN_KEYS).write_bytes(b"\xff\xfei\0"), f"{TRAIN_KEYS}: not readable as text"),
        (lambda root: append(root / NOISY, "images/x.png ²"), "found label '²' of images/x.png"),
        (lambda root: append(root / NOISY, "images/x.png " + "9" * 5000), "of images/x.png, expected 0 to 13"),
        (lambda root: (root / TRAIN_KEYS).write_text(""), "expected training images of two or more classes"),
        (lambda root: (root / "images/0/0.png").write_bytes(b"no image"), "images/0/0.png"),
        (shutil.rmtree, "no such file"),
    ],
)
def test_damaged_lists_of_clothing1m(damage: Callable[[Path], object], expected: str, clothing: Path) -> None:
    damage(clothing)
    with pytest.raises(UserError) as caught:
        clothing1m.load(clothing, AS_THEY_ARE)
    assert str(caught.value).startswith("data.root: ")
    assert expected in str(caught.value)


def test_a_label_that_is_given_twice_is_no_contradiction(clothing: Path) -> None:
    append(clothing / NOISY, "images/0/0.png 0")
    assert len(clothing1m.load(clothing, AS_THEY_ARE).names) == 56


def test_keys_that_are_listed_twice_are_counted_and_named(clothing: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clothing1m.load(clothing, AS_THEY_ARE)
    assert capsys.readouterr().err == ""
    append(clothing / TRAIN_KEYS, "images/0/0.png")
    append(clothing / "clean_test_key_list.txt", "images/1/4.png")
    assert len(clothing1m.load(clothing, AS_THEY_ARE).names) == 58
    assert "2 keys are listed more than once: images/0/0.png; images/1/4.png; " in capsys.readouterr().err
