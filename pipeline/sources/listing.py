"""From labelled file names to a `Dataset`: what the sources made of files share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mlnt.pixel_sums import PixelSums
from pipeline.artifacts import SPLITS, TEST, TRAIN, VALIDATION, Dataset
from pipeline.errors import UserError
from pipeline.image_files import FileDecoder, ImageFiles
from pipeline.names import Names
from pipeline.sources.containers import Container, Folder
from pipeline.sources.decode import decode_images, undecodable
from pipeline.sources.limit import limited_rows
from pipeline.sources.scan import Options, scan


class Sample(NamedTuple):
    """One file: where it lies, its class, its split, its number in the source."""

    path: str
    label: str
    split: int
    number: int


class ImageOptions(NamedTuple):
    """How files become arrays, and how many of them; `workers` is for those that stay files."""

    channels: Literal["auto", 1, 3]
    resize: int | None
    crop: int | None
    limit: int | None
    limit_test: int | None
    storage: Literal["memory", "files"]
    workers: int


def load_listing(
    samples: Sequence[Sample],
    container: Container,
    options: ImageOptions,
    source: str,
    class_names: Sequence[str] | None = None,
) -> Dataset:
    """Decode the listed files, after `data.limit`, into memory, or once to know what they hold.

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
    paths = [sample.path for sample in chosen]
    images = (
        _in_memory(paths, container, options)
        if options.storage == "memory"
        else _in_files(paths, container, options, split[rows] == TRAIN)
    )
    return Dataset(
        images=images,
        labels=labels[rows],
        split=split[rows],
        source_index=np.array([sample.number for sample in chosen], dtype=np.int64),
        names=paths,
        class_names=names,
        source=source,
        labels_are_true=False,
    )


def _in_memory(paths: list[str], container: Container, options: ImageOptions) -> NDArray[np.uint8]:
    images = decode_images(container.read(paths), options.channels, options.resize, options.crop)
    _refuse_missing([path for path in paths if path not in images])
    return np.stack([images[path] for path in paths])


def _in_files(paths: list[str], container: Container, options: ImageOptions, training: NDArray[np.bool_]) -> ImageFiles:
    """Colour where any image has it, as in memory."""
    if not isinstance(container, Folder):
        raise UserError(
            "data.storage: found files, but data.root is an archive, whose images cannot be read one by one; "
            "unpack it and set data.root to the folder, or set data.storage to memory"
        )
    root = container.root.absolute()
    found = scan(root, paths, training, Options(options.channels, options.resize, options.crop), options.workers)
    _refuse_missing([paths[i] for i in found.missing])
    if found.bad:
        raise undecodable([f"{paths[i]} ({reason})" for i, reason in found.bad], len(paths))
    shape = max(found.first)
    sums = PixelSums.empty(shape)
    for part in found.sums.values():
        sums.merge_(part)
    return ImageFiles(Names.of(paths), found.sizes, FileDecoder(str(root), shape, options.resize, options.crop), sums)


def _refuse_missing(missing: list[str]) -> None:
    if missing:
        raise UserError(f"data.root: {len(missing)} listed files are missing, {missing[0]} first")


SPLIT_NAMES = {
    "train": TRAIN,
    "val": VALIDATION,
    "valid": VALIDATION,
    "validation": VALIDATION,
    "test": TEST,
}
"""What a split's folder, or its entry in a CSV, may be called."""
