"""Training steps to compare with, each written anew: the released code's, a plain loop, and the loop by a library.

All do one `joint` update as the released code does, so that they differ in how, not in what they compute.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from mlnt.method import losses, neighbors, teacher
from mlnt.networks import pre_logit_features
from mlnt.training.foreach import sgd_
from mlnt.training.state import Batch, Rates, TrainState


@dataclass(frozen=True)
class Setting:
    """What a step is timed on."""

    network: str
    pixels: int
    batch_size: int
    num_synthetic: int
    classes: int = 10


@dataclass
class Settings:
    """M, ρ, K, α and SGD's two."""

    num_synthetic: int
    replace_fraction: float = 0.5
    num_neighbors: int = 10
    inner_lr: float = 0.2
    momentum: float = 0.9
    weight_decay: float = 1e-4


class ReleasedStep:
    """The step of the released code.

    The features of the augmented batch come from a forward pass of the pre-trained network in each step. For each m and
    each relabelled sample a Python loop measures the distances to all others. The M inner losses share the
    student's forward pass; each m has a backward pass through its own fast weights, whose gradients add up in `.grad`.

    `order`: "first" as its authors last left it. "second" as its head is: the inner gradient keeps its graph, because
    the result of `detach` is dropped.
    """

    def __init__(self, settings: Settings, order: str) -> None:
        self.settings, self.order = settings, order

    def __call__(self, state: TrainState, batch: Batch, rates: Rates) -> None:
        s, net = self.settings, state.student
        with torch.no_grad():
            features = pre_logit_features(state.teacher.module, batch.images)
            target = state.teacher.module(batch.images).softmax(1)
        logits = net.module(batch.images)
        class_loss = F.cross_entropy(logits, batch.labels)
        second = self.order == "second"
        net.module.zero_grad()
        for _ in range(s.num_synthetic):
            inner_loss = F.cross_entropy(logits, self._synthetic(batch.labels, features))
            inner = torch.autograd.grad(inner_loss, net.parameters, create_graph=second, retain_graph=True)
            fast = {name: p - s.inner_lr * g for name, p, g in zip(net.names, net.parameters, inner, strict=True)}
            fast_logits = functional_call(net.module, fast, (batch.images,))
            loss = F.kl_div(fast_logits.log_softmax(1), target, reduction="batchmean")
            (loss * rates.meta_lr / rates.lr / s.num_synthetic).backward(retain_graph=second)
        class_loss.backward()
        gradients = [p.grad for p in net.parameters if p.grad is not None]
        sgd_(net.parameters, gradients, state.momentum, rates.lr, s.momentum, s.weight_decay)
        teacher.update_average_(state.teacher.parameters, net.parameters, rates.ema_decay)

    def _synthetic(self, labels: Tensor, features: Tensor) -> Tensor:
        new = labels.clone()
        order = torch.randperm(len(labels))
        for n in range(round(self.settings.replace_fraction * len(labels))):
            index = order[n]
            distance = ((features[index].expand_as(features) - features) ** 2).sum(1)
            nearest = distance.topk(self.settings.num_neighbors + 1, largest=False).indices
            new[index] = labels[nearest[random.randint(1, self.settings.num_neighbors)]]  # noqa: S311
        return new


class PlainStep:
    """A first-order loop without any sharing: every m has two forward and two backward passes of its own.

    `inner_update` makes the fast weights; neighbours and synthetic labels are the package's.
    """

    def __init__(
        self, settings: Settings, inner_update: Callable[[list[Tensor], list[Tensor], float], list[Tensor]]
    ) -> None:
        self.settings, self.inner_update = settings, inner_update

    def __call__(self, state: TrainState, batch: Batch, rates: Rates) -> None:
        s, net = self.settings, state.student
        assert batch.features is not None
        with torch.no_grad():
            target = state.teacher.module(batch.images).softmax(1)
        nearest = neighbors.nearest_neighbors(batch.features, s.num_neighbors)
        meta = [torch.zeros_like(p) for p in net.parameters]
        for labels in neighbors.synthetic_labels(batch.labels, nearest, neighbors.Draws(**batch.draws)):
            inner = torch.autograd.grad(F.cross_entropy(net.module(batch.images), labels), net.parameters)
            with torch.no_grad():
                fast = self.inner_update(net.parameters, list(inner), s.inner_lr)
            for p in fast:
                p.requires_grad_()
            loss = losses.consistency_loss(target, net.at(fast, batch.images))
            meta = [m + g / s.num_synthetic for m, g in zip(meta, torch.autograd.grad(loss, fast), strict=True)]
        class_loss = F.cross_entropy(net.module(batch.images), batch.labels)
        gradients = [
            g + rates.meta_lr / rates.lr * m
            for g, m in zip(torch.autograd.grad(class_loss, net.parameters), meta, strict=True)
        ]
        sgd_(net.parameters, gradients, state.momentum, rates.lr, s.momentum, s.weight_decay)
        teacher.update_average_(state.teacher.parameters, net.parameters, rates.ema_decay)


def by_hand(parameters: list[Tensor], gradients: list[Tensor], lr: float) -> list[Tensor]:
    return [p - lr * g for p, g in zip(parameters, gradients, strict=True)]


def by_torchopt(parameters: list[Tensor], gradients: list[Tensor], lr: float) -> list[Tensor]:
    """TorchOpt's functional optimizer, as its documentation does MAML."""
    import torchopt

    optimizer = torchopt.sgd(lr=lr)
    updates, _ = optimizer.update(tuple(gradients), optimizer.init(tuple(parameters)), inplace=False)
    return list(torchopt.apply_updates(tuple(parameters), updates, inplace=False))
