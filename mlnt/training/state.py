"""What a training step is called with, what it changes and what it returns: the interface of all step functions."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from mlnt.training.foreach import Scalar
from mlnt.training.passes import Network

Metrics = dict[str, Tensor]
"""Scalars of one step by their names, left on the device."""


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


@dataclass(frozen=True)
class Batch:
    """One mini-batch (X, Y).

    Attributes:
        images: X, augmented, float [B, in_chans, H, W]; embeddings [B, D] where the network is a head on those.
        labels: Y, given labels [B].
        positions: of the samples in D [B], for steps that remember something of each sample.
        kept: boolean [B], the samples in D′ (10); None where nothing is filtered.
        any_kept: whether `kept` has a True, known on the host so that no step waits for the device.
        features: pre-logit features [B, D] of the pre-trained network; None for a step that needs none.
        draws: what is random in this step, by name, from `StepFunction.draw`.
        other_views: the same samples augmented by other draws, each like `images`; as many as `StepFunction.views`
            asks for, less one.
    """

    images: Tensor
    labels: Tensor
    positions: Tensor | None = None
    kept: Tensor | None = None
    any_kept: bool = True
    features: Tensor | None = None
    draws: Mapping[str, Tensor] = field(default_factory=dict)
    other_views: tuple[Tensor, ...] = ()

    @property
    def views(self) -> tuple[Tensor, ...]:
        """All augmented versions of X; the first is `images`."""
        return (self.images, *self.other_views)


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

    def compile(self) -> None:
        """Compile student and teacher with `torch.compile`; the fast passes go through the same compiled code.

        In the whole process, compiled backward passes no longer reuse the memory of what their forward pass has kept
        ("donated buffers"): the M inner gradients are M backward passes of one forward pass.
        """
        import torch._functorch.config

        torch._functorch.config.donated_buffer = False
        for network in (self.student, self.teacher):
            network.compile()

    def tensors(self) -> list[Tensor]:
        """Everything that a step changes."""
        modules = (self.student.module, self.teacher.module)
        return [t for module in modules for t in (*module.parameters(), *module.buffers())] + self.momentum


@dataclass(frozen=True)
class EpochContext:
    """What a step function is told between two epochs.

    Attributes:
        number: of the epoch that begins or has ended, from 0.
        state: the networks as they are now.
        labels: given labels of the training set D [N], on the CPU.
        predict: logits [N, C] of a network, or of any module that maps images to logits, for the samples of D in their
            order: eval mode, un-augmented images, on the CPU, without gradient. It reads all images of D, and puts the
            module's mode back. Call it before `begin_epoch` or `end_epoch` returns, not later.
    """

    number: int
    state: TrainState
    labels: Tensor
    predict: Callable[[Network | nn.Module], Tensor]


class StepFunction(ABC):
    """What the training loop calls. The method and every baseline are step functions; the defaults are those of a step
    that looks at one view of its batch, draws nothing and remembers nothing.

    Attributes:
        needs_features: whether its batches carry pre-logit features.
        views: how many augmented versions of its images it wants, at least 1.
        metrics: the names of what it returns, in the order of the history's columns. One that ends in `_loss` must be
            finite, or training ends; `class_loss` is there in every step. One that ends in `_correct` counts samples of
            the batch, and becomes the column `…_train_accuracy`. Every other one is averaged between two evaluations.
        phase: what its Python code decides by, beside the rates; only `mini_batches` may change it. A recorded step
            (CUDA graph) is recorded once for each.
    """

    needs_features: bool = False
    views: int = 1
    metrics: tuple[str, ...] = ("class_loss", "meta_loss", "student_correct", "teacher_correct")
    phase: Hashable = None

    def mini_batches(self, epoch: int, num_samples: int, batch_size: int, generator: torch.Generator) -> Tensor:
        """Which samples of D the steps of an epoch look at, by position, as [steps, samples of a step]; drawn from a
        CPU generator of this epoch.

        There are `num_samples` // `batch_size` steps. By default each sample comes up once, in full batches. Called
        after `begin_epoch`, and once more where an epoch is gone on with: it has to give the same again.
        """
        del epoch
        steps = num_samples // batch_size
        return torch.randperm(num_samples, generator=generator)[: steps * batch_size].view(steps, batch_size)

    def draw(self, batch_size: int, generator: torch.Generator) -> dict[str, Tensor]:
        """What is random in a step, by name, drawn beforehand from a CPU generator; {} for nothing.

        Every step draws the same names in the same shapes.
        """
        del batch_size, generator
        return {}

    def begin_epoch(self, epoch: EpochContext) -> None:
        """Called once before the first step of each epoch.

        Whatever the epoch's steps depend on has to be in `tensors`: training that was stopped in the middle of an
        epoch goes on from them, without another call.
        """
        del epoch

    def end_epoch(self, epoch: EpochContext) -> None:
        """Called once after the last step of each epoch, before the networks are evaluated."""
        del epoch

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that the step itself remembers, by name: part of a checkpoint.

        The same tensors from the start, changed in place: a checkpoint is read into them, and a recorded step (CUDA
        graph) reads and writes at their addresses. A recorded step runs its Python code when it is recorded and not
        again: what changes from step to step has to be in tensors there.
        """
        return {}

    @abstractmethod
    def __call__(self, state: TrainState, batch: Batch, rates: Rates) -> Metrics:
        """One step: mutates `state`, returns metrics, those of `self.metrics` that this step has."""


def correct(logits: Tensor, labels: Tensor) -> Tensor:
    """How many samples have their label as arg-max: an integer on the device."""
    return (logits.detach().argmax(dim=1) == labels).sum()
