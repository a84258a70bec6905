"""Clothing1M in the layout that its owners hand out: key lists, label lists, images/."""

from __future__ import annotations

from pathlib import Path

from pipeline.artifacts import TEST, TRAIN, VALIDATION, Dataset
from pipeline.errors import UserError
from pipeline.sources.containers import Folder
from pipeline.sources.listing import ImageOptions, Sample, load_listing

CLASS_NAMES = (
    "T-Shirt", "Shirt", "Knitwear", "Chiffon", "Sweater", "Hoodie", "Windbreaker",
    "Jacket", "Downcoat", "Suit", "Shawl", "Dress", "Vest", "Underwear",
)  # fmt: skip

KEY_LISTS = (
    (TRAIN, "noisy_train_key_list.txt", "noisy_label_kv.txt"),
    (VALIDATION, "clean_val_key_list.txt", "clean_label_kv.txt"),
    (TEST, "clean_test_key_list.txt", "clean_label_kv.txt"),
)


def load(root: Path, options: ImageOptions) -> Dataset:
    """The paper's split: noisy training images, clean validation and test images; the clean training set is unused.

    Raises:
        UserError: a list is missing, a key has no label, a label is no class number, or no file.
    """
    samples: list[Sample] = []
    for split, key_list, label_list in KEY_LISTS:
        labels = dict(_pairs(root / label_list))
        keys = _lines(root / key_list)
        if unknown := [key for key in keys if key not in labels]:
            raise UserError(
                f"data.root: {len(unknown)} keys of {key_list} have no label in {label_list}, {unknown[0]} first"
            )
        samples += [Sample(key, CLASS_NAMES[labels[key]], split, i) for i, key in enumerate(keys)]
    return load_listing(samples, Folder(root), options, "clothing1m", CLASS_NAMES)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").split()
    except FileNotFoundError:
        names = sorted({name for row in KEY_LISTS for name in row[1:]})
        raise UserError(f"data.root: {path}: no such file; expected {', '.join(names)} and images/") from None


def _pairs(path: Path) -> list[tuple[str, int]]:
    words = _lines(path)
    pairs: list[tuple[str, int]] = []
    for key, label in zip(words[::2], words[1::2], strict=False):
        if not label.isdecimal() or int(label) >= len(CLASS_NAMES):
            raise UserError(f"data.root: {path}: found label {label!r} of {key}, expected 0 to {len(CLASS_NAMES) - 1}")
        pairs.append((key, int(label)))
    return pairs
