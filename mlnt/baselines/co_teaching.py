"""Co-teaching: each of two networks learns from the samples that the other one finds easy (Han et al., NeurIPS 2018,
"Co-teaching: Robust Training of Deep Neural Networks with Extremely Noisy Labels").

Prior knowledge: τ, the share of wrong labels.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from mlnt.baselines.loss_step import LossStep
from mlnt.baselines.pair import mean_prediction, pair_of
from mlnt.method.losses import classification_loss
from mlnt.training.state import Batch, EpochContext, TrainState


@dataclass
class CoTeachingStep(LossStep):
    """Both networks of a `PairNetwork` see the same mini-batch B. Each names the samples of its smallest losses, and
    the other one learns from those alone:

        B⁽ᵏ⁾ = argmin Σ ℓ(f(x, θ⁽ᵏ⁾), y) over the subsets of B of at least R(T) |B| samples
        L = mean of ℓ(f(x, θ⁽¹⁾), y) over B⁽²⁾ + mean of ℓ(f(x, θ⁽²⁾), y) over B⁽¹⁾

    R(T) = 1 − min(T / T_k · τ, τ) after T epochs: at first all samples count, from T_k on the share of right labels.
    The two terms have no parameter in common, so one step of SGD trains both networks.

    The paper trains with Adam; here it is SGD, as in every other system.

    Attributes:
        noise_rate: τ, from 0 to 1.
        ramp_epochs: T_k, at least 1.
        device: of the images.
    """

    noise_rate: float
    ramp_epochs: int
    device: torch.device
    _share: Tensor = field(init=False)

    def __post_init__(self) -> None:
        # On the device, so that a recorded step reads the value of its epoch.
        self._share = torch.ones((), dtype=torch.float64, device=self.device)

    def begin_epoch(self, epoch: EpochContext) -> None:
        """Set R(T) to its value for this epoch."""
        self._share.fill_(remember_rate(epoch.number, self.ramp_epochs, self.noise_rate))

    def tensors(self) -> dict[str, Tensor]:
        return {"share": self._share}

    def loss(self, state: TrainState, batch: Batch) -> tuple[Tensor, Tensor]:
        pair, labels = pair_of(state.student), batch.labels
        with state.student.autocast(batch.images):
            first, second = pair.each(batch.images, batch.images)
        by_first, by_second = (small_losses(logits.detach(), labels, self._share) for logits in (first, second))
        loss = classification_loss(first, labels, by_second) + classification_loss(second, labels, by_first)
        return loss, mean_prediction(first.detach(), second.detach())


def remember_rate(epochs: int, ramp_epochs: int, noise_rate: float) -> float:
    """R(T) = 1 − min(T / T_k · τ, τ) for T = `epochs` epochs done, T_k = `ramp_epochs`, τ = `noise_rate`."""
    return 1.0 - min(epochs / ramp_epochs * noise_rate, noise_rate)


def small_losses(logits_BC: Tensor, labels_B: Tensor, share: Tensor | float) -> Tensor:
    """The ⌈share · B⌉ samples of the smallest cross entropy, at least one, as boolean [B]; of equal ones the first."""
    loss_B = F.cross_entropy(logits_BC, labels_B, reduction="none")
    rank_B = loss_B.argsort(stable=True).argsort()
    # (1 − 0.45) · 40 is a little more than 22, in floating-point numbers.
    return rank_B < torch.as_tensor(share * len(labels_B) - 1e-6).ceil().clamp(min=1)
