"""Clothing1M in the layout that its owners hand out: key lists, label lists, images/."""

from __future__ import annotations

import stat
from pathlib import Path

from pipeline.base import console
from pipeline.base.errors import UserError
from pipeline.sources.labelled_files.sample import Sample
from pipeline.sources.labelled_files.to_dataset import FileOptions, load_files, look_at_files
from pipeline.sources.places.folder import file_type, first_few, is_inside, printable, repeated
from pipeline.store.dataset import TEST, TRAIN, VALIDATION, Dataset
from pipeline.store.sizes import Sizes

CLASS_NAMES = (
    "T-Shirt", "Shirt", "Knitwear", "Chiffon", "Sweater", "Hoodie", "Windbreaker",
    "Jacket", "Downcoat", "Suit", "Shawl", "Dress", "Vest", "Underwear",
)  # fmt: skip

KEY_LISTS = (
    (TRAIN, "noisy_train_key_list.txt", "noisy_label_kv.txt"),
    (VALIDATION, "clean_val_key_list.txt", "clean_label_kv.txt"),
    (TEST, "clean_test_key_list.txt", "clean_label_kv.txt"),
)


def load(root: Path, options: FileOptions) -> Dataset:
    """The paper's split: noisy training images, clean validation and test images; the clean training set is unused.

    Raises:
        UserError: what `_samples` or `load_files` finds, such as keys without files.
    """
    return load_files(_samples(root), root, options, "clothing1m", CLASS_NAMES)


def look(root: Path, options: FileOptions) -> Sizes:
    """What `load` would give, from the lists and one image."""
    return look_at_files(_samples(root), root, options)


def _samples(root: Path) -> list[Sample]:
    """
    Raises:
        UserError: a list is missing, unreadable or damaged; a key points outside, has no label, or none that is a class
            number.
    """
    names = sorted({name for row in KEY_LISTS for name in row[1:]})
    if missing := [name for name in names if file_type(root / name) != stat.S_IFREG]:
        raise UserError(
            f"data.root: {root}: no such file: {', '.join(missing)}; expected {', '.join(names)} and images/"
        )
    labels = {name: _labels(root / name) for name in sorted({row[2] for row in KEY_LISTS})}
    samples: list[Sample] = []
    for split, key_list, label_list in KEY_LISTS:
        keys = _words(root / key_list)
        _refuse(root / key_list, [key for key in keys if not is_inside(key)], "point outside of data.root")
        unknown = [key for key in keys if key not in labels[label_list]]
        _refuse(root / key_list, unknown, f"have no label in {label_list}")
        samples += [Sample(key, CLASS_NAMES[labels[label_list][key]], split, i) for i, key in enumerate(keys)]
    if twice := repeated(sample.path for sample in samples):  # only a warning: the lists are as the owners made them
        console.warn(
            f"data.root: {root}: {len(twice)} keys are listed more than once: {first_few(map(printable, twice))}; "
            "one that is for training and for test makes accuracies too good"
        )
    return samples


def _refuse(path: Path, keys: list[str], what: str) -> None:
    if keys:
        raise UserError(f"data.root: {path}: {len(keys)} keys {what}: {first_few(map(printable, keys))}")


def _words(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"data.root: {path}: not readable as text: {error}") from error


def _labels(path: Path) -> dict[str, int]:
    """Key → class number."""
    words = _words(path)
    if len(words) % 2:
        raise UserError(
            f"data.root: {path}: found {len(words)} words, expected pairs of a key and a label; the last word is "
            f"{printable(words[-1])}: is the file cut off?"
        )
    labels: dict[str, int] = {}
    contradicting: dict[str, None] = {}  # in order
    for key, word in zip(words[::2], words[1::2], strict=True):
        if not (word.isascii() and word.isdecimal() and len(word) <= 2 and int(word) < len(CLASS_NAMES)):
            raise UserError(
                f"data.root: {path}: found label {word!r} of {printable(key)}, expected 0 to {len(CLASS_NAMES) - 1}"
            )
        if labels.setdefault(key, int(word)) != int(word):
            contradicting[key] = None
    _refuse(path, list(contradicting), "have more than one label")
    return labels
