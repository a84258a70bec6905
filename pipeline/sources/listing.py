"""From labelled file names to a `Dataset`: what the sources made of files share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from pipeline.artifacts import SPLITS, TEST, TRAIN, VALIDATION, Dataset
from pipeline.errors import UserError
from pipeline.sources.containers import Container
from pipeline.sources.decode import decode_images
from pipeline.sources.limit import limited_rows


class Sample(NamedTuple):
    """One file: where it lies, its class, its split, its number in the source."""

    path: str
    label: str
    split: int
    number: int


class ImageOptions(NamedTuple):
    """How files become arrays, and how many of them."""

    channels: Literal["auto", 1, 3]
    resize: int | None
    crop: int | None
    limit: int | None
    limit_test: int | None


def load_listing(
    samples: Sequence[Sample],
    container: Container,
    options: ImageOptions,
    source: str,
    class_names: Sequence[str] | None = None,
) -> Dataset:
    """Decode the listed files, after `data.limit`.

    Args:
        class_names: in the order of the label numbers; None sorts the training classes by name.

    Raises:
        UserError: no training images, fewer than two classes, a class without training images, undecodable files.
    """
    in_train = {sample.label for sample in samples if sample.split == TRAIN}
    names = list(class_names) if class_names is not None else sorted(in_train)
    if len(in_train) < 2:
        raise UserError(f"data.root: expected training images of two or more classes, found {sorted(in_train)}")
    for sample in samples:
        if sample.label not in in_train:
            raise UserError(
                f"data.root: {SPLITS[sample.split]} has the class {sample.label!r} ({sample.path}), which train "
                f"lacks; its classes are {', '.join(names)}"
            )
    number = {name: i for i, name in enumerate(names)}
    labels = np.array([number[sample.label] for sample in samples], dtype=np.int64)
    split = np.array([sample.split for sample in samples], dtype=np.uint8)
    rows = limited_rows(labels, split, options.limit, options.limit_test)
    chosen = [samples[row] for row in rows]
    images = decode_images(
        container.read([sample.path for sample in chosen]), options.channels, options.resize, options.crop
    )
    if missing := [sample.path for sample in chosen if sample.path not in images]:
        raise UserError(f"data.root: {len(missing)} listed files are missing, {missing[0]} first")
    return Dataset(
        images=np.stack([images[sample.path] for sample in chosen]),
        labels=labels[rows],
        split=split[rows],
        source_index=np.array([sample.number for sample in chosen], dtype=np.int64),
        names=[sample.path for sample in chosen],
        class_names=names,
        source=source,
        labels_are_true=False,
    )


SPLIT_NAMES = {
    "train": TRAIN,
    "val": VALIDATION,
    "valid": VALIDATION,
    "validation": VALIDATION,
    "test": TEST,
}
"""What a split's folder, or its entry in a CSV, may be called."""
