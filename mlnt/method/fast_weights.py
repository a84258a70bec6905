"""The inner update (2) and the gradient of L_meta through it: lines 7-10 of Algorithm 1, for all weights or for the
classifier alone.

All weights: the M inner gradients share one forward pass at θ, because cross entropy is linear in the label:
gₘ = Jᵀ((p − Ŷᵐ)/k) is one vector-Jacobian product on one retained graph. That is exact; the plain transcription in
tests/reference/ is the judge. A parameter that takes no part in the forward pass has gradient 0 (`materialize_grads`).

The classifier alone is a variant that the paper lacks, what ANIL (Raghu et al. 2020, arXiv 1909.09157) is to MAML. With
θ = (φ, W), W the classifier with its bias, h its input, z = hW its logits, p = softmax(z):

    Gₘ = (p − Ŷᵐ)/k
    W′ₘ = W − α hᵀGₘ                              (2)
    z′ₘ = hW′ₘ = z − α (hhᵀ) Gₘ                   with a bias hhᵀ + 1

The body has no part in it but h: one forward pass at θ and one backward pass serve all M.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from mlnt.method import losses
from mlnt.training.distributed import ALONE, Ranks
from mlnt.training.passes import Network

FastWeights = Literal["all", "classifier"]
Order = Literal["first", "second"]


def classifier_loss(
    logits_BC: Tensor,
    inputs_BD: Tensor,
    labels_MB: Tensor,
    target_BC: Tensor,
    inner_lr: float,
    order: Order,
    reduction: losses.KLReduction,
    has_bias: bool = True,
) -> Tensor:
    """L_meta = 1/M Σₘ J(φ, W′ₘ) (6) with its graph, for fast weights of the classifier alone.

    Args:
        logits_BC: z at θ, with its graph.
        inputs_BD: h, with its graph.
        labels_MB: Ŷ¹ … Ŷᴹ.
        target_BC: what J compares with; a constant.
        inner_lr: α.
        order: with `first` W′ₘ − W is a constant, so that the gradient is that at θ′ₘ; `second` goes through (2), with
            the h and p in it.
        reduction: of J, see `losses.consistency_loss`.
        has_bias: whether z = hW + b, and b moves as well.
    """
    # Not by `one_hot`, which looks at the labels, and could not be recorded.
    given_MBC = labels_MB.unsqueeze(2) == torch.arange(logits_BC.shape[1], device=logits_BC.device)
    gradient_MBC = (logits_BC.softmax(dim=1) - given_MBC.to(logits_BC.dtype)) / len(logits_BC)
    inner_inputs = inputs_BD
    if order == "first":
        gradient_MBC, inner_inputs = gradient_MBC.detach(), inputs_BD.detach()
    products_BB = inputs_BD @ inner_inputs.T + float(has_bias)
    fast_logits_MBC = logits_BC - inner_lr * (products_BB @ gradient_MBC)
    target_MBC = target_BC.expand_as(fast_logits_MBC)
    return losses.consistency_loss(target_MBC.flatten(0, 1), fast_logits_MBC.flatten(0, 1), reduction)  # (4, 5)


def meta_gradient(
    student: Network,
    logits: Tensor,
    labels_MB: Tensor,
    images: Tensor,
    target: Tensor,
    inner_lr: float,
    order: Order,
    reduction: losses.KLReduction,
    ranks: Ranks = ALONE,
) -> tuple[Tensor, list[Tensor]]:
    """L_meta and its gradient (6), for fast weights of the whole network.

    Args:
        logits: the student's at θ, with its graph, which is kept; computed under `kernels(order)`.
        order: `first` takes ∇J at θ′ₘ for ∇J at θ, the second derivatives of (7) left out; `second` is
            ∇θ J(θ − α ∇L_c(X, Ŷᵐ, θ)) = (I − αH) ∇J(θ′ₘ), H the Hessian of the inner loss, in full.
        ranks: each takes every W-th m, and all get the mean over all m.
    """
    gradient_at = _second_order if order == "second" else _first_order
    total = [torch.zeros_like(parameter) for parameter in student.parameters]
    loss = torch.zeros((), device=logits.device, dtype=logits.dtype)
    for labels in labels_MB[ranks.rank :: ranks.size]:
        loss_m, gradient_m = gradient_at(student, logits, labels, images, target, inner_lr, reduction)
        loss += loss_m
        torch._foreach_add_(total, gradient_m)
    ranks.sum_([loss, *total])
    torch._foreach_div_(total, len(labels_MB))  # line 10: the mean over m                        (6)
    return loss / len(labels_MB), total


def kernels(order: Order) -> AbstractContextManager[None]:
    """What forward passes run under that `meta_gradient` differentiates: the fused kernels of attention have no second
    derivative, its plain form has."""
    return nullcontext() if order == "first" else sdpa_kernel(SDPBackend.MATH)


def _first_order(
    student: Network,
    logits: Tensor,
    labels: Tensor,
    images: Tensor,
    target: Tensor,
    inner_lr: float,
    reduction: losses.KLReduction,
) -> tuple[Tensor, list[Tensor]]:
    inner_gradient = losses.classification_gradient(logits.detach().softmax(dim=1), labels)
    inner = _vector_jacobian_product(logits, student.parameters, inner_gradient, retain_graph=True)
    with torch.no_grad():  # line 7: θ′ₘ = θ − α ∇L_c(X, Ŷᵐ, θ)                                   (2)
        fast = torch._foreach_add(student.parameters, list(inner), alpha=-inner_lr)
    for parameter in fast:
        parameter.requires_grad_()
    with student.frozen_statistics():
        fast_logits = student.at(fast, images)
    detached = fast_logits.detach()
    loss = losses.consistency_loss(target, detached, reduction)  # line 8                        (4, 5)
    gradient = losses.consistency_gradient(target, detached, reduction)
    return loss, list(_vector_jacobian_product(fast_logits, fast, gradient))


def _second_order(
    student: Network,
    logits: Tensor,
    labels: Tensor,
    images: Tensor,
    target: Tensor,
    inner_lr: float,
    reduction: losses.KLReduction,
) -> tuple[Tensor, list[Tensor]]:
    inner_loss = losses.classification_loss(logits, labels)
    inner = torch.autograd.grad(inner_loss, student.parameters, create_graph=True, materialize_grads=True)
    fast = torch._foreach_add(student.parameters, list(inner), alpha=-inner_lr)
    with student.frozen_statistics(), kernels("second"):
        fast_logits = student.at(fast, images)
    loss = losses.consistency_loss(target, fast_logits, reduction)
    gradient = torch.autograd.grad(loss, student.parameters, retain_graph=True, materialize_grads=True)
    return loss.detach(), list(gradient)


def _vector_jacobian_product(
    outputs: Tensor, inputs: Sequence[Tensor], vector: Tensor, retain_graph: bool = False
) -> tuple[Tensor, ...]:
    """vectorᵀ ∂outputs/∂inputs, to the bit what `torch.autograd.grad` gives for `grad_outputs`; but with those it
    imports sympy, for a check of their shape: more than a second of each process."""
    scalar = (outputs * vector).sum()
    return torch.autograd.grad(scalar, inputs, retain_graph=retain_graph, materialize_grads=True)
