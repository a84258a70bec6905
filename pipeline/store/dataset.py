"""The HDF5 files that pass from stage to stage. Each names, by digest, what it was made from."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import h5py
import numpy as np
from numpy.typing import NDArray

from mlnt.images.statistics import PixelSums
from pipeline.base import files
from pipeline.decoding.decode import ImageOptions
from pipeline.decoding.image_files import FileDecoder, ImageFiles
from pipeline.store import hdf5
from pipeline.store.stored_images import StoredImages

TRAIN, VALIDATION, TEST = 0, 1, 2
SPLITS = ("train", "validation", "test")
DROPPED = 3
"""In the place of a split: a sample that people took out."""
DECISIONS = ("", "keep", "relabel", "drop")
"""What people decide about a label; nothing, before they do."""


@dataclass(frozen=True, eq=False)
class Names(Sequence[str]):
    """A list of names in two arrays: a million of them take a tenth of the memory of a list, and are not parsed.

    Attributes:
        text: all of them, one after the other, in UTF-8.
        ends: where each name ends in `text` [N].
    """

    text: NDArray[np.uint8]
    ends: NDArray[np.int64]

    @classmethod
    def of(cls, names: Iterable[str]) -> Names:
        if isinstance(names, Names):
            return names
        encoded = [name.encode("utf-8", "surrogateescape") for name in names]  # file names may be no UTF-8
        ends = np.cumsum([len(name) for name in encoded], dtype=np.int64)
        return cls(np.frombuffer(b"".join(encoded), np.uint8), ends)

    def __len__(self) -> int:
        return len(self.ends)

    def __eq__(self, other: object) -> bool:
        """Equal to any list of the same names."""
        return isinstance(other, Sequence) and len(other) == len(self) and all(map(operator.eq, self, other))

    __hash__ = None  # type: ignore[assignment]

    @overload
    def __getitem__(self, row: int) -> str: ...

    @overload
    def __getitem__(self, row: slice) -> list[str]: ...

    def __getitem__(self, row: int | slice) -> str | list[str]:
        if isinstance(row, slice):
            return [self[i] for i in range(*row.indices(len(self)))]
        at = range(len(self))[row]
        start = int(self.ends[at - 1]) if at else 0
        return self.text[start : int(self.ends[at])].tobytes().decode("utf-8", "surrogateescape")


@dataclass(frozen=True)
class Dataset:
    """data/dataset.h5: the images and what their source says about them.

    Attributes:
        images: uint8 [N, C, H, W], or where they are read or decoded from when they are wanted.
        labels: given labels [N].
        split: TRAIN, VALIDATION or TEST [N].
        source_index: position in the source [N]; for CIFAR torchvision's index.
        names: file names or the like [N].
        class_names: one for each label.
        source: `data.source`.
        labels_are_true: whether the source vouches for its labels.
        true_labels: what the source has beside the given labels [N]; None where it has nothing.
        same_picture: the group of equal images that each is in [N], −1 for none; None where no two are equal, or nobody
            has looked.
        options: how its files became images, `channels` settled; None where it has no files.
        folder: where its files lie; no file that is written has the place.
    """

    images: NDArray[np.uint8] | StoredImages | ImageFiles
    labels: NDArray[np.int64]
    split: NDArray[np.uint8]
    source_index: NDArray[np.int64]
    names: Sequence[str]
    class_names: list[str]
    source: str
    labels_are_true: bool
    true_labels: NDArray[np.int64] | None = None
    same_picture: NDArray[np.int64] | None = None
    options: ImageOptions | None = None
    folder: Path | None = None
    digest: str = ""

    def validation_labels(self, noise_kind: str, chosen: str) -> str:
        """What validation's labels are: `clean`, `noisy`, or `as given` where their quality is unknown.

        Args:
            noise_kind: `noise.kind`.
            chosen: `noise.validation`.
        """
        if noise_kind == "none" and self.true_labels is None:
            # Clothing1M: its owners had the images of validation and test labelled again by hand.
            return "clean" if self.labels_are_true or self.source == "clothing1m" else "as given"
        return chosen


@dataclass(frozen=True)
class Labels:
    """data/labels.h5: the labels to train on.

    Attributes:
        labels: given (noisy) labels [N].
        true_labels: true labels [N], or None where they are unknown.
        split: as in the dataset, with the validation split taken off, and DROPPED for what people took out.
        intended_matrix: the noise asked for [C, C], or None for human labels and own data.
        dataset_digest: digest of the data set that they belong to.
        decisions: what people decided about each label [N], a position in DECISIONS; None without `noise.corrections`.
        reviewed: the labels that they decided about [N], None likewise.
    """

    labels: NDArray[np.int64]
    true_labels: NDArray[np.int64] | None
    split: NDArray[np.uint8]
    intended_matrix: NDArray[np.float64] | None
    dataset_digest: str
    decisions: NDArray[np.uint8] | None = None
    reviewed: NDArray[np.int64] | None = None
    digest: str = ""

    @property
    def given(self) -> NDArray[np.int64]:
        """The labels as people saw them, before they decided [N]."""
        return self.labels if self.reviewed is None else self.reviewed

    @property
    def known(self) -> NDArray[np.bool_]:
        """Whose labels people have confirmed or corrected [N]."""
        if self.decisions is None:
            return np.zeros(len(self.labels), dtype=bool)
        return np.isin(self.decisions, [DECISIONS.index("keep"), DECISIONS.index("relabel")])

    def rows(self, split: int) -> NDArray[np.int64]:
        """The samples of a split, in sample order."""
        return np.flatnonzero(self.split == split)


def write_dataset(dataset: Dataset) -> str:
    """Write data/dataset.h5; returns its digest."""
    names = Names.of(dataset.names)
    arrays: dict[str, NDArray[Any]] = {
        "labels": dataset.labels,
        "split": dataset.split,
        "source_index": dataset.source_index,
        "names": names.text,
        "name_ends": names.ends,
    }
    of_some = {"true_labels": dataset.true_labels, "same_picture": dataset.same_picture}
    arrays |= {name: array for name, array in of_some.items() if array is not None}
    about: dict[str, Any] = {
        "class_names": dataset.class_names,
        "source": dataset.source,
        "labels_are_true": dataset.labels_are_true,
    }
    if dataset.options is not None and dataset.folder is not None:
        about["options"] = dataset.options._asdict()
        if dataset.folder.absolute().is_relative_to(files.raw().absolute()):
            about["unpacked"] = dataset.folder.name  # an archive's folder; all others are where `data.root` says
    images = dataset.images
    if isinstance(images, ImageFiles):
        arrays |= {"file_sizes": images.sizes, "picture_digests": images.digests}
        arrays |= {"pixel_total": images.sums.total, "pixel_levels": images.sums.levels}
        about["files"] = {"shape": images.decode.shape, "summed": images.sums.count}
    else:
        arrays["images"] = np.asarray(images)
    # What no pixel depends on is not counted: the same images are the same data set for records and checkpoints.
    counted = {name: value for name, value in about.items() if name != "unpacked"}
    if "options" in counted:
        counted["options"] = {**counted["options"], "max_mpixels": None}
    digest = hdf5.digest(arrays, counted)
    with hdf5.create(files.DATASET) as (file, _):
        hdf5.store(file, arrays, {**about, "digest": digest})
    return digest


def read_dataset(root: str | None = None) -> Dataset:
    """The data set in data/dataset.h5; its images are not read before they are wanted.

    Args:
        root: `data.root`, where images that stay in their files are looked for.

    Raises:
        UserError: missing or damaged.
    """
    with hdf5.opened(files.DATASET, "download") as file:
        about = hdf5.about(file)
        names = Names(file["names"][:], file["name_ends"][:])
        listed, unpacked = about.pop("files", None), about.pop("unpacked", None)
        made = about.pop("options", None)
        of_files: dict[str, Any] = (
            {} if made is None else {"options": ImageOptions(**made), "folder": _place(root, unpacked, names)}
        )
        return Dataset(
            images=StoredImages(files.DATASET) if listed is None else _image_files(file, names, listed, **of_files),
            **of_files,
            labels=file["labels"][:],
            split=file["split"][:],
            source_index=file["source_index"][:],
            names=names,
            true_labels=file["true_labels"][:] if "true_labels" in file else None,
            same_picture=file["same_picture"][:] if "same_picture" in file else None,
            **about,
        )


def _place(root: str | None, unpacked: str | None, names: Names) -> Path:
    """The folder that the names of image files are relative to."""
    if unpacked is not None:
        return files.raw() / unpacked
    place = files.resolve(root or ".")
    return files.holding(place.parent, names) if place.suffix.lower() == ".csv" else place


def _image_files(
    file: h5py.File, names: Names, listed: dict[str, Any], options: ImageOptions, folder: Path
) -> ImageFiles:
    channels, height, width = listed["shape"]
    decoder = FileDecoder(str(folder.absolute()), (channels, height, width), options)
    sums = PixelSums(listed["summed"], file["pixel_total"][:], file["pixel_levels"][:])
    return ImageFiles(names, file["file_sizes"][:], file["picture_digests"][:], decoder, sums)


OPTIONAL = ("true_labels", "intended_matrix", "decisions", "reviewed")
"""Arrays of data/labels.h5 that are there where they are known."""


def write_labels(labels: Labels) -> str:
    """Write data/labels.h5; returns its digest."""
    optional = {name: getattr(labels, name) for name in OPTIONAL}
    arrays: dict[str, NDArray[Any]] = {"labels": labels.labels, "split": labels.split}
    arrays |= {name: array for name, array in optional.items() if array is not None}
    about: dict[str, Any] = {"dataset_digest": labels.dataset_digest}
    digest = hdf5.digest(arrays, about)
    with hdf5.create(files.LABELS) as (file, _):
        hdf5.store(file, arrays, {**about, "digest": digest})
    return digest


def read_labels(dataset: Dataset) -> Labels:
    """Read data/labels.h5, and check that it was made from `dataset`.

    Raises:
        UserError: the file is missing, damaged, or made from another data set.
    """
    with hdf5.opened(files.LABELS, "inject-noise") as file:
        hdf5.check_origin(file, files.LABELS, "dataset", dataset.digest, "inject-noise")
        return Labels(
            labels=file["labels"][:],
            split=file["split"][:],
            **hdf5.about(file) | {name: file[name][:] if name in file else None for name in OPTIONAL},
        )


def write_soft_labels(path: Path, table: NDArray[np.float32], labels: Labels) -> None:
    """Write the labels [n, C] that Joint Optimization's first step arrives at: a row per training sample."""
    with hdf5.create(path) as (file, _):
        hdf5.store(file, {"soft_labels": table}, {"labels_digest": labels.digest})


def read_soft_labels(path: Path, labels: Labels) -> NDArray[np.float32]:
    """Read soft labels, float32 [n, C] with a row per training sample; check that they were made from `labels`.

    Raises:
        UserError: the file is missing, damaged, or made from other labels.
    """
    with hdf5.opened(path, "baseline joint_optimization_1") as file:
        hdf5.check_origin(file, path, "labels", labels.digest, "baseline joint_optimization_1")
        table: NDArray[np.float32] = file["soft_labels"][:]
        return table
