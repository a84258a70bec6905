"""`data.limit`: a stratified part of the data."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from mlnt import seeding
from mlnt.noise import stratified_split
from pipeline.artifacts import TEST, TRAIN, Dataset


def limited_rows(
    labels: NDArray[np.int64], split: NDArray[np.uint8], limit: int | None, limit_test: int | None
) -> NDArray[np.int64]:
    """The rows that stay: about `limit` training and `limit_test` test samples, the same share of each class.

    Always the same ones: they do not depend on `seed`.
    """
    keep = np.ones(len(labels), dtype=bool)
    for part, most in ((TRAIN, limit), (TEST, limit_test)):
        members = np.flatnonzero(split == part)
        if most is not None and most < len(members):
            generator = seeding.numpy_generator(0, "limit", part)
            keep[members] = stratified_split(labels[members], most / len(members), generator)
    return np.flatnonzero(keep)


def limit_dataset(dataset: Dataset, limit: int | None, limit_test: int | None) -> Dataset:
    """The dataset with those rows alone."""
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
