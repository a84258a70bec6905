"""`data.limit`: a stratified part of the data."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from mlnt import seeding
from mlnt.noise.matrices import stratified_split
from pipeline.store.dataset import TEST, TRAIN, Dataset


def limited_rows(
    labels: NDArray[np.int64], split: NDArray[np.uint8], limit: int | None, limit_test: int | None
) -> NDArray[np.int64]:
    """The rows to keep [n]: at most `limit` training and `limit_test` test samples, the same share of each class.

    Each class keeps at least one sample, so the limit is exceeded where there are more classes than it allows. By
    rounding, a few samples less than the limit may be kept.
    The choice is random but always the same: it does not depend on `seed`.
    """
    keep = np.ones(len(labels), dtype=bool)
    for part, most in ((TRAIN, limit), (TEST, limit_test)):
        members = np.flatnonzero(split == part)
        if most is not None and most < len(members):
            generator = seeding.numpy_generator(0, "limit", part)
            chosen = stratified_split(labels[members], most / len(members), generator)
            keep[members] = _some_of_each(labels[members], chosen, most)
    return np.flatnonzero(keep)


def _some_of_each(labels: NDArray[np.int64], chosen: NDArray[np.bool_], most: int) -> NDArray[np.bool_]:
    """Add a sample of each class that has none; while there are more than `most`, drop one of the largest class."""
    chosen = chosen | ~np.isin(labels, labels[chosen])  # only a class of a single sample may have none
    counts = np.bincount(labels[chosen])
    while counts.sum() > most and counts.max() > 1:
        largest = counts.argmax()
        chosen[np.flatnonzero(chosen & (labels == largest))[-1]] = False
        counts[largest] -= 1
    return chosen


def limit_dataset(dataset: Dataset, limit: int | None, limit_test: int | None) -> Dataset:
    """The data set with only the rows that `limited_rows` keeps."""
    rows = limited_rows(dataset.labels, dataset.split, limit, limit_test)
    if len(rows) == len(dataset.labels):
        return dataset
    return dataclasses.replace(
        dataset,
        images=dataset.images[rows],
        labels=dataset.labels[rows],
        split=dataset.split[rows],
        source_index=dataset.source_index[rows],
        names=[dataset.names[row] for row in rows],
    )
