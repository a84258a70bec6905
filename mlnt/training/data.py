"""What an iteration trains on and is judged by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from mlnt.images.batches import ImageStore


@dataclass(frozen=True)
class LabeledSet:
    """Samples to evaluate on: rows of the image store and the labels to compare with."""

    indices: Tensor
    labels: Tensor


class FeatureRows(Protocol):
    """A feature table that is not in memory."""

    def rows(self, positions: Tensor) -> Tensor:
        """The features of these samples of the training set, [B, D] on the CPU."""
        ...


@dataclass(frozen=True)
class TrainingData:
    """What an iteration trains on and is judged by. Rows are rows of `images`.

    Attributes:
        images: all images.
        train: the noisy training set D, by rows and given labels.
        evaluation: sets evaluated while training; `validation` chooses the best model, others only inform.
        kept: boolean over D, in the order of `train`: the samples of D′ (10); None keeps all.
        features: pre-logit features [len(D), D], in the order of `train`, moved to the device once, or read for each
            step; None where no neighbours are needed.
    """

    images: ImageStore
    train: LabeledSet
    evaluation: Mapping[str, LabeledSet]
    kept: Tensor | None = None
    features: Tensor | FeatureRows | None = None
