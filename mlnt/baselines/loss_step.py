"""A step that follows the gradient of one loss, what the baselines are made of; and what losses of several share."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mlnt.method import teacher
from mlnt.training.foreach import sgd_
from mlnt.training.state import Batch, Metrics, Rates, StepFunction, TrainState, correct


@dataclass
class LossStep(StepFunction):
    """θ ← θ − β ∇L(θ) by SGD with momentum and weight decay; then θ̃ ← γθ̃ + (1 − γ)θ (3), the average that
    stands beside every system. A baseline is its loss L.

    Attributes:
        momentum, weight_decay: of SGD.
        teacher_bn: as in `MLNTStep`.
    """

    momentum: float
    weight_decay: float
    teacher_bn: teacher.TeacherBatchNorm

    @abstractmethod
    def loss(self, state: TrainState, batch: Batch) -> tuple[Tensor, Tensor]:
        """L, a scalar in nats with its graph, and the student's logits [B, C]."""

    def teacher_logits(self, state: TrainState, batch: Batch) -> Tensor:
        """The teacher's logits [B, C], from a forward pass that its BatchNorm statistics may come from."""
        return state.teacher(batch.images)

    def __call__(self, state: TrainState, batch: Batch, rates: Rates) -> Metrics:
        """One step; mutates `state`, draws nothing.

        Returns:
            L as `class_loss`, and the counts of `MLNTStep`; a subclass may add others.
        """
        own = self.teacher_bn == "own"
        metrics: Metrics = {}
        if own:
            with torch.no_grad():
                metrics["teacher_correct"] = correct(self.teacher_logits(state, batch), batch.labels)
        loss, logits = self.loss(state, batch)
        gradient = list(torch.autograd.grad(loss, state.student.parameters, materialize_grads=True))
        sgd_(state.student.parameters, gradient, state.momentum, rates.lr, self.momentum, self.weight_decay)
        teacher.update_average_(state.teacher.parameters, state.student.parameters, rates.ema_decay)
        if not own:
            teacher.update_buffers_(state.teacher.module, state.student.module, rates.ema_decay)
        return metrics | {"class_loss": loss.detach(), "student_correct": correct(logits, batch.labels)}


def entropy(logits_BC: Tensor) -> Tensor:
    """H = −1/k Σᵢ Σ_c f(xᵢ)[c] log f(xᵢ)[c], in nats; low where each prediction is of one class."""
    log_probs_BC = F.log_softmax(logits_BC, dim=1)
    return -(log_probs_BC.exp() * log_probs_BC).sum(dim=1).mean()
