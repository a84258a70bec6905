"""SOP: sparse over-parameterization (Liu et al., ICML 2022, "Robust Training under Label Noise by
Over-parameterization").

Prior knowledge: none. The paper's recipe on CIFAR-10: rates of u and v 10 and 10, with asymmetric noise 10 and 100; on
CIFAR-100 1 and 10, with asymmetric noise 1 and 100; both from a normal distribution of deviation 1e-8.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mlnt.baselines.loss_step import LossStep
from mlnt.training.state import Batch, TrainState

LEAST = 1e-4
"""Where entries of f(x) + s end, so that their logarithm stays finite."""


@dataclass
class SOPStep(LossStep):
    """Every sample has a term s of its own beside the network, which takes up what is wrong about its label:

        s = u² ⊙ y − v² ⊙ (1 − y),  y the one-hot label,  u and v in [−1, 1]
        L_CE  = −1/k Σᵢ log φ(f(xᵢ) + sᵢ)[yᵢ],  φ(w) = max(w, 1e-4) / ‖max(w, 1e-4)‖₁
        L_MSE = 1/k Σᵢ ‖f(xᵢ) + sᵢ − yᵢ‖²

    θ and u follow the gradient of L_CE, v that of L_MSE; u and v by gradient descent, each at a rate of its own. That
    they start next to 0 makes them grow for the few samples alone that the network does not come to explain.

    Attributes:
        u_lr, v_lr: of u and v.
        u: [N], by position in D, on the images' device: of u the entry at the label, as no other one counts.
        v: [N, C], likewise; the entry at the label stays as it is.
    """

    u_lr: float
    v_lr: float
    u: Tensor
    v: Tensor

    def tensors(self) -> dict[str, Tensor]:
        return {"u": self.u, "v": self.v}

    def loss(self, state: TrainState, batch: Batch) -> tuple[Tensor, Tensor]:
        at = batch.positions
        if at is None:
            raise ValueError("SOP needs the batch's positions, got none")
        logits = state.student(batch.images)
        u, v = self.u[at].requires_grad_(), self.v[at].requires_grad_()
        loss = cross_entropy_with_noise(logits, batch.labels, noise_term(batch.labels, u, v.detach()))
        error = squared_error(logits.detach(), batch.labels, noise_term(batch.labels, u.detach(), v))
        (u_gradient,) = torch.autograd.grad(loss, [u], retain_graph=True)
        (v_gradient,) = torch.autograd.grad(error, [v])
        with torch.no_grad():
            self.u[at] = (u - self.u_lr * u_gradient).clamp(-1, 1)
            self.v[at] = (v - self.v_lr * v_gradient).clamp(-1, 1)
        return loss, logits


def noise_term(labels_B: Tensor, u_B: Tensor, v_BC: Tensor) -> Tensor:
    """s = u² ⊙ y − v² ⊙ (1 − y), as [B, C]."""
    at_label_BC = _one_hot(labels_B, v_BC.shape[1])
    return torch.where(at_label_BC, u_B.square().unsqueeze(1), -v_BC.square())


def cross_entropy_with_noise(logits_BC: Tensor, labels_B: Tensor, noise_BC: Tensor) -> Tensor:
    """L_CE, in nats; without noise and with no probability below 1e-4 it is cross entropy."""
    explained_BC = (logits_BC.softmax(dim=1) + noise_BC).clamp_min(LEAST)
    at_label_B = explained_BC.gather(1, labels_B.unsqueeze(1)).squeeze(1)
    return (explained_BC.sum(dim=1).log() - at_label_B.log()).mean()


def squared_error(logits_BC: Tensor, labels_B: Tensor, noise_BC: Tensor) -> Tensor:
    """L_MSE."""
    given_BC = _one_hot(labels_B, logits_BC.shape[1]).to(logits_BC.dtype)
    return (logits_BC.softmax(dim=1) + noise_BC - given_BC).square().sum(dim=1).mean()


def _one_hot(labels_B: Tensor, num_classes: int) -> Tensor:
    """Boolean [B, C]; not by `one_hot`, which looks at the labels, and could not be recorded."""
    return labels_B.unsqueeze(1) == torch.arange(num_classes, device=labels_B.device)
