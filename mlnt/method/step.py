"""One training step: Algorithm 1 of the paper, and cross entropy as its special case.

The M inner gradients of (2) share one forward pass at θ, because cross entropy is linear in the label:
gₘ = Jᵀ((p − Ŷᵐ)/k) is one vector-Jacobian product on one retained graph. That is exact; the plain
transcription in tests/reference/ is the judge. A parameter that takes no part in the forward pass has gradient 0
(`materialize_grads`).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from mlnt.method import losses, mentor, neighbors, teacher
from mlnt.training.foreach import add_scaled_, sgd_
from mlnt.training.state import Batch, Metrics, Network, Rates, StepFunction, TrainState, correct

Order = Literal["first", "second"]
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
        order: `first` takes ∇J at θ′ₘ (the paper's approximation), `second` differentiates through (2).
        update: `sequential` is the paper's, `joint` one SGD step on both gradients at the same θ (released code).
        kl_reduction: see `losses.consistency_loss`.
        teacher_bn: `own`: the teacher's BatchNorm statistics come from its own forward passes;
            `ema`: they follow the student's by (3).
        mentor: θ* in eval mode, for the target (12); None in iteration 1.
    """

    num_synthetic: int
    replace_fraction: float
    num_neighbors: int
    inner_lr: float
    momentum: float
    weight_decay: float
    order: Order = "first"
    update: Update = "sequential"
    kl_reduction: losses.KLReduction = "batchmean"
    teacher_bn: teacher.TeacherBatchNorm = "own"
    mentor: Network | None = None
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
            ValueError: fewer than K + 1 samples, or no features where neighbours are needed.
        """
        meta = self.num_synthetic > 0 and rates.meta
        student = state.student
        teacher_logits = self._teacher_logits(state, batch, needed=meta)
        target = self._target(teacher_logits, batch, rates) if meta and teacher_logits is not None else None

        meta_gradient: list[Tensor] | None = None
        meta_loss: Tensor | None = None
        if self.update == "joint":
            # Both gradients at the same θ: the inner updates share the classification forward pass.
            with self._kernels():
                logits = student(batch.images)
            if target is not None:
                meta_loss, meta_gradient = self._meta_gradient(student, logits, batch, target)
        else:
            if target is not None:
                with student.frozen_statistics(), self._kernels():
                    logits = student(batch.images)
                meta_loss, meta_gradient = self._meta_gradient(student, logits, batch, target)
                # line 11: θ ← θ − η ∇L_meta(θ)                                                   (8)
                add_scaled_(student.parameters, meta_gradient, -rates.meta_lr)
                meta_gradient = None
            logits = student(batch.images)  # line 12, at the new θ

        class_loss = losses.classification_loss(logits, batch.labels, batch.kept)
        if batch.any_kept or meta_gradient is not None:
            gradient = list(torch.autograd.grad(class_loss, student.parameters, materialize_grads=True))
            if meta_gradient is not None:
                add_scaled_(gradient, meta_gradient, rates.meta_lr / rates.lr)
            # line 13: θ ← θ − β ∇L_c(X, Y, θ)                                                    (9)
            sgd_(student.parameters, gradient, state.momentum, rates.lr, self.momentum, self.weight_decay)

        # line 14: θ̃ ← γθ̃ + (1 − γ)θ                                                             (3)
        teacher.update_average_(state.teacher.parameters, student.parameters, rates.ema_decay)
        if self.teacher_bn == "ema":
            teacher.update_buffers_(state.teacher.module, student.module, rates.ema_decay)
        metrics = {"class_loss": class_loss.detach(), "student_correct": correct(logits, batch.labels)}
        if meta_loss is not None:
            metrics["meta_loss"] = meta_loss
        if teacher_logits is not None:
            metrics["teacher_correct"] = correct(teacher_logits, batch.labels)
        return metrics

    def _kernels(self) -> AbstractContextManager[None]:
        """What the forward passes of the meta update run under: the fused kernels of attention have no second
        derivative, its plain form has."""
        return nullcontext() if self.order == "first" else sdpa_kernel(SDPBackend.MATH)

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

    def _meta_gradient(
        self, student: Network, logits: Tensor, batch: Batch, target: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        """L_meta and its gradient, Algorithm 1, lines 5-10. `logits` is the student at θ, with its graph."""
        if batch.features is None or not batch.draws:
            raise ValueError("synthetic labels need the batch's features and draws, got none")
        draws = neighbors.Draws(batch.draws["replaced_MB"], batch.draws["pick_MB"])
        neighbors_BK = neighbors.nearest_neighbors(batch.features, self.num_neighbors)
        labels_MB = neighbors.synthetic_labels(batch.labels, neighbors_BK, draws)  # line 6, for all m at once
        gradient_at = self._second_order if self.order == "second" else self._first_order
        total = [torch.zeros_like(parameter) for parameter in student.parameters]
        loss = torch.zeros((), device=logits.device, dtype=logits.dtype)
        for labels in labels_MB:
            loss_m, gradient_m = gradient_at(student, logits, labels, batch.images, target)
            loss += loss_m
            torch._foreach_add_(total, gradient_m)
        torch._foreach_div_(total, self.num_synthetic)  # line 10: the mean over m                (6)
        return loss / self.num_synthetic, total

    def _first_order(
        self, student: Network, logits: Tensor, labels: Tensor, images: Tensor, target: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        """∇J at θ′ₘ, taken for ∇J at θ: the second derivatives of (7) are left out."""
        inner_gradient = losses.classification_gradient(logits.detach().softmax(dim=1), labels)
        inner = _vector_jacobian_product(logits, student.parameters, inner_gradient, retain_graph=True)
        with torch.no_grad():  # line 7: θ′ₘ = θ − α ∇L_c(X, Ŷᵐ, θ)                               (2)
            fast = torch._foreach_add(student.parameters, list(inner), alpha=-self.inner_lr)
        for parameter in fast:
            parameter.requires_grad_()
        with student.frozen_statistics():
            fast_logits = student.at(fast, images)
        detached = fast_logits.detach()
        loss = losses.consistency_loss(target, detached, self.kl_reduction)  # line 8            (4, 5)
        gradient = losses.consistency_gradient(target, detached, self.kl_reduction)
        return loss, list(_vector_jacobian_product(fast_logits, fast, gradient))

    def _second_order(
        self, student: Network, logits: Tensor, labels: Tensor, images: Tensor, target: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        """∇θ J(θ − α ∇L_c(X, Ŷᵐ, θ)) = (I − αH) ∇J(θ′ₘ), H the Hessian of the inner loss: in full."""
        inner_loss = losses.classification_loss(logits, labels)
        inner = torch.autograd.grad(inner_loss, student.parameters, create_graph=True, materialize_grads=True)
        fast = torch._foreach_add(student.parameters, list(inner), alpha=-self.inner_lr)
        with student.frozen_statistics(), self._kernels():
            fast_logits = student.at(fast, images)
        loss = losses.consistency_loss(target, fast_logits, self.kl_reduction)
        gradient = torch.autograd.grad(loss, student.parameters, retain_graph=True, materialize_grads=True)
        return loss.detach(), list(gradient)


def _vector_jacobian_product(
    outputs: Tensor, inputs: Sequence[Tensor], vector: Tensor, retain_graph: bool = False
) -> tuple[Tensor, ...]:
    """vectorᵀ ∂outputs/∂inputs, to the bit what `torch.autograd.grad` gives for `grad_outputs`; but with those it
    imports sympy, for a check of their shape: more than a second of each process."""
    scalar = (outputs * vector).sum()
    return torch.autograd.grad(scalar, inputs, retain_graph=retain_graph, materialize_grads=True)
