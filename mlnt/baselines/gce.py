"""GCE: the generalized cross entropy, between cross entropy and the mean absolute error (Zhang & Sabuncu, NeurIPS 2018,
"Generalized Cross Entropy Loss for Training Deep Neural Networks with Noisy Labels").

Prior knowledge: none. The paper's recipe on CIFAR-10: q 0.7; truncated with k 0.5, pruned from epoch 40 of 120 on,
every 10 epochs; on CIFAR-100 from 80 of 150.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mlnt.baselines.loss_step import LossStep
from mlnt.method.mentor import given_label_probability
from mlnt.training.state import Batch, EpochContext, TrainState


@dataclass
class GCEStep(LossStep):
    """The mean of L_q over the mini-batch.

    Attributes:
        q: in (0, 1]; towards 0 it is cross entropy, 1 is the mean absolute error, half of it.
    """

    q: float

    def loss(self, state: TrainState, batch: Batch) -> tuple[Tensor, Tensor]:
        logits = state.student(batch.images)
        return generalized_cross_entropy(logits, batch.labels, self.q).mean(), logits


@dataclass
class TruncatedGCEStep(GCEStep):
    """The truncated loss: L_q where f(x)[y] > k, and the constant (1 − kᵠ)/q elsewhere, so that samples whose label
    the network does not believe leave the gradient.

    Which those are is decided before some epochs, for all of D, by the student in eval mode on un-augmented images, as
    the paper alternates between pruning and training.

    Attributes:
        threshold: k.
        first_pruning: epochs with all samples.
        pruning_every: epochs from one pruning to the next.
        kept: boolean [N], by position in D, on the images' device; all True at first.
    """

    threshold: float
    first_pruning: int
    pruning_every: int
    kept: Tensor

    def begin_epoch(self, epoch: EpochContext) -> None:
        """Prune."""
        since = epoch.number - self.first_pruning
        if since >= 0 and since % self.pruning_every == 0:
            probs = epoch.predict(epoch.state.student).softmax(dim=1)
            self.kept.copy_(given_label_probability(probs, epoch.labels) > self.threshold)

    def tensors(self) -> dict[str, Tensor]:
        return {"kept": self.kept}

    def loss(self, state: TrainState, batch: Batch) -> tuple[Tensor, Tensor]:
        if batch.positions is None:
            raise ValueError("the truncated loss needs the batch's positions, got none")
        logits = state.student(batch.images)
        loss_B = generalized_cross_entropy(logits, batch.labels, self.q)
        pruned = (1 - self.threshold**self.q) / self.q
        return loss_B.masked_fill(~self.kept[batch.positions], pruned).mean(), logits


def generalized_cross_entropy(logits_BC: Tensor, labels_B: Tensor, q: float) -> Tensor:
    """L_q = (1 − f(x)[y]ᵠ)/q of each sample, [B]."""
    log_probs_B = -F.cross_entropy(logits_BC, labels_B, reduction="none")
    # By the logarithm: the power of a probability that has underflown to 0 has no gradient.
    return -torch.expm1(q * log_probs_B) / q
