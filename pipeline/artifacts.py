"""The HDF5 files that pass from stage to stage. Each names, by digest, what it was made from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from pipeline import files
from pipeline.errors import UserError

TRAIN, VALIDATION, TEST = 0, 1, 2
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Dataset:
    """data/dataset.h5: the images and what their source says about them.

    Attributes:
        images: uint8 [N, C, H, W].
        labels: given labels [N].
        split: TRAIN, VALIDATION or TEST [N].
        source_index: position in the source [N]; for CIFAR-10 torchvision's index.
        names: file names or the like [N].
        class_names: one for each label.
        source: `data.source`.
        labels_are_true: whether the source vouches for its labels.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    split: NDArray[np.uint8]
    source_index: NDArray[np.int64]
    names: list[str]
    class_names: list[str]
    source: str
    labels_are_true: bool
    digest: str = ""


@dataclass(frozen=True)
class Labels:
    """data/labels.h5: the labels to train on.

    Attributes:
        labels: given (noisy) labels [N].
        true_labels: [N], or None where nobody knows them.
        split: as in the dataset, with the validation split taken off.
        intended_matrix: the noise asked for [C, C], or None for human labels and own data.
        dataset_digest: of the dataset that they belong to.
    """

    labels: NDArray[np.int64]
    true_labels: NDArray[np.int64] | None
    split: NDArray[np.uint8]
    intended_matrix: NDArray[np.float64] | None
    dataset_digest: str
    digest: str = ""

    def rows(self, split: int) -> NDArray[np.int64]:
        """The samples of a split, in sample order."""
        return np.flatnonzero(self.split == split)


def write_dataset(dataset: Dataset) -> None:
    arrays: dict[str, NDArray[Any]] = {
        "images": dataset.images,
        "labels": dataset.labels,
        "split": dataset.split,
        "source_index": dataset.source_index,
    }
    about = {
        "names": dataset.names,
        "class_names": dataset.class_names,
        "source": dataset.source,
        "labels_are_true": dataset.labels_are_true,
    }
    with _create(files.DATASET) as (file, _):
        _store(file, arrays, {**about, "digest": _digest(arrays, about)})


def read_dataset() -> Dataset:
    """
    Raises:
        UserError: missing or damaged.
    """
    with _open(files.DATASET, "download") as file:
        return Dataset(
            images=file["images"][:],
            labels=file["labels"][:],
            split=file["split"][:],
            source_index=file["source_index"][:],
            **_about(file),
        )


def write_labels(labels: Labels) -> None:
    optional = {"true_labels": labels.true_labels, "intended_matrix": labels.intended_matrix}
    arrays: dict[str, NDArray[Any]] = {"labels": labels.labels, "split": labels.split}
    arrays |= {name: array for name, array in optional.items() if array is not None}
    about: dict[str, Any] = {"dataset_digest": labels.dataset_digest}
    with _create(files.LABELS) as (file, _):
        _store(file, arrays, {**about, "digest": _digest(arrays, about)})


def read_labels(dataset: Dataset) -> Labels:
    """
    Raises:
        UserError: missing, damaged, or made for other data.
    """
    with _open(files.LABELS, "inject-noise") as file:
        _check_origin(file, files.LABELS, "dataset", dataset.digest, "inject-noise")
        return Labels(
            labels=file["labels"][:],
            true_labels=file["true_labels"][:] if "true_labels" in file else None,
            split=file["split"][:],
            intended_matrix=file["intended_matrix"][:] if "intended_matrix" in file else None,
            **_about(file),
        )


def write_features(
    chunks: Iterable[NDArray[np.floating]], rows: int, width: int, dtype: str, labels: Labels, network_digest: str
) -> None:
    """data/features.h5: one row per sample, in sample order; written chunk by chunk."""
    with _create(files.FEATURES) as (file, sink):
        _store(file, {}, {"labels_digest": labels.digest, "network_digest": network_digest})
        table = file.create_dataset("features", (rows, width), dtype, chunks=(min(rows, 1024), width), fletcher32=True)
        at = 0
        for chunk in chunks:
            table[at : at + len(chunk)] = chunk
            at += len(chunk)
            sink.check()


def read_features(labels: Labels, network_digest: str) -> NDArray[np.floating]:
    """
    Raises:
        UserError: missing, damaged, or made for other labels or by another network.
    """
    with _open(files.FEATURES, "extract-features") as file:
        _check_origin(file, files.FEATURES, "labels", labels.digest, "extract-features")
        _check_origin(file, files.FEATURES, "network", network_digest, "extract-features")
        features: NDArray[np.floating] = file["features"][:]
        return features


def write_soft_labels(path: Path, table: NDArray[np.float32], labels: Labels) -> None:
    """The labels that Joint Optimization's first step arrives at: a row per training sample."""
    with _create(path) as (file, _):
        _store(file, {"soft_labels": table}, {"labels_digest": labels.digest})


def read_soft_labels(path: Path, labels: Labels) -> NDArray[np.float32]:
    """
    Raises:
        UserError: missing, damaged, or made from other labels.
    """
    with _open(path, "baseline joint_optimization_1") as file:
        _check_origin(file, path, "labels", labels.digest, "baseline joint_optimization_1")
        table: NDArray[np.float32] = file["soft_labels"][:]
        return table


def _digest(arrays: dict[str, NDArray[Any]], attributes: dict[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(attributes, sort_keys=True).encode())
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _store(file: h5py.File, arrays: dict[str, NDArray[Any]], about: dict[str, Any]) -> None:
    """Everything with a checksum, text too: HDF5's own strings and attributes have none, and damaged ones hang it."""
    text = np.frombuffer(json.dumps(about).encode(), dtype=np.uint8)
    for name, array in {**arrays, "about": text}.items():
        # One chunk holds about 1 MiB of whole rows; each chunk carries a checksum.
        rows = max(1, min(len(array), (1 << 20) // max(1, array[0].nbytes)))
        file.create_dataset(name, data=array, chunks=(rows, *array.shape[1:]), fletcher32=True)


def _about(file: h5py.File) -> dict[str, Any]:
    about: dict[str, Any] = json.loads(file["about"][:].tobytes())
    return about


@contextmanager
def _create(path: Path) -> Iterator[tuple[h5py.File, _Sink]]:
    with files.replacing(path) as temporary, _Sink(temporary) as sink:
        # The newer format has checksums of its own structure too; the older one reads some damage as other values.
        with h5py.File(sink, "w", libver="v110") as file:
            yield file, sink
        sink.check()


class _Sink(FileIO):
    """What HDF5 writes to. Where the disk is full HDF5 would crash the process: it never hears of it, `check` does."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "w+")
        self._error: OSError | None = None

    def write(self, data: Any) -> int:
        view = memoryview(data)
        try:
            written = 0
            while written < len(view):
                written += super().write(view[written:])
        except OSError as error:
            self._error = self._error or error
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        try:
            return super().truncate(size)
        except OSError as error:
            self._error = self._error or error
            return size or 0

    def check(self) -> None:
        """
        Raises:
            OSError: what a write has met with.
        """
        if self._error is not None:
            raise self._error


@contextmanager
def _open(path: Path, command: str) -> Iterator[h5py.File]:
    if not path.exists():
        raise UserError(f"{path}: no such file; `mlnt {command}` makes it, or `dvc repro` all of them")
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, KeyError, RuntimeError, ValueError, TypeError) as error:
        raise UserError(f"{path}: damaged ({error}); delete it and run `dvc repro` again") from error


def _check_origin(file: h5py.File, path: Path, what: str, expected: str, command: str) -> None:
    found = _about(file).get(f"{what}_digest")
    if found != expected:
        raise UserError(
            f"{path}: made with another {what} (digest {str(found)[:12]}, expected {expected[:12]}); "
            f"run `mlnt {command}` again, or `dvc repro`"
        )
