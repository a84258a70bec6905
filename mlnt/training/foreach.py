"""Arithmetic on lists of tensors, in place, by a number or by a scalar tensor on their device.

A number is fused into one kernel, and gives the bits of `torch.optim`. A tensor is read when the kernel runs, so that
a step recorded once can be replayed at other rates.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Scalar = float | Tensor


@torch.no_grad()
def add_scaled_(targets: Sequence[Tensor], values: Sequence[Tensor], factor: Scalar) -> None:
    """target ← target + factor · value."""
    if isinstance(factor, Tensor):
        torch._foreach_add_(list(targets), torch._foreach_mul(list(values), factor.to(targets[0].dtype)))
    else:
        torch._foreach_add_(list(targets), list(values), alpha=factor)


@torch.no_grad()
def lerp_(targets: Sequence[Tensor], values: Sequence[Tensor], weight: Scalar) -> None:
    """target ← target + weight · (value − target). A number of 0 changes nothing and 1 copies: both to the bit."""
    if isinstance(weight, Tensor):
        add_scaled_(targets, torch._foreach_sub(list(values), list(targets)), weight)
    else:
        torch._foreach_lerp_(list(targets), list(values), weight)


@torch.no_grad()
def sgd_(
    parameters: list[Tensor],
    gradients: list[Tensor],
    buffers: list[Tensor],
    lr: Scalar,
    momentum: float,
    weight_decay: float,
) -> None:
    """SGD as `torch.optim.SGD` does it: d = g + wd·θ; v ← μv + d; θ ← θ − lr·v. Mutates parameters and buffers.

    Written out because creating a `torch.optim` optimizer imports torch's compiler, at 3 s a stage.
    """
    decayed = torch._foreach_add(gradients, parameters, alpha=weight_decay)
    torch._foreach_mul_(buffers, momentum)
    torch._foreach_add_(buffers, decayed)
    add_scaled_(parameters, buffers, -lr)
