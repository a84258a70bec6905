"""One training step: Algorithm 1 of the paper, and cross entropy as its special case."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from mlnt.method import fast_weights, losses, mentor, neighbors, teacher
from mlnt.method.fast_weights import FastWeights, Order
from mlnt.training.distributed import ALONE, Ranks
from mlnt.training.foreach import add_scaled_, sgd_
from mlnt.training.passes import Network
from mlnt.training.state import Batch, Metrics, Rates, StepFunction, TrainState, correct

Update = Literal["sequential", "joint"]


@dataclass
class MLNTStep(StepFunction):
    """Algorithm 1, lines 5-14, with the mentor of iterations 2 and 3.

    Reductions, to the bit on one thread: M = 0 and η = 0 are both cross entropy with an EMA.

    Attributes:
        num_synthetic: M.
        replace_fraction: ρ.
        num_neighbors: K.
        inner_lr: α.
        momentum, weight_decay: of the classification update (9); the meta update of `sequential` has neither.
        fast_weights: what the inner update (2) moves: `all` weights, as in the paper, or the `classifier` alone, which
            must be one linear layer.
        order: `first` takes ∇J at θ′ₘ (the paper's approximation), `second` differentiates through (2).
        update: `sequential` is the paper's, `joint` one SGD step on both gradients at the same θ (released code).
        kl_reduction: see `losses.consistency_loss`.
        teacher_bn: `own`: the teacher's BatchNorm statistics come from its own forward passes;
            `ema`: they follow the student's by (3).
        mentor: θ* in eval mode, for the target (12); None in iteration 1.
        ranks: the processes that make this training together, each with a part of the M synthetic mini-batches where
            all weights are fast; with the `classifier` alone there is nothing to divide, and each does everything.
    """

    num_synthetic: int
    replace_fraction: float
    num_neighbors: int
    inner_lr: float
    momentum: float
    weight_decay: float
    fast_weights: FastWeights = "all"
    order: Order = "first"
    update: Update = "sequential"
    kl_reduction: losses.KLReduction = "batchmean"
    teacher_bn: teacher.TeacherBatchNorm = "own"
    mentor: Network | None = None
    ranks: Ranks = ALONE
    needs_features: bool = field(init=False)

    def __post_init__(self) -> None:
        self.needs_features = self.num_synthetic > 0

    def draw(self, batch_size: int, generator: torch.Generator) -> dict[str, Tensor]:
        """The random part of line 6 for all m, `neighbors.Draws` by name, from a CPU generator; {} for M = 0."""
        if self.num_synthetic == 0:
            return {}
        num_replaced = round(self.replace_fraction * batch_size)
        return neighbors.draw(self.num_synthetic, batch_size, self.num_neighbors, num_replaced, generator)._asdict()

    def __call__(self, state: TrainState, batch: Batch, rates: Rates) -> Metrics:
        """One step; mutates `state`, draws nothing itself.

        Reads no value back from the device, and no shape depends on one: it can be recorded and replayed.

        Returns:
            L_c over the kept samples and L_meta, in nats, the latter only where there was a meta update; and how many
            samples have the given label as prediction of the student and of the teacher, the latter only where it made
            a forward pass: before the update, augmented, in train mode.

        Raises:
            ValueError: fewer than K + 1 samples, no features where neighbours are needed, or no classifier whose fast
                weights could be taken.
        """
        meta = self.num_synthetic > 0 and rates.meta
        student = state.student
        teacher_logits = self._teacher_logits(state, batch, needed=meta)
        target = self._target(teacher_logits, batch, rates) if meta and teacher_logits is not None else None

        joint = self.update == "joint" and target is not None
        meta_loss: Tensor | None = None
        meta_gradient: list[Tensor] | None = None
        if target is None:
            logits = student(batch.images)
        elif joint:  # both gradients at the same θ, so that they share its forward pass
            logits, meta_loss, meta_gradient = self._at_theta(student, batch, target)
        else:
            with student.frozen_statistics():
                _, meta_loss, meta_gradient = self._at_theta(student, batch, target)
            meta_gradient = meta_gradient or _gradient_of(meta_loss, student)
            # line 11: θ ← θ − η ∇L_meta(θ)                                                       (8)
            add_scaled_(student.parameters, meta_gradient, -rates.meta_lr)
            meta_gradient = None  # its memory is wanted
            logits = student(batch.images)  # line 12, at the new θ

        class_loss = self.class_loss(logits, batch)
        if batch.any_kept or joint:
            objective = class_loss
            if joint and meta_loss is not None and meta_gradient is None:
                objective = class_loss + rates.meta_lr / rates.lr * meta_loss  # and its backward pass too
            gradient = _gradient_of(objective, student)
            self.ranks.same_(gradient)
            if joint and meta_gradient is not None:
                add_scaled_(gradient, meta_gradient, rates.meta_lr / rates.lr)
            # line 13: θ ← θ − β ∇L_c(X, Y, θ)                                                    (9)
            sgd_(student.parameters, gradient, state.momentum, rates.lr, self.momentum, self.weight_decay)

        # line 14: θ̃ ← γθ̃ + (1 − γ)θ                                                             (3)
        teacher.update_average_(state.teacher.parameters, student.parameters, rates.ema_decay)
        if self.teacher_bn == "ema":
            teacher.update_buffers_(state.teacher.module, student.module, rates.ema_decay)
        metrics = {"class_loss": class_loss.detach(), "student_correct": correct(logits, batch.labels)}
        if meta_loss is not None:
            metrics["meta_loss"] = meta_loss.detach()
        if teacher_logits is not None:
            metrics["teacher_correct"] = correct(teacher_logits, batch.labels)
        return metrics

    def class_loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """L_c over the kept samples, in nats: what the classification update (9) follows. Called once a step."""
        return losses.classification_loss(logits, batch.labels, batch.kept)

    @torch.no_grad()
    def _teacher_logits(self, state: TrainState, batch: Batch, needed: bool) -> Tensor | None:
        """The teacher on X, by batch statistics; with `teacher_bn: own` its running statistics move along."""
        if self.teacher_bn == "own":
            return state.teacher(batch.images)
        if not needed:
            return None
        with state.teacher.frozen_statistics():
            return state.teacher(batch.images)

    @torch.no_grad()
    def _target(self, teacher_logits: Tensor, batch: Batch, rates: Rates) -> Tensor:
        """f(X, θ̃), or s of (12) where there is a mentor."""
        probs = teacher_logits.softmax(dim=1)
        if self.mentor is None:
            return probs
        return mentor.merged_target(probs, self.mentor(batch.images).softmax(dim=1), rates.teacher_weight)

    def _at_theta(self, student: Network, batch: Batch, target: Tensor) -> tuple[Tensor, Tensor, list[Tensor] | None]:
        """Lines 5-10 at θ: the logits, L_meta, and its gradient; None for the gradient where L_meta has its graph."""
        labels_MB = self._synthetic_labels(batch)
        if self.fast_weights == "classifier":
            logits, inputs, has_bias = student.with_classifier_inputs(batch.images)
            loss = fast_weights.classifier_loss(
                logits, inputs, labels_MB, target, self.inner_lr, self.order, self.kl_reduction, has_bias
            )
            return logits, loss, None
        with fast_weights.kernels(self.order):
            logits = student(batch.images)
        loss, gradient = fast_weights.meta_gradient(
            student,
            logits,
            labels_MB,
            batch.images,
            target,
            self.inner_lr,
            self.order,
            self.kl_reduction,
            self.ranks,
        )
        return logits, loss, gradient

    def _synthetic_labels(self, batch: Batch) -> Tensor:
        """Line 6, for all m at once: Ŷ¹ … Ŷᴹ [M, B]."""
        if batch.features is None or not batch.draws:
            raise ValueError("synthetic labels need the batch's features and draws, got none")
        draws = neighbors.Draws(batch.draws["replaced_MB"], batch.draws["pick_MB"])
        neighbors_BK = neighbors.nearest_neighbors(batch.features, self.num_neighbors)
        return neighbors.synthetic_labels(batch.labels, neighbors_BK, draws)


def _gradient_of(loss: Tensor, student: Network) -> list[Tensor]:
    return list(torch.autograd.grad(loss, student.parameters, materialize_grads=True))
