"""What the nearest neighbours of an image say of its label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.store import features
from pipeline.store.dataset import TRAIN, Labels

SHOWN = 4
"""Neighbours that a page shows for each image."""


@dataclass(frozen=True)
class Vote:
    """
    Attributes:
        asked: how many of the nearest training images there are.
        agree: how many of them have the given label.
        against: rows of those that have another one, the nearest first; at most `SHOWN`.
    """

    asked: int
    agree: int
    against: list[int]


def votes(labels: Labels, rows: Sequence[int], count: int) -> dict[int, Vote]:
    """Row → the vote of its `count` nearest training images, by the features that MLNT draws neighbours by.

    Raises:
        UserError: the features are missing, damaged or of other labels.
    """
    found: dict[int, Vote] = {}
    near = features.nearest(labels, np.array(rows, np.int64), labels.rows(TRAIN), count)
    for row, numbers in zip(rows, near, strict=True):
        others = numbers[numbers >= 0]
        agree = labels.labels[others] == labels.given[row]
        found[row] = Vote(len(others), int(agree.sum()), others[~agree][:SHOWN].tolist())
    return found
