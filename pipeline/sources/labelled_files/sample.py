"""A labelled file, as every source that is made of files finds it."""

from __future__ import annotations

from typing import NamedTuple

from pipeline.store.dataset import TEST, TRAIN, VALIDATION

SPLIT_NAMES = {"train": TRAIN, "val": VALIDATION, "valid": VALIDATION, "validation": VALIDATION, "test": TEST}
"""What a split may be called, in a CSV or as a folder (which has more names)."""


class Sample(NamedTuple):
    """One file: where it lies, its class, its split, its number in the source; its true class, where all have one."""

    path: str
    label: str
    split: int
    number: int
    true_label: str | None = None
