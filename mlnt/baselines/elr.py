"""ELR: early-learning regularization (Liu et al., NeurIPS 2020, "Early-Learning Regularization Prevents Memorization of
Noisy Labels").

Prior knowledge: none. The paper's recipe on CIFAR-10: λ 3, β 0.7; with asymmetric noise λ 1, β 0.9; on CIFAR-100 λ 7,
β 0.9.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mlnt.baselines.loss_step import LossStep
from mlnt.method.losses import classification_loss
from mlnt.method.step import MLNTStep
from mlnt.training.state import Batch, TrainState

LEAST = 1e-4
"""Where 1 − ⟨f(x), t⟩ ends, so that its logarithm stays finite for a sample of which the network has long been sure."""


@dataclass
class EarlyLearning:
    """L = L_c + λ/k Σᵢ log(1 − ⟨f(xᵢ), tᵢ⟩), where the target t ← βt + (1 − β) f(x) averages what the network has said
    of the sample: it stays with that where a wrong label pulls it away.

    Where something filters, L_c leaves out the samples outside D′; the regularizer, which reads no label, does not.

    Attributes:
        regularization: λ.
        target_decay: β.
        targets: t [N, C], by position in D, on the images' device; 0 at first.
    """

    regularization: float
    target_decay: float
    targets: Tensor

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """L, after the batch's targets have moved by these predictions; mutates `targets`."""
        if batch.positions is None:
            raise ValueError("ELR needs the batch's positions, got none")
        probs = logits.detach().softmax(dim=1)
        targets = torch.lerp(probs, self.targets[batch.positions], self.target_decay)
        self.targets[batch.positions] = targets
        class_loss = classification_loss(logits, batch.labels, batch.kept)
        return class_loss + self.regularization * early_learning_regularizer(logits, targets)


@dataclass
class ELRStep(LossStep):
    """ELR: SGD on that loss."""

    early_learning: EarlyLearning

    def tensors(self) -> dict[str, Tensor]:
        return {"targets": self.early_learning.targets}

    def loss(self, state: TrainState, batch: Batch) -> tuple[Tensor, Tensor]:
        logits = state.student(batch.images)
        return self.early_learning.loss(logits, batch), logits


@dataclass(kw_only=True)
class ELRMetaStep(MLNTStep):
    """MLNT with that loss in the place of L_c in its classification update (9); its meta update (8) stays."""

    early_learning: EarlyLearning

    def tensors(self) -> dict[str, Tensor]:
        return {"targets": self.early_learning.targets}

    def class_loss(self, logits: Tensor, batch: Batch) -> Tensor:
        return self.early_learning.loss(logits, batch)


def early_learning_regularizer(logits_BC: Tensor, targets_BC: Tensor) -> Tensor:
    """1/k Σᵢ log(1 − ⟨f(xᵢ), tᵢ⟩); its gradient pulls f(x) towards t, the stronger the more the two agree already.

    Args:
        targets_BC: a constant.
    """
    agreement_B = (logits_BC.softmax(dim=1) * targets_BC).sum(dim=1)
    return (1 - agreement_B).clamp_min(LEAST).log().mean()
