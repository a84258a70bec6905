"""Algorithm 1 written as naively as it reads: the judge of `mlnt.method.step.MLNTStep`.

Every m has forward and backward passes of its own, the neighbours come from loops, SGD is written by hand. It shares
with the library only the order in which the random numbers are drawn.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call


@dataclass(frozen=True)
class Hyper:
    """The symbols of the paper: `eta` is η, `lam` λ, `wd` the weight decay of (9), and so on."""

    M: int = 2
    rho: float = 0.5
    K: int = 3
    alpha: float = 0.2
    eta: float = 0.4
    beta: float = 0.1
    momentum: float = 0.9
    wd: float = 1e-2
    gamma: float = 0.9
    lam: float = 0.25
    fast: str = "all"
    order: str = "first"
    update: str = "sequential"
    kl: str = "batchmean"
    teacher_bn: str = "own"


def synthetic_labels(labels: Tensor, features: Tensor, h: Hyper, generator: torch.Generator) -> list[Tensor]:
    """Line 6 for m = 1..M: the samples with the smallest of the first numbers take a neighbour's label."""
    size = len(labels)
    chance, pick = torch.rand(h.M, size, generator=generator), torch.randint(h.K, (h.M, size), generator=generator)
    batches = []
    for m in range(h.M):
        new = labels.clone()
        for i in sorted(range(size), key=lambda i: float(chance[m, i]))[: round(h.rho * size)]:
            others = [j for j in range(size) if j != i]
            others.sort(key=lambda j: float(((features[i] - features[j]) ** 2).sum()))
            new[i] = labels[others[int(pick[m, i])]]
        batches.append(new)
    return batches


def forward(module: nn.Module, parameters: dict[str, Tensor], images: Tensor) -> Tensor:
    """Logits with these parameters, in the module's mode; its buffers are copied, so nothing of it changes."""
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    logits: Tensor = functional_call(module, parameters | buffers, (images,))
    return logits


def cross_entropy(logits: Tensor, labels: Tensor, kept: Tensor | None) -> Tensor:
    """(1) over the samples of D′; 0 without any."""
    if kept is not None:
        logits, labels = logits[kept], labels[kept]
    return F.cross_entropy(logits, labels) if len(labels) else 0.0 * logits.sum()


def step(
    student: nn.Module,
    teacher: nn.Module,
    momentum: dict[str, Tensor],
    mentor: nn.Module | None,
    batch: tuple[Tensor, Tensor, Tensor, Tensor | None],
    generator: torch.Generator,
    h: Hyper,
) -> tuple[float, float]:
    """One step of Algorithm 1; mutates student, teacher and momentum, returns (L_c, L_meta)."""
    images, labels, features, kept = batch
    theta = {name: p.detach().clone().requires_grad_() for name, p in student.named_parameters()}
    with torch.no_grad():
        theta_teacher = dict(teacher.named_parameters())
        target = (teacher(images) if h.teacher_bn == "own" else forward(teacher, theta_teacher, images)).softmax(1)
        if mentor is not None:  # (12)
            target = h.lam * target + (1 - h.lam) * mentor(images).softmax(1)

    meta_loss, meta = 0.0, {name: torch.zeros_like(p) for name, p in theta.items()}
    for synthetic in synthetic_labels(labels, features, h, generator):
        inner_loss = cross_entropy(forward(student, theta, images), synthetic, None)
        moved = (
            list(theta)[-2:] if h.fast == "classifier" else list(theta)
        )  # weight and bias of the classifier are last
        inner = torch.autograd.grad(inner_loss, [theta[name] for name in moved], create_graph=h.order == "second")
        fast = theta | {name: theta[name] - h.alpha * g for name, g in zip(moved, inner, strict=True)}  # (2)
        if h.order == "first":
            fast = {name: p.detach().requires_grad_() for name, p in fast.items()}
        log_probs = forward(student, fast, images).log_softmax(1)
        loss = (target * (target.log() - log_probs)).sum() / len(labels)  # (4), (5)
        if h.kl == "mean":
            loss = loss / target.shape[1]
        of = fast if h.order == "first" else theta
        for name, g in zip(of, torch.autograd.grad(loss, list(of.values())), strict=True):
            meta[name] += g / h.M  # (6)
        meta_loss += float(loss.detach()) / h.M

    if h.update == "sequential":  # (8)
        theta = {name: (p - h.eta * meta[name]).detach().requires_grad_() for name, p in theta.items()}
    class_loss = cross_entropy(forward(student, theta, images), labels, kept)
    gradient = dict(zip(theta, torch.autograd.grad(class_loss, list(theta.values())), strict=True))
    if h.update == "joint":
        gradient = {name: g + h.eta / h.beta * meta[name] for name, g in gradient.items()}
    with torch.no_grad():
        for name, p in student.named_parameters():
            p.copy_(theta[name])
        student(images)  # this forward pass, and no other, moves the running statistics
        if kept is None or bool(kept.any()) or h.update == "joint":
            for name, p in student.named_parameters():  # (9)
                momentum[name].copy_(h.momentum * momentum[name] + gradient[name] + h.wd * p)
                p.copy_(p - h.beta * momentum[name])
        for mine, other in zip(teacher.parameters(), student.parameters(), strict=True):  # (3)
            mine.copy_(h.gamma * mine + (1 - h.gamma) * other)
        for mine, other in zip(teacher.buffers(), student.buffers(), strict=True):
            if h.teacher_bn == "ema" and mine.is_floating_point():
                mine.copy_(h.gamma * mine + (1 - h.gamma) * other)
    return float(class_loss.detach()), meta_loss
