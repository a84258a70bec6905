"""Two networks that teach each other, and predict together: what Co-teaching and DivideMix train."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from mlnt.training.passes import Network, wide


class PairNetwork(nn.Module):
    """p(y | x) = (f(x, θ⁽¹⁾) + f(x, θ⁽²⁾)) / 2: the mean of two networks' predictions.

    As a function of images it gives log p: logits [B, C] like any other network's.

    Args:
        first, second: networks of one kind that start from different weights.
    """

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.networks = nn.ModuleList([first, second])

    def each(self, first_images: Tensor, second_images: Tensor) -> tuple[Tensor, Tensor]:
        """The logits of either network for images of its own, in float32 or wider."""
        first, second = self.networks
        return wide(first(first_images)), wide(second(second_images))

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile both networks: the parts that training and evaluation share."""
        for network in self.networks:
            network.compile(*args, **kwargs)

    def forward(self, images: Tensor) -> Tensor:
        """log p(y | x)."""
        return mean_prediction(*self.each(images, images))


def mean_prediction(first_BC: Tensor, second_BC: Tensor) -> Tensor:
    """log((softmax(first) + softmax(second)) / 2), from the logits of both."""
    return torch.logaddexp(first_BC.log_softmax(dim=1), second_BC.log_softmax(dim=1)) - math.log(2)


def pair_of(network: Network) -> PairNetwork:
    """
    Raises:
        ValueError: it is something else.
    """
    if not isinstance(network.module, PairNetwork):
        raise ValueError(f"needs a PairNetwork, got a {type(network.module).__name__}")
    return network.module
