"""Predictions of a network in eval mode, and what is counted from them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mlnt.images.batches import ImageStore
from mlnt.training.distributed import ALONE, Ranks
from mlnt.training.passes import Network


def predict_logits(
    networks: Sequence[Network],
    images: ImageStore,
    indices: Tensor,
    batch_size: int,
    on_batch: Callable[[int], None] = lambda _: None,
    ranks: Ranks = ALONE,
) -> tuple[Tensor, ...]:
    """Logits [N, C] of each network, on the CPU: eval mode, un-augmented images, each read once for all networks.

    After each batch `on_batch` is called with the number of samples done. The modules' modes are restored afterwards.
    Several ranks divide the batches, and all get the logits of all: the same bits as by one.
    """
    batches = torch.split(indices, batch_size)
    results: list[Tensor] = []
    done = 0
    for logits in ranks.in_order(logits_by_batch(networks, images, ranks.share(batches))):
        results = results or [part.new_empty(len(indices), part.shape[1]) for part in logits]
        for result, part in zip(results, logits, strict=True):
            result[done : done + len(part)] = part
        done += len(logits[0])
        on_batch(done)
    return tuple(results)


def logits_by_batch(
    networks: Sequence[Network], images: ImageStore, batches: Iterable[Tensor]
) -> Iterator[tuple[Tensor, ...]]:
    """Logits [B, C] of each network, for one batch of sample numbers after the other, on the CPU, in eval mode.

    For callers that have no room for the logits of all samples. The modules' modes are restored at the end.
    """
    was_training = [network.module.training for network in networks]
    try:
        for network in networks:
            network.module.eval()
        for fetched in images.fetch(batches):
            with torch.no_grad():
                batch = images.batch(fetched)
                logits = tuple(network(batch).cpu() for network in networks)
            yield logits
    finally:
        for network, mode in zip(networks, was_training, strict=True):
            network.module.train(mode)


def accuracy(logits_NC: Tensor, labels_N: Tensor) -> float:
    """Share of samples whose arg-max is the label."""
    return int((logits_NC.argmax(dim=1) == labels_N).sum()) / len(labels_N)


@dataclass(frozen=True)
class Confusion:
    """counts[i, j]: samples of true class i that are predicted as j."""

    counts: NDArray[np.int64]

    @property
    def per_class_accuracy(self) -> list[float | None]:
        """Recall of each class; None for a class without samples."""
        totals = self.counts.sum(axis=1)
        return [float(self.counts[c, c] / totals[c]) if totals[c] else None for c in range(len(self.counts))]


def confusion(logits_NC: Tensor, labels_N: Tensor) -> Confusion:
    """Confusion matrix of the arg-max predictions."""
    num_classes = logits_NC.shape[1]
    flat = labels_N * num_classes + logits_NC.argmax(dim=1)
    counts = torch.bincount(flat, minlength=num_classes**2).reshape(num_classes, num_classes)
    return Confusion(counts.numpy())
