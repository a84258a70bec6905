"""What a training step is called with, what it changes and what it returns: the interface of all step functions."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call

from mlnt.method import neighbors
from mlnt.training.foreach import Scalar


@dataclass(frozen=True)
class Rates:
    """The values of one step: β, η, γ and λ; numbers, or scalar tensors where a recorded step reads them anew."""

    lr: Scalar
    meta_lr: Scalar
    ema_decay: Scalar
    teacher_weight: Scalar

    @property
    def meta(self) -> bool:
        """Whether there is a meta update: η > 0. A tensor counts as positive; looking would wait for the device."""
        return isinstance(self.meta_lr, Tensor) or self.meta_lr > 0


class RatesByStep(Protocol):
    """What the loop takes as a schedule; `mlnt.method.schedules.Schedule` is the paper's."""

    def at(self, step: int) -> Rates:
        """The rates of step `step` of the whole training, counted from 0."""
        ...


class Network:
    """A module together with the lists that a step needs of it again and again.

    Attributes:
        module: the network.
        parameters: its trainable parameters, in the module's order.
        names: their names.
        amp_dtype: autocast to this type in the forward pass; None for full precision.
    """

    def __init__(self, module: nn.Module, amp_dtype: torch.dtype | None = None) -> None:
        named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
        self.module = module
        self.names = [name for name, _ in named]
        self.parameters: list[Tensor] = [parameter for _, parameter in named]
        self.amp_dtype = amp_dtype
        self._norms: list[Any] = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]

    def __call__(self, images: Tensor) -> Tensor:
        """Logits [B, C] in float32 or wider, with the module's own parameters."""
        with self.autocast(images):
            logits: Tensor = self.module(images)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def at(self, parameters: Sequence[Tensor], images: Tensor) -> Tensor:
        """Logits with `parameters` in the place of the module's own, which stay as they are."""
        with self.autocast(images):
            logits: Tensor = functional_call(self.module, dict(zip(self.names, parameters, strict=True)), (images,))
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def autocast(self, images: Tensor) -> torch.autocast:
        """The context that forward passes run in."""
        return torch.autocast(images.device.type, self.amp_dtype, enabled=self.amp_dtype is not None)

    @contextmanager
    def frozen_statistics(self) -> Iterator[None]:
        """BatchNorm in train mode normalises by the batch, as always, but its running statistics stay put."""
        tracked = [norm.track_running_stats for norm in self._norms]
        for norm in self._norms:
            norm.track_running_stats = False
        try:
            yield
        finally:
            for norm, was in zip(self._norms, tracked, strict=True):
                norm.track_running_stats = was


@dataclass(frozen=True)
class Batch:
    """One mini-batch (X, Y).

    Attributes:
        images: X, augmented once, float [B, in_chans, H, W].
        labels: Y, given labels [B].
        positions: of the samples in D [B], for steps that remember something of each sample.
        kept: boolean [B], the samples in D′ (10); None where nothing is filtered.
        any_kept: whether `kept` has a True, known on the host so that no step waits for the device.
        features: pre-logit features [B, D] of the pre-trained network; None when no neighbours are needed.
        draws: what is random in the synthetic labels of this step, from `MLNTStep.draw`; None likewise.
    """

    images: Tensor
    labels: Tensor
    positions: Tensor | None = None
    kept: Tensor | None = None
    any_kept: bool = True
    features: Tensor | None = None
    draws: neighbors.Draws | None = None


class TrainState:
    """What a step changes: student θ, teacher θ̃, SGD's momentum buffers.

    At first θ̃ = θ (Algorithm 1, line 2), a copy that needs no gradient, and the buffers are 0.
    """

    def __init__(self, student: nn.Module, amp_dtype: torch.dtype | None = None) -> None:
        self.student = Network(student, amp_dtype)
        self.teacher = Network(copy.deepcopy(student).requires_grad_(False), amp_dtype)
        named = dict(self.teacher.module.named_parameters())
        self.teacher.parameters = [named[name] for name in self.student.names]
        self.momentum = [torch.zeros_like(p) for p in self.student.parameters]
        student.train()
        self.teacher.module.train()

    def tensors(self) -> list[Tensor]:
        """Everything that a step changes."""
        modules = (self.student.module, self.teacher.module)
        return [t for module in modules for t in (*module.parameters(), *module.buffers())] + self.momentum


@dataclass(frozen=True)
class StepMetrics:
    """Scalars of one step, left on the device.

    Attributes:
        class_loss: L_c over the kept samples, or a baseline's whole loss, in nats, before the update.
        meta_loss: L_meta in nats; None when there was no meta update.
        student_correct: samples whose given label the student predicts, before the update, augmented, train mode.
        teacher_correct: the same for the teacher; None when it made no forward pass.
    """

    class_loss: Tensor
    meta_loss: Tensor | None
    student_correct: Tensor
    teacher_correct: Tensor | None

    def clone(self) -> StepMetrics:
        values = (self.class_loss, self.meta_loss, self.student_correct, self.teacher_correct)
        return StepMetrics(*(None if value is None else value.clone() for value in values))  # type: ignore[arg-type]


def metrics_table(metrics: Sequence[StepMetrics], device: torch.device) -> Tensor:
    """A row a step, a column a metric, in the order of StepMetrics, float64 [S, 4]; NaN stands for None."""
    table = torch.full((len(metrics), len(fields(StepMetrics))), math.nan, dtype=torch.float64, device=device)
    for column, metric in enumerate(fields(StepMetrics)):
        known = [(row, value) for row, m in enumerate(metrics) if (value := getattr(m, metric.name)) is not None]
        if known:
            rows, values = zip(*known, strict=True)
            table[list(rows), column] = torch.stack(values).double()
    return table


class StepFunction(ABC):
    """What the training loop calls. The method and every baseline are one; the defaults here are those of a step
    that draws nothing and remembers nothing."""

    needs_features: bool = False

    def draw(self, batch_size: int, generator: torch.Generator) -> neighbors.Draws | None:
        """What is random in a step, drawn beforehand; None for nothing."""
        del batch_size, generator
        return None

    def begin_epoch(self, epoch: int) -> None:
        """Called before the first step of each epoch, the first being 0, and again where an epoch is gone on with:
        it may depend on `tensors`, and must not change them."""
        del epoch

    def end_epoch(self, epoch: int) -> None:
        """Called after the last step of each epoch."""
        del epoch

    def tensors(self) -> dict[str, Tensor]:
        """What the step itself remembers from step to step, by name: part of a checkpoint."""
        return {}

    @abstractmethod
    def __call__(self, state: TrainState, batch: Batch, rates: Rates) -> StepMetrics:
        """One step: mutates `state`, returns metrics."""


def correct(logits: Tensor, labels: Tensor) -> Tensor:
    return (logits.detach().argmax(dim=1) == labels).sum()
