"""Joint Optimization: train and correct the labels in turn (Tanaka et al., CVPR 2018, "Joint Optimization Framework
for Learning with Noisy Labels").

Step 1 trains at a constant, high learning rate and replaces the labels by the network's averaged predictions; step 2
trains a fresh network on the labels that came out. Prior knowledge: the distribution p of the true classes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from mlnt.baselines.loss_step import LossStep, entropy
from mlnt.training.state import Batch, EpochContext, TrainState


@dataclass
class SoftLabelStep(LossStep):
    """Step 2: L_c, cross entropy with soft labels.

    Attributes:
        soft_labels: s [N, C], by position in D, on the images' device.
    """

    soft_labels: Tensor

    def loss(self, state: TrainState, batch: Batch) -> tuple[Tensor, Tensor]:
        logits = state.student(batch.images)
        return soft_label_loss(logits, self._labels_of(batch)), logits

    def _labels_of(self, batch: Batch) -> Tensor:
        if batch.positions is None:
            raise ValueError("soft labels need the batch's positions, got none")
        return self.soft_labels[batch.positions]


@dataclass
class LabelCorrectionStep(SoftLabelStep):
    """Step 1: L = L_c + α L_p + β L_e, and labels that follow the predictions.

    From epoch `first_update` on, the soft labels are the mean of what the network predicted for each sample in the
    last `average_epochs` epochs, in the training passes themselves (train mode, augmented). A sample that an epoch
    left out, in an incomplete last batch, keeps its prediction of the epoch before; before the first one, its label.

    Attributes:
        prior_weight: α, of the prior term L_p.
        entropy_weight: β, of the entropy term L_e.
        prior: p [C], on the same device.
        first_update: epochs with the given labels.
        average_epochs: how many epochs' predictions are averaged.
    """

    prior_weight: float
    entropy_weight: float
    prior: Tensor
    first_update: int
    average_epochs: int
    _latest: Tensor = field(init=False)
    _predictions: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self._latest = self.soft_labels.clone()
        self._predictions = torch.zeros(self.average_epochs, *self.soft_labels.shape, device=self.soft_labels.device)

    def corrected_labels(self, epochs: int) -> Tensor:
        """The labels [N, C] that follow from the first `epochs` epochs, which must be those that have been run.

        They are what the next epoch trains on; after the last epoch, what step 2 trains on.
        """
        return self.soft_labels if epochs < self.first_update else self._predictions[:epochs].mean(dim=0)

    def begin_epoch(self, epoch: EpochContext) -> None:
        """Correct the labels."""
        self.soft_labels.copy_(self.corrected_labels(epoch.number))

    def end_epoch(self, epoch: EpochContext) -> None:
        """Keep this epoch's predictions in the place of the oldest."""
        self._predictions[epoch.number % self.average_epochs] = self._latest

    def tensors(self) -> dict[str, Tensor]:
        return {"soft_labels": self.soft_labels, "latest": self._latest, "predictions": self._predictions}

    def loss(self, state: TrainState, batch: Batch) -> tuple[Tensor, Tensor]:
        logits = state.student(batch.images)
        loss = soft_label_loss(logits, self._labels_of(batch))
        loss = loss + self.prior_weight * prior_loss(logits, self.prior) + self.entropy_weight * entropy(logits)
        self._latest[batch.positions] = logits.detach().softmax(dim=1)
        return loss, logits


def soft_label_loss(logits_BC: Tensor, soft_labels_BC: Tensor) -> Tensor:
    """L_c = −1/k Σᵢ Σ_c sᵢ[c] log f(xᵢ)[c], in nats; with one-hot s it is cross entropy."""
    return F.cross_entropy(logits_BC, soft_labels_BC)


def prior_loss(logits_BC: Tensor, prior_C: Tensor) -> Tensor:
    """L_p = −Σ_c p[c] log f̄[c], f̄ the mean of f(x) over the batch: keeps the network from one class for all."""
    mean_C = logits_BC.softmax(dim=1).mean(dim=0)
    # The smallest normal number instead of 0, whose logarithm has no gradient.
    return -(prior_C * mean_C.clamp_min(torch.finfo(mean_C.dtype).tiny).log()).sum()
