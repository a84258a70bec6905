"""data/features.h5: one row of features per sample, in sample order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import h5py
import numpy as np
from numpy.typing import NDArray

from pipeline import files
from pipeline.errors import UserError
from pipeline.store import hdf5
from pipeline.store.dataset import Labels

if TYPE_CHECKING:  # the report does without torch
    from torch import Tensor

CHUNK_BYTES = 16 << 10
"""Size of the chunks, each with a checksum and read as a whole. Small chunks make random rows cheap; large ones make it
faster to write the table and to read it in order (docs/performance.md)."""
ROWS_AT_A_TIME = 4096


def identity(network_digest: str, dtype: str) -> str:
    """What tells one table from another: the network that made it, and its precision."""
    return f"{network_digest} {dtype}"


def write_features(
    chunks: Iterable[NDArray[np.floating]], rows: int, width: int, dtype: str, labels: Labels, network_digest: str
) -> None:
    """Write data/features.h5, chunk by chunk, from float32 rows of `width` numbers.

    Raises:
        UserError: a number is not finite, or too large for `dtype`. The file is then as it was before.
    """
    limit = float(np.finfo(dtype).max)
    with hdf5.create(files.FEATURES) as (file, sink):
        hdf5.store(file, {}, {"labels_digest": labels.digest, "network_digest": network_digest})
        together = max(1, min(rows, CHUNK_BYTES // (width * np.dtype(dtype).itemsize)))
        table = file.create_dataset("features", (rows, width), dtype, chunks=(together, width), fletcher32=True)
        at = 0
        for chunk in chunks:
            if not (largest := float(np.abs(chunk).max())) <= limit:  # so that NaN is refused too
                remedy = "set it to float32" if np.isfinite(largest) else "lower train.lr: the network has diverged"
                raise UserError(f"features.dtype: {dtype} holds up to {limit:.6g}, found {largest:.6g}; {remedy}")
            table[at : at + len(chunk)] = chunk
            at += len(chunk)
            sink.check()


class FeatureFile:
    """Rows of the table, read when they are asked for.

    Attributes:
        samples: the rows of the table that belong to the training set [N]; positions count among them.
    """

    def __init__(self, labels: Labels, network_digest: str, samples: NDArray[np.int64]) -> None:
        """Open data/features.h5, and check that it was made from these labels and this network.

        Raises:
            UserError: the file is missing, damaged, or made from other labels or another network.
        """
        self.samples = samples
        with hdf5.opened(files.FEATURES, "extract-features") as file:
            hdf5.check_origin(file, files.FEATURES, "labels", labels.digest, "extract-features")
            hdf5.check_origin(file, files.FEATURES, "network", network_digest, "extract-features")
        with hdf5.reading(files.FEATURES):
            self._file = h5py.File(files.FEATURES, "r", locking=False)
            self._table = self._file["features"]

    @property
    def dtype(self) -> str:
        """`features.dtype`, as it was when the table was made."""
        return str(self._table.dtype)

    @property
    def gib(self) -> float:
        """GiB of memory that `read` takes."""
        row: int = self._table.shape[1] * self._table.dtype.itemsize
        return len(self.samples) * row / files.GIB

    def rows(self, positions: Tensor) -> Tensor:
        """The features [B, D] of the samples at these positions, on the CPU.

        Raises:
            UserError: the file is damaged.
        """
        import torch

        with hdf5.reading(files.FEATURES):
            # One by one: for rows apart from each other h5py takes ten times as long over a list of them.
            return torch.from_numpy(np.stack([self._table[row] for row in self.samples[positions.numpy()]]))

    def read(self) -> Tensor:
        """The features [N, D] of all samples, read into memory in pieces, so that there is no second copy.

        Raises:
            UserError: the file is damaged.
        """
        import torch

        found = np.empty((len(self.samples), self._table.shape[1]), self._table.dtype)
        with hdf5.reading(files.FEATURES):
            for start in range(0, len(self._table), ROWS_AT_A_TIME):
                piece = self._table[start : start + ROWS_AT_A_TIME]
                first, last = np.searchsorted(self.samples, (start, start + len(piece)))
                found[first:last] = piece[self.samples[first:last] - start]
        return torch.from_numpy(found)


def nearest(labels: Labels, rows: NDArray[np.int64], among: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """The samples nearest to each of `rows` by the Euclidean distance of their features, the nearest first.

    Args:
        among: the samples that may be neighbours, in order; none is its own.

    Returns:
        Sample numbers [n, count]; −1 where there are fewer.

    Raises:
        UserError: the file is missing, damaged, or made from other labels.
    """
    from sklearn.neighbors import NearestNeighbors  # here: it is slow to import

    with hdf5.opened(files.FEATURES, "extract-features") as file:
        hdf5.check_origin(file, files.FEATURES, "labels", labels.digest, "extract-features")
        table = file["features"]
        queries = np.empty((len(rows), table.shape[1]), np.float32)
        for at, block in _blocks(table):
            inside = (rows >= at) & (rows < at + len(block))
            queries[inside] = block[rows[inside] - at]
        distance: NDArray[np.float64] = np.empty((len(rows), 0))
        found: NDArray[np.int64] = np.empty((len(rows), 0), np.int64)
        for at, block in _blocks(table) if len(rows) else ():
            there = among[(among >= at) & (among < at + len(block))]
            if not len(there):
                continue
            search = NearestNeighbors(n_neighbors=min(count + 1, len(there)), algorithm="brute").fit(block[there - at])
            distances, positions = search.kneighbors(queries)
            distance, found = np.hstack([distance, distances]), np.hstack([found, there[positions]])
            distance[found == rows[:, None]] = np.inf
            best = np.lexsort((found, distance))[:, : count + 1]
            distance, found = np.take_along_axis(distance, best, 1), np.take_along_axis(found, best, 1)
    found = np.where(np.isfinite(distance), found, -1)[:, :count]
    return np.pad(found, ((0, 0), (0, count - found.shape[1])), constant_values=-1)


def _blocks(table: h5py.Dataset) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """The first row of each part of the table, and its rows."""
    for start in range(0, len(table), ROWS_AT_A_TIME):
        yield start, table[start : start + ROWS_AT_A_TIME].astype(np.float32)
