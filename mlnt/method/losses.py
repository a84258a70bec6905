"""The two losses of the paper and their gradients with respect to the logits.

Both gradients have the form (softmax − target) / k, which is what lets the step share one forward pass
among the M inner updates.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

KLReduction = Literal["batchmean", "mean"]


def classification_loss(logits_BC: Tensor, labels_B: Tensor, kept_B: Tensor | None = None) -> Tensor:
    """L_c = −1/k Σᵢ log f(xᵢ)[yᵢ] (1), the mean over the kept samples of the batch, in nats.

    Args:
        logits_BC: scores before the softmax.
        labels_B: given labels.
        kept_B: boolean, the samples in D′ (10); None keeps all. With none kept the loss is 0.
    """
    if kept_B is None:
        return F.cross_entropy(logits_BC, labels_B)
    loss_B = F.cross_entropy(logits_BC, labels_B, reduction="none")
    # Not by a product with the mask, which is NaN for a loss that has overflowed; nor by torch.where with a number,
    # which a GPU would copy from the host, and a CUDA graph cannot record.
    return loss_B.masked_fill(~kept_B, 0.0).sum() / kept_B.sum().clamp(min=1)


def classification_gradient(probs_BC: Tensor, labels_B: Tensor) -> Tensor:
    """∂L_c/∂logits = (p − onehot(y)) / k, over all samples of the batch."""
    gradient = probs_BC.clone()
    gradient[torch.arange(len(labels_B), device=labels_B.device), labels_B] -= 1.0
    return gradient / len(labels_B)


def consistency_loss(target_BC: Tensor, logits_BC: Tensor, reduction: KLReduction = "batchmean") -> Tensor:
    """J = 1/k Σᵢ D_KL(targetᵢ ‖ softmax(logitsᵢ)) (4, 5), in nats; ≥ 0, and 0 iff the two are equal.

    Args:
        target_BC: probabilities of the teacher, or s of (12). Treated as a constant by the method.
        logits_BC: logits of the fast network θ′ₘ.
        reduction: `batchmean` is the paper's; `mean` divides by C as well, as the released code does.
    """
    loss = F.kl_div(F.log_softmax(logits_BC, dim=1), target_BC, reduction="batchmean")
    # Not by `kl_div(reduction="mean")`, which warns that it will come to mean `batchmean`.
    return loss / logits_BC.shape[1] if reduction == "mean" else loss


def consistency_gradient(target_BC: Tensor, logits_BC: Tensor, reduction: KLReduction = "batchmean") -> Tensor:
    """∂J/∂logits = (softmax(logits) − target) / k, divided by C for `mean`; rows of the target sum to 1."""
    gradient = (logits_BC.softmax(dim=1) - target_BC) / len(logits_BC)
    return gradient / logits_BC.shape[1] if reduction == "mean" else gradient
