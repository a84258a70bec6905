"""data/features.h5: one row of features per sample, in sample order."""

from __future__ import annotations

from collections.abc import Iterable

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline import files
from pipeline.errors import UserError
from pipeline.store import hdf5
from pipeline.store.dataset import Labels

CHUNK_BYTES = 16 << 10
"""The unit that carries a checksum and is read as a whole: a batch of rows at random costs the fewer bytes the smaller
it is, writing and reading the table in order the less time the larger it is (docs/performance.md)."""
ROWS_AT_A_TIME = 4096


def write_features(
    chunks: Iterable[NDArray[np.floating]], rows: int, width: int, dtype: str, labels: Labels, network_digest: str
) -> None:
    """Write data/features.h5, chunk by chunk, from float32 rows of `width` numbers.

    Raises:
        UserError: a number that `dtype` cannot hold; or one that is not finite. The file is then as it was before.
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
        samples: which of them `rows` counts.
    """

    def __init__(self, labels: Labels, network_digest: str, samples: NDArray[np.int64]) -> None:
        """
        Raises:
            UserError: missing, damaged, or made for other labels or by another network.
        """
        self.samples = samples
        with hdf5.opened(files.FEATURES, "extract-features") as file:
            hdf5.check_origin(file, files.FEATURES, "labels", labels.digest, "extract-features")
            hdf5.check_origin(file, files.FEATURES, "network", network_digest, "extract-features")
        with hdf5.reading(files.FEATURES):
            self._file = h5py.File(files.FEATURES, "r", locking=False)
            self._table = self._file["features"]

    @property
    def gib(self) -> float:
        """Of memory that `read` takes."""
        row: int = self._table.shape[1] * self._table.dtype.itemsize
        return len(self.samples) * row / files.GIB

    def rows(self, positions: Tensor) -> Tensor:
        """Of some samples [B, D].

        Raises:
            UserError: the file is damaged.
        """
        with hdf5.reading(files.FEATURES):
            # One by one: for rows apart from each other h5py takes ten times as long over a list of them.
            return torch.from_numpy(np.stack([self._table[row] for row in self.samples[positions.numpy()]]))

    def read(self) -> Tensor:
        """Of all samples [N, D], in memory; in pieces, so that there is no second copy.

        Raises:
            UserError: the file is damaged.
        """
        found = np.empty((len(self.samples), self._table.shape[1]), self._table.dtype)
        with hdf5.reading(files.FEATURES):
            for start in range(0, len(self._table), ROWS_AT_A_TIME):
                piece = self._table[start : start + ROWS_AT_A_TIME]
                first, last = np.searchsorted(self.samples, (start, start + len(piece)))
                found[first:last] = piece[self.samples[first:last] - start]
        return torch.from_numpy(found)
