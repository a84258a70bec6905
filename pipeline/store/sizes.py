"""How large a data set is, without its images: what an estimate of the time needs."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.base import files
from pipeline.store import hdf5
from pipeline.store.dataset import TEST, TRAIN, VALIDATION, Dataset, Labels


class Sizes(NamedTuple):
    """What an estimate knows of the data.

    Attributes:
        shape: of an image, [C, H, W].
        classes: how many.
        train, validation, test: samples.
    """

    shape: tuple[int, int, int]
    classes: int
    train: int
    validation: int
    test: int

    @property
    def samples(self) -> int:
        return self.train + self.validation + self.test

    def with_validation(self, fraction: float) -> Sizes:
        """As stage noise leaves it: where the source has no validation split, one is taken off the training split."""
        taken = 0 if self.validation else round(fraction * self.train)
        return self._replace(train=self.train - taken, validation=self.validation + taken)


def sizes_of(dataset: Dataset, labels: Labels | None = None) -> Sizes:
    """By the splits of the labels, which have a validation split; without labels by those of the source."""
    split = dataset.split if labels is None else labels.split
    return count(dataset.images.shape[1:], len(dataset.class_names), split)


def count(shape: tuple[int, ...], classes: int, split: NDArray[np.uint8]) -> Sizes:
    channels, height, width = shape
    counts = np.bincount(split, minlength=3)
    return Sizes((channels, height, width), classes, *(int(counts[part]) for part in (TRAIN, VALIDATION, TEST)))


def read_sizes() -> tuple[Sizes, str] | None:
    """Those of data/dataset.h5, by data/labels.h5 if that belongs to it, and `data.source`; None where it is not there.

    Raises:
        UserError: damaged.
    """
    if not files.DATASET.exists():
        return None
    with hdf5.opened(files.DATASET, "download") as file:
        about = hdf5.about(file)
        shape = about["files"]["shape"] if "files" in about else file["images"].shape[1:]
        split = file["split"][:]
    if files.LABELS.exists():
        with hdf5.opened(files.LABELS, "inject-noise") as file:
            if hdf5.about(file).get("dataset_digest") == about["digest"]:
                split = file["split"][:]
    return count(tuple(shape), len(about["class_names"]), split), about["source"]
