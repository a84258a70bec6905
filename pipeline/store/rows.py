"""Tables of numbers in HDF5 files, a row a sample: written piece by piece, read by rows or as a whole."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import h5py
import numpy as np
from numpy.typing import NDArray

from pipeline.base import files
from pipeline.base.errors import UserError
from pipeline.store import hdf5

if TYPE_CHECKING:  # the report does without torch
    from torch import Tensor

CHUNK_BYTES = 16 << 10
"""Size of the chunks, each with a checksum and read as a whole. Small chunks make random rows cheap; large ones make it
faster to write the table and to read it in order (docs/performance.md)."""
ROWS_AT_A_TIME = 4096


def write_rows(
    file: h5py.File,
    sink: hdf5.Sink,
    name: str,
    pieces: Iterable[NDArray[np.floating]],
    shape: tuple[int, int],
    dtype: str,
    not_finite: str,
) -> None:
    """Add a table of this shape [N, D] to a new file, from float32 pieces of it.

    Args:
        not_finite: what to do about numbers that are not finite.

    Raises:
        UserError: a number is not finite, or too large for `dtype`.
    """
    rows, width = shape
    limit = float(np.finfo(dtype).max)
    together = max(1, min(rows, CHUNK_BYTES // (width * np.dtype(dtype).itemsize)))
    table = file.create_dataset(name, shape, dtype, chunks=(together, width), fletcher32=True)
    at = 0
    for piece in pieces:
        if not (largest := float(np.abs(piece).max())) <= limit:  # so that NaN is refused too
            remedy = "set it to float32" if np.isfinite(largest) else not_finite
            raise UserError(f"features.dtype: {dtype} holds up to {limit:.6g}, found {largest:.6g}; {remedy}")
        table[at : at + len(piece)] = piece
        at += len(piece)
        sink.check()


class RowFile:
    """Rows of a table, read when they are asked for.

    Attributes:
        samples: the rows that are meant [n]; positions count among them.
    """

    def __init__(self, path: Path, name: str, samples: NDArray[np.int64] | None = None) -> None:
        """Open the file at `path`; without `samples`, all rows are meant.

        Raises:
            UserError: the file is damaged.
        """
        self._path = path
        with hdf5.reading(path):
            self._file = h5py.File(path, "r", locking=False)
            self._table = self._file[name]
        self.samples = np.arange(len(self._table)) if samples is None else samples

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def width(self) -> int:
        """D."""
        return int(self._table.shape[1])

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
        """The rows [B, D] of the samples at these positions, on the CPU.

        Raises:
            UserError: the file is damaged.
        """
        import torch

        with hdf5.reading(self._path):
            # One by one: for rows apart from each other h5py takes ten times as long over a list of them.
            return torch.from_numpy(np.stack([self._table[row] for row in self.samples[positions.numpy()]]))

    def read(self) -> Tensor:
        """The rows [n, D] of all samples, read into memory in pieces, so that there is no second copy.

        Raises:
            UserError: the file is damaged.
        """
        import torch

        found = np.empty((len(self.samples), self._table.shape[1]), self._table.dtype)
        with hdf5.reading(self._path):
            for start in range(0, len(self._table), ROWS_AT_A_TIME):
                piece = self._table[start : start + ROWS_AT_A_TIME]
                first, last = np.searchsorted(self.samples, (start, start + len(piece)))
                found[first:last] = piece[self.samples[first:last] - start]
        return torch.from_numpy(found)


def nearest_rows(
    table: h5py.Dataset, rows: NDArray[np.int64], among: NDArray[np.int64], count: int
) -> NDArray[np.int64]:
    """The rows of a table that are nearest to each of `rows`, by Euclidean distance, the nearest first.

    Args:
        among: the rows that may be neighbours, in order; none is its own.

    Returns:
        Numbers of rows [n, count]; −1 where there are fewer.
    """
    from sklearn.neighbors import NearestNeighbors  # here: it is slow to import

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
