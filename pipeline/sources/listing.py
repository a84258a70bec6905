"""From labelled file names to a `Dataset`: what the sources made of files share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline import console
from pipeline.artifacts import SPLITS, TEST, TRAIN, VALIDATION, Dataset
from pipeline.errors import UserError
from pipeline.image_files import FileDecoder, ImageFiles
from pipeline.names import Names
from pipeline.sources.containers import Container, Folder
from pipeline.sources.decode import ImageOptions, decode_images
from pipeline.sources.limit import limited_rows
from pipeline.sources.members import first_few
from pipeline.sources.scan import scan


class Sample(NamedTuple):
    """One file: where it lies, its class, its split, its number in the source."""

    path: str
    label: str
    split: int
    number: int


class FileOptions(NamedTuple):
    """How files become arrays, how many of them, and what to do about bad ones.

    Attributes:
        max_unpacked: bytes that an archive may unpack to.
        workers: processes that look at images that stay in files.
    """

    image: ImageOptions
    on_bad_image: Literal["error", "skip"]
    max_unpacked: int
    limit: int | None
    limit_test: int | None
    storage: Literal["memory", "files"]
    workers: int


def load_listing(
    samples: Sequence[Sample],
    container: Container,
    options: FileOptions,
    source: str,
    class_names: Sequence[str] | None = None,
) -> Dataset:
    """Decode the listed files, after `data.limit`: into memory, or once, to know what they hold.

    Args:
        class_names: in the order of the label numbers; None sorts the training classes by name.

    Raises:
        UserError: no training images, fewer than two classes, a class without training images, missing files, files
            that do not decode (unless they are left out, with a warning), or images of different sizes.
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
    wanted = [samples[row] for row in limited_rows(labels, split, options.limit, options.limit_test)]
    chosen, images = (_in_memory if options.storage == "memory" else _in_files)(wanted, container, options)
    return Dataset(
        images=images,
        labels=np.array([number[sample.label] for sample in chosen], dtype=np.int64),
        split=np.array([sample.split for sample in chosen], dtype=np.uint8),
        source_index=np.array([sample.number for sample in chosen], dtype=np.int64),
        names=[sample.path for sample in chosen],
        class_names=names,
        source=source,
        labels_are_true=False,
    )


def _in_memory(
    wanted: list[Sample], container: Container, options: FileOptions
) -> tuple[list[Sample], NDArray[np.uint8]]:
    images, bad = decode_images(
        container.read([sample.path for sample in wanted], options.image.max_file_bytes), options.image
    )
    if missing := [sample.path for sample in wanted if sample.path not in images and sample.path not in bad]:
        raise UserError(f"data.root: {len(missing)} listed files are missing: {first_few(missing)}")
    chosen = _without_bad(wanted, bad, options.on_bad_image) if bad else wanted
    return chosen, np.stack([images[sample.path] for sample in chosen])


def _in_files(wanted: list[Sample], container: Container, options: FileOptions) -> tuple[list[Sample], ImageFiles]:
    if not isinstance(container, Folder):
        raise UserError(
            "data.storage: found files, but data.root is an archive, whose images cannot be read one by one; "
            "unpack it and set data.root to the folder, or set data.storage to memory"
        )
    paths = [sample.path for sample in wanted]
    container.require(paths)
    training = np.array([sample.split == TRAIN for sample in wanted])
    root = container.root.absolute()
    found = scan(root, paths, training, options.image, options.workers)
    chosen = wanted
    if found.bad:
        chosen = _without_bad(wanted, {paths[i]: why for i, why in found.bad.items()}, options.on_bad_image)
    shape, sums = found.together()
    image = options.image._replace(channels=1 if shape[0] == 1 else 3)
    names = Names.of(sample.path for sample in chosen)
    return chosen, ImageFiles(names, found.sizes[found.sizes >= 0], FileDecoder(str(root), shape, image), sums)


def _without_bad(samples: Sequence[Sample], bad: dict[str, str], on_bad_image: str) -> list[Sample]:
    """The samples that are left where `on_bad_image` is skip, with one warning.

    Raises:
        UserError: it is error, or a class would be left without training images.
    """
    found = f"{len(bad)} of {len({sample.path for sample in samples})} images do not decode: " + first_few(
        f"{name} ({why})" for name, why in bad.items()
    )
    if on_bad_image == "error":
        raise UserError(
            f"data.root: {found}; mend or remove them, or leave them out with data.on_bad_image: skip "
            "(data.max_image_mpixels says which are too large)"
        )
    left = [sample for sample in samples if sample.path not in bad]
    if lost := _train_classes(samples) - _train_classes(left):
        raise UserError(f"data.on_bad_image: {found}; that leaves no training image of {first_few(sorted(lost))}")
    console.warn(f"data.root: {found}; left out, as data.on_bad_image says")
    return left


def _train_classes(samples: Iterable[Sample]) -> set[str]:
    return {sample.label for sample in samples if sample.split == TRAIN}


SPLIT_NAMES = {
    "train": TRAIN,
    "val": VALIDATION,
    "valid": VALIDATION,
    "validation": VALIDATION,
    "test": TEST,
}
"""What a split's folder, or its entry in a CSV, may be called."""
