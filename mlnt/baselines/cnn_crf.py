"""CNN-CRF: a conditional random field over the noisy and the clean label (Vahdat, NIPS 2017, "Toward Robustness
against Label Noise in Training Deep Discriminative Neural Networks"). A reimplementation from the paper, without its
hidden units: over C × C states the partition function is an exact sum, and nothing is sampled.

Prior knowledge: a small clean set (samples of D whose true labels are known), or the noise matrix T.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mlnt.baselines.loss_step import LossStep
from mlnt.training.state import Batch, EpochContext, TrainState


class CRFNetwork(nn.Module):
    """p(ŷ, y | x) ∝ exp(a(x)[ŷ] + b(x)[y] + W[ŷ, y]), ŷ the clean and y the noisy label.

    As a function of images it gives the log of the clean label's marginal, up to a constant: logits [B, C] like any
    other network's.

    Args:
        backbone: a network with 2C outputs, a(x) and b(x) side by side.
        num_classes: C.
    """

    def __init__(self, backbone: nn.Module, num_classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.pairwise = nn.Parameter(torch.zeros(num_classes, num_classes))

    def scores(self, images: Tensor) -> Tensor:
        """a(x)[ŷ] + b(x)[y] + W[ŷ, y], as [B, C clean, C noisy], in float32 or wider."""
        unary: Tensor = self.backbone(images).to(self.pairwise.dtype)
        clean, noisy = unary.chunk(2, dim=1)
        return clean.unsqueeze(2) + noisy.unsqueeze(1) + self.pairwise

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the backbone: the part that training and evaluation share."""
        self.backbone.compile(*args, **kwargs)

    def forward(self, images: Tensor) -> Tensor:
        """log Σ_y exp(score[ŷ, y]) = log p(ŷ | x) + constant."""
        return self.scores(images).logsumexp(dim=2)


@dataclass
class CRFStep(LossStep):
    """One EM step: q from the model and the auxiliary distribution, then a gradient step on E_q[log p(ŷ, y | x)].

    Attributes:
        auxiliary: p_aux [C clean, C noisy], p_aux[ŷ, y] = P(clean = ŷ | noisy = y); columns sum to 1.
        known: true labels by position in D [N], −1 where they are not known: for these, q is certain.
        weight_start, weight_end, weight_epochs: a, the weight of p_aux in q, goes linearly from one to the other over
            so many epochs: at first the auxiliary distribution decides, later the network.
    """

    auxiliary: Tensor
    known: Tensor
    weight_start: float
    weight_end: float
    weight_epochs: int
    _weight: Tensor = field(init=False)

    def __post_init__(self) -> None:
        # On the device, so that a recorded step reads the value of its epoch.
        self._weight = torch.full((), self.weight_start, device=self.auxiliary.device)

    def begin_epoch(self, epoch: EpochContext) -> None:
        """Set a to its value for this epoch."""
        share = min(epoch.number / self.weight_epochs, 1.0) if self.weight_epochs else 1.0
        self._weight.fill_(self.weight_start + share * (self.weight_end - self.weight_start))

    def tensors(self) -> dict[str, Tensor]:
        return {"weight": self._weight}

    def loss(self, state: TrainState, batch: Batch) -> tuple[Tensor, Tensor]:
        module = state.student.module
        if batch.positions is None or not isinstance(module, CRFNetwork):
            raise ValueError("CNN-CRF needs the batch's positions and a CRFNetwork")
        with state.student.autocast(batch.images):
            scores = module.scores(batch.images)
        posterior = clean_posterior(scores.detach(), batch.labels, self.auxiliary, self._weight)
        posterior = certain_where_known(posterior, self.known[batch.positions])
        return crf_loss(scores, batch.labels, posterior), scores.logsumexp(dim=2)


def clean_posterior(scores_BCC: Tensor, labels_B: Tensor, auxiliary_CC: Tensor, weight: Tensor | float) -> Tensor:
    """E-step: q(ŷ) ∝ [p(ŷ | y, x) · p_aux(ŷ | y)ᵃ]^{1/(a+1)}, as [B, C]; a = 0 is the model's own posterior."""
    at_label_BC = scores_BCC[torch.arange(len(labels_B), device=labels_B.device), :, labels_B]
    log_auxiliary_BC = auxiliary_CC.clamp_min(1e-8).log().T[labels_B]
    return ((at_label_BC.log_softmax(dim=1) + weight * log_auxiliary_BC) / (weight + 1)).softmax(dim=1)


def certain_where_known(posterior_BC: Tensor, known_B: Tensor) -> Tensor:
    """One-hot at the true label where it is known (−1: it is not)."""
    one_hot_BC = torch.nn.functional.one_hot(known_B.clamp_min(0), posterior_BC.shape[1]).to(posterior_BC.dtype)
    return torch.where((known_B >= 0).unsqueeze(1), one_hot_BC, posterior_BC)


def crf_loss(scores_BCC: Tensor, labels_B: Tensor, posterior_BC: Tensor) -> Tensor:
    """M-step: L = −1/k Σᵢ Σ_ŷ qᵢ(ŷ) log p(ŷ, yᵢ | xᵢ), in nats, the partition function summed over all C × C."""
    log_partition_B = scores_BCC.flatten(1).logsumexp(dim=1)
    at_label_BC = scores_BCC[torch.arange(len(labels_B), device=labels_B.device), :, labels_B]
    return (log_partition_B - (posterior_BC * at_label_BC).sum(dim=1)).mean()


def auxiliary_from_clean_set(true_N: Tensor, given_N: Tensor, num_classes: int) -> Tensor:
    """p_aux[ŷ, y] by counting the clean set, one added to each count."""
    counts = torch.ones(num_classes, num_classes)
    counts.index_put_((true_N, given_N), torch.ones(len(true_N)), accumulate=True)
    return counts / counts.sum(dim=0, keepdim=True)


def auxiliary_from_transition(transition_CC: Tensor) -> Tensor:
    """p_aux[ŷ, y] ∝ T[ŷ, y]: Bayes' rule with classes equally frequent. A label that T never gives says nothing."""
    column_sum = transition_CC.sum(dim=0, keepdim=True)
    uniform = torch.full_like(transition_CC, 1.0 / len(transition_CC))
    return torch.where(column_sum > 0, transition_CC / column_sum.clamp_min(1e-12), uniform)
