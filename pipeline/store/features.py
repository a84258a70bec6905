"""data/features.h5: one row of features per sample, in sample order; none where a head is trained, whose neighbours are
found by its embeddings."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from pipeline.base import files
from pipeline.store import hdf5
from pipeline.store.dataset import Labels
from pipeline.store.rows import RowFile, nearest_rows, write_rows


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
    with hdf5.create(files.FEATURES) as (file, sink):
        hdf5.store(file, {}, {"labels_digest": labels.digest, "network_digest": network_digest})
        diverged = "lower train.lr: the network has diverged"
        write_rows(file, sink, "features", chunks, (rows, width), dtype, diverged)


class FeatureFile(RowFile):
    """Rows of the table; `samples` are those of the training set."""

    def __init__(self, labels: Labels, network_digest: str, samples: NDArray[np.int64]) -> None:
        """Open data/features.h5, and check that it was made from these labels and this network.

        Raises:
            UserError: the file is missing, damaged, or made from other labels or another network.
        """
        with hdf5.opened(files.FEATURES, "extract-features") as file:
            hdf5.check_origin(file, files.FEATURES, "labels", labels.digest, "extract-features")
            hdf5.check_origin(file, files.FEATURES, "network", network_digest, "extract-features")
        super().__init__(files.FEATURES, "features", samples)


def nearest(labels: Labels, rows: NDArray[np.int64], among: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """The samples nearest to each of `rows` by their features; where a head was trained, by its embeddings.

    Args, result: as `nearest_rows`.

    Raises:
        UserError: the file is missing, damaged, or made from other labels or another data set.
    """
    with hdf5.opened(files.FEATURES, "extract-features") as file:
        hdf5.check_origin(file, files.FEATURES, "labels", labels.digest, "extract-features")
        if "features" in file:
            return nearest_rows(file["features"], rows, among, count)
    with hdf5.opened(files.EMBEDDINGS, "embed") as file:
        hdf5.check_origin(file, files.EMBEDDINGS, "dataset", labels.dataset_digest, "embed")
        return nearest_rows(file["embeddings"], rows, among, count)
