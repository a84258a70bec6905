"""scikit-learn's handwritten digits: 1,797 real scans of 8×8 pixels, inside the package."""

from __future__ import annotations

import numpy as np

from mlnt import seeding
from mlnt.noise.matrices import stratified_split
from pipeline.store.dataset import TEST, TRAIN, Dataset

TEST_FRACTION = 0.4
"""Two fifths for the test split, about 720 scans, so that its standard error stays near one percent."""


def load() -> Dataset:
    """Read the digits, with one fixed stratified test split that does not depend on `seed`."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    labels = bunch.target.astype(np.int64)
    test = stratified_split(labels, TEST_FRACTION, seeding.numpy_generator(0, "digits test split"))
    return Dataset(
        images=np.round(bunch.images * (255 / 16)).astype(np.uint8)[:, None],
        labels=labels,
        split=np.where(test, TEST, TRAIN).astype(np.uint8),
        source_index=np.arange(len(labels)),
        names=[f"digit {i}" for i in range(len(labels))],
        class_names=[str(name) for name in bunch.target_names],
        source="digits",
        labels_are_true=True,
    )
