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
from mlnt.training.state import Batch, TrainState

LEAST = 1e-4
"""Where 1 − ⟨f(x), t⟩ ends, so that its logarithm stays finite for a sample of which the network has long been sure."""


@dataclass
class ELRStep(LossStep):
    """L = L_c + λ/k Σᵢ log(1 − ⟨f(xᵢ), tᵢ⟩), where the target t ← βt + (1 − β) f(x) averages what the network has said
    of the sample: it stays with that where a wrong label pulls it away.

    Of samples outside D′, where something filters, L_c leaves the label out; the regularizer does not look at labels.

    Attributes:
        regularization: λ.
        target_decay: β.
        targets: t [N, C], by position in D, on the images' device; 0 at first.
    """

    regularization: float
    target_decay: float
    targets: Tensor

    def tensors(self) -> dict[str, Tensor]:
        return {"targets": self.targets}

    def loss(self, state: TrainState, batch: Batch) -> tuple[Tensor, Tensor]:
        logits = state.student(batch.images)
        regularizer = early_learning_regularizer(logits, self.targets_of(batch, logits))
        return classification_loss(logits, batch.labels, batch.kept) + self.regularization * regularizer, logits

    def targets_of(self, batch: Batch, logits: Tensor) -> Tensor:
        """t [B, C] of the batch's samples, moved by these predictions; mutates `targets`."""
        if batch.positions is None:
            raise ValueError("ELR needs the batch's positions, got none")
        probs = logits.detach().softmax(dim=1)
        targets = torch.lerp(probs, self.targets[batch.positions], self.target_decay)
        self.targets[batch.positions] = targets
        return targets


def early_learning_regularizer(logits_BC: Tensor, targets_BC: Tensor) -> Tensor:
    """1/k Σᵢ log(1 − ⟨f(xᵢ), tᵢ⟩); its gradient pulls f(x) towards t, the stronger the more the two agree already.

    Args:
        targets_BC: a constant.
    """
    agreement_B = (logits_BC.softmax(dim=1) * targets_BC).sum(dim=1)
    return (1 - agreement_B).clamp_min(LEAST).log().mean()
