"""Meta-Weight-Net: a small network learns from a clean set how much a sample counts by its loss (Shu et al., NeurIPS
2019, "Meta-Weight-Net: Learning an Explicit Mapping For Sample Weighting").

Prior knowledge: a small clean set. The paper's recipe on CIFAR-10: 1,000 clean images, 100 hidden units, β 1e-3.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from mlnt.baselines.loss_step import LossStep
from mlnt.method.fast_weights import kernels
from mlnt.training.foreach import Scalar, add_scaled_
from mlnt.training.passes import Network
from mlnt.training.state import Batch, Metrics, Rates, TrainState


@dataclass
class MetaWeightNetStep(LossStep):
    """With Lᵢ(θ) = −log f(xᵢ, θ)[yᵢ], the weights V(L; Θ) of the weight net, and k clean samples (x′, y′):

        θ̂(Θ) = θ − α/k Σᵢ V(Lᵢ(θ); Θ) ∇Lᵢ(θ)                 a step that is only tried
        Θ ← Θ − β ∇_Θ 1/k Σⱼ −log f(x′ⱼ, θ̂(Θ))[y′ⱼ]             what it would have brought on clean samples
        L = 1/k Σᵢ V(Lᵢ(θ); Θ) Lᵢ(θ)                         the step itself, by SGD, with the new weights

    α is the learning rate of the step itself. V's argument is a constant for θ; the gradient for Θ goes through the
    tried step, with the second derivatives in it. All three read one forward pass at θ.

    Attributes:
        net_lr: β.
        clean_images: normalised, un-augmented, on the network's device [n, in_chans, H, W], or embeddings [n, D].
        clean_labels: their true labels [n].
        weight_net: Θ, from `weight_net`; changed in place.
    """

    net_lr: float
    clean_images: Tensor
    clean_labels: Tensor
    weight_net: list[Tensor]
    metrics = (*LossStep.metrics, "clean_loss", "mean_weight")
    _rate: Scalar = field(init=False, default=0.0)
    _seen: Metrics = field(init=False, default_factory=dict)

    def draw(self, batch_size: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Which clean samples stand beside the mini-batch: as many, drawn with replacement."""
        return {"clean": torch.randint(len(self.clean_labels), (batch_size,), generator=generator)}

    def tensors(self) -> dict[str, Tensor]:
        return dict(zip(("hidden_weight", "hidden_bias", "weight", "bias"), self.weight_net, strict=True))

    def __call__(self, state: TrainState, batch: Batch, rates: Rates) -> Metrics:
        """As `LossStep`; mutates Θ too, and adds the loss on the clean samples after the tried step, and V's mean."""
        self._rate = rates.lr
        return super().__call__(state, batch, rates) | self._seen

    def loss(self, state: TrainState, batch: Batch) -> tuple[Tensor, Tensor]:
        student = state.student
        with kernels("second"):
            logits = student(batch.images)
        loss_B = F.cross_entropy(logits, batch.labels, reduction="none")
        net = [parameter.detach().requires_grad_() for parameter in self.weight_net]
        clean_loss = self._clean_loss(student, loss_B, net, batch.draws["clean"])
        gradient = torch.autograd.grad(clean_loss, net, retain_graph=True)
        add_scaled_(self.weight_net, gradient, -self.net_lr)
        with torch.no_grad():
            weights_B = weights_of(loss_B, self.weight_net)
        self._seen = {"clean_loss": clean_loss.detach(), "mean_weight": weights_B.mean()}
        return (weights_B * loss_B).mean(), logits

    def _clean_loss(self, student: Network, loss_B: Tensor, net: list[Tensor], clean: Tensor) -> Tensor:
        """The mean loss of these clean samples at θ̂(Θ), with its graph down to Θ."""
        weighted = (weights_of(loss_B.detach(), net) * loss_B).mean()
        step = torch.autograd.grad(weighted, student.parameters, create_graph=True, materialize_grads=True)
        tried = [theta.detach() - self._rate * each for theta, each in zip(student.parameters, step, strict=True)]
        with student.frozen_statistics(), kernels("second"):
            logits = student.at(tried, self.clean_images[clean])
        return F.cross_entropy(logits, self.clean_labels[clean])


def weight_net(hidden: int, generator: torch.Generator) -> list[Tensor]:
    """Θ at first: one hidden layer, drawn as `torch.nn.Linear` draws: uniform within ±1/√inputs."""
    shapes = (((hidden, 1), 1), ((hidden,), 1), ((1, hidden), hidden), ((1,), hidden))
    return [(2 * torch.rand(*shape, generator=generator) - 1) / inputs**0.5 for shape, inputs in shapes]


def weights_of(loss_B: Tensor, weight_net: list[Tensor]) -> Tensor:
    """V(L; Θ) = σ(W₂ relu(W₁ L + b₁) + b₂), in (0, 1), [B]."""
    hidden_weight, hidden_bias, weight, bias = weight_net
    hidden_BH = F.linear(loss_B.unsqueeze(1), hidden_weight, hidden_bias).relu()
    return F.linear(hidden_BH, weight, bias).squeeze(1).sigmoid()
