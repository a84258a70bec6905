"""From labelled file names to a `Dataset`, for all sources that are made of files."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import psutil
from numpy.typing import NDArray

from pipeline.base import console
from pipeline.base.errors import UserError
from pipeline.base.files import GIB
from pipeline.decoding.decode import ImageOptions, UndecodableError, decode_listed, different_sizes
from pipeline.decoding.image_files import FileDecoder, ImageFiles
from pipeline.sources.labelled_files.classes import in_order, warn_of_alike
from pipeline.sources.labelled_files.same import picture_digests, same_pictures
from pipeline.sources.labelled_files.sample import Sample
from pipeline.sources.labelled_files.scan import scan
from pipeline.sources.limit import limited_rows
from pipeline.sources.places.folder import first_few, printable, read_start, require
from pipeline.store.dataset import SPLITS, TRAIN, Dataset, Names
from pipeline.store.sizes import Sizes, count

Digests = NDArray[np.uint64]


class FileOptions(NamedTuple):
    """How files become arrays, how many of them, and what to do about bad ones.

    Attributes:
        workers: processes that decode images that stay in files.
    """

    image: ImageOptions
    on_bad_image: Literal["error", "skip"]
    limit: int | None
    limit_test: int | None
    storage: Literal["memory", "files"]
    workers: int


def load_files(
    samples: Sequence[Sample],
    root: Path,
    options: FileOptions,
    source: str,
    class_names: Sequence[str] | None = None,
) -> Dataset:
    """Decode the listed files that `data.limit` keeps: into memory, or once to learn their sizes and statistics.

    Args:
        root: the folder that their paths are relative to.
        class_names: in the order of the label numbers; None puts the training classes in that of `in_order`.

    Raises:
        UserError: no training images, fewer than two classes, a class or a true label without training images, missing
            files, files that do not decode (unless they are left out, with a warning), or images of different sizes.
    """
    names = classes_of(samples, class_names)
    warn_of_alike(names)
    number = {name: i for i, name in enumerate(names)}
    labels, split = _labels_and_splits(samples, number)
    wanted = [samples[row] for row in limited_rows(labels, split, options.limit, options.limit_test)]
    chosen, images, digests = (_in_memory if options.storage == "memory" else _in_files)(wanted, root, options)
    labels, split = _labels_and_splits(chosen, number)
    return Dataset(
        images=images,
        labels=labels,
        split=split,
        source_index=np.array([sample.number for sample in chosen], dtype=np.int64),
        names=[sample.path for sample in chosen],
        class_names=names,
        source=source,
        labels_are_true=False,
        true_labels=_true_labels(chosen, number),
        same_picture=same_pictures(chosen, digests),
        options=options.image._replace(channels=1 if images.shape[1] == 1 else 3),
        folder=root,
    )


def _labels_and_splits(
    samples: Sequence[Sample], number: Mapping[str, int]
) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    labels = np.array([number[sample.label] for sample in samples], dtype=np.int64)
    return labels, np.array([sample.split for sample in samples], dtype=np.uint8)


def _true_labels(samples: Sequence[Sample], number: Mapping[str, int]) -> NDArray[np.int64] | None:
    known = [number[sample.true_label] for sample in samples if sample.true_label is not None]
    return np.array(known, dtype=np.int64) if known else None


def classes_of(samples: Iterable[Sample], class_names: Sequence[str] | None = None) -> list[str]:
    """The classes in the order of their numbers: `class_names`, or those of the training images in that of `in_order`.

    Raises:
        UserError: the training images are of fewer than two classes, or others, or true labels, are of a class that
            they lack.
    """
    samples = list(samples)
    in_train = _train_classes(samples)
    names = list(class_names) if class_names is not None else in_order(in_train)
    if len(in_train) < 2:
        raise UserError(f"data.root: expected training images of two or more classes, found {sorted(in_train)}")
    for sample in samples:
        if sample.label not in in_train:
            raise UserError(
                f"data.root: {SPLITS[sample.split]} has the class {sample.label!r} ({sample.path}), which train "
                f"lacks; its classes are {', '.join(names)}"
            )
    if unknown := [each for each in samples if each.true_label is not None and each.true_label not in in_train]:
        raise UserError(
            f"data.root: {len(unknown)} true labels are no class: "
            f"{first_few(printable(f'{each.true_label} ({each.path})') for each in unknown)}; the classes are the "
            f"labels of the training images: {', '.join(names)}; correct these rows, or remove them"
        )
    return names


def look_at_files(samples: Sequence[Sample], root: Path, options: FileOptions) -> Sizes:
    """What `load_files` would give: counts after `data.limit`, and the shape of the first image.

    Raises:
        UserError: it cannot be read, or does not decode.
    """
    names = classes_of(samples)
    number = {name: i for i, name in enumerate(names)}
    labels, split = _labels_and_splits(samples, number)
    first = root / samples[0].path
    try:
        content = read_start(first, options.image.max_file_bytes + 1)
        image = decode_listed(samples[0].path, content, options.image).pixels
    except UndecodableError as error:
        raise UserError(f"data.root: {first}: {error}") from error
    return count(image.shape, len(names), split[limited_rows(labels, split, options.limit, options.limit_test)])


def _in_memory(
    wanted: list[Sample], root: Path, options: FileOptions
) -> tuple[list[Sample], NDArray[np.uint8], Digests]:
    names = [sample.path for sample in wanted]
    require(root, names)
    most = options.image.max_file_bytes + 1
    contents = ((name, read_start(root / name, most)) for name in dict.fromkeys(names))
    shown = console.counted(contents, "download", len(set(names)))
    images, bad = decode_images(shown, names, options.image)
    chosen = _without_bad(wanted, bad, options.on_bad_image) if bad else wanted
    return chosen, images, picture_digests(images)


def decode_images(
    items: Iterable[tuple[str, bytes]], names: Sequence[str], options: ImageOptions
) -> tuple[NDArray[np.uint8], dict[str, str]]:
    """Images [N, C, H, W] in the order of `names`, and name → why for those that do not decode, which have no row.

    Warns of what was left out of others, or is doubtful.

    Args:
        items: name and bytes of each file, in any order, each name once.
        names: the wanted names; a name may occur more than once.

    Raises:
        UserError: missing files, images of different sizes, as soon as there are two, one that is smaller than the
            crop, or more of them than memory holds.
    """
    row: dict[str, int] = {}
    again = [(i, first) for i, name in enumerate(names) if (first := row.setdefault(name, i)) != i]
    images = np.empty((len(names), 0, 0, 0), np.uint8)
    done = np.zeros(len(names), dtype=bool)
    bad: dict[str, str] = {}
    remarks: dict[str, tuple[str, ...]] = {}
    first_name = ""
    for name, content in items:
        try:
            image, found = decode_listed(name, content, options)
        except UndecodableError as error:
            bad[name] = str(error)
            continue
        if found:
            remarks[name] = found
        if not first_name:
            images, first_name = _room(len(names), image.shape), name
        elif image.shape[1:] != images.shape[2:]:
            raise different_sizes(first_name, images.shape[1:], name, image.shape)
        elif len(image) > images.shape[1]:  # data.channels: auto, and the first one in colour
            grey, images = images, _room(len(names), image.shape)
            for filled in np.flatnonzero(done):
                images[filled] = grey[filled]
        images[row[name]] = image  # a grey one as each of three colours
        done[row[name]] = True
    if missing := [name for name, i in row.items() if not done[i] and name not in bad]:
        raise UserError(f"data.root: {len(missing)} listed files are missing: {first_few(missing)}")
    for i, first in again:
        images[i], done[i] = images[first], done[first]
    warn_of_remarks("data.root", remarks, len(row) - len(bad))
    return _rows(images, done), bad


def warn_of_remarks(where: str, remarks: Mapping[str, tuple[str, ...]], count: int) -> None:
    """Once for each kind, with the names of the first few. `count`: of all images."""
    names: dict[str, list[str]] = {}
    for name, found in remarks.items():
        for remark in found:
            names.setdefault(remark, []).append(printable(name))
    for remark, those in names.items():
        console.warn(f"{where}: {len(those)} of {count} images {remark}: {first_few(those)}")


def _room(count: int, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """An uninitialised array for `count` images of this shape [C, H, W].

    Raises:
        UserError: it needs more memory than is free.
    """
    channels, height, width = shape
    needed, free = count * math.prod(shape), psutil.virtual_memory().available
    if needed > free:
        raise UserError(
            f"data.storage: found memory, but {count} images of {width}×{height}×{channels} need {needed / GIB:.1f} GiB"
            f", and {free / GIB:.1f} are free; set data.resize to fewer pixels, data.limit to fewer images, or "
            "data.storage to files"
        )
    return np.empty((count, *shape), np.uint8)


def _rows(images: NDArray[np.uint8], chosen: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """As `images[chosen]`, but in place."""
    rows = np.flatnonzero(chosen)
    if len(rows) < len(images):
        for i, row in enumerate(rows):
            images[i] = images[row]
    return images[: len(rows)]


def _in_files(wanted: list[Sample], root: Path, options: FileOptions) -> tuple[list[Sample], ImageFiles, Digests]:
    paths = [sample.path for sample in wanted]
    require(root, paths)
    training = np.array([sample.split == TRAIN for sample in wanted])
    root = root.absolute()
    found = scan(root, paths, training, options.image, options.workers)
    chosen = wanted
    if found.bad:
        chosen = _without_bad(wanted, {paths[i]: why for i, why in found.bad.items()}, options.on_bad_image)
    good = found.sizes >= 0
    warn_of_remarks("data.root", {paths[i]: remarks for i, remarks in found.remarks.items()}, int(good.sum()))
    shape, sums = found.together()
    image = options.image._replace(channels=1 if shape[0] == 1 else 3)
    names = Names.of(sample.path for sample in chosen)
    images = ImageFiles(names, found.sizes[good], found.digests[good], FileDecoder(str(root), shape, image), sums)
    return chosen, images, images.digests


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
