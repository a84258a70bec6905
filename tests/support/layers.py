"""A network of layers with timm's interface, of which the last is the classifier."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Layers(nn.Sequential):
    def get_classifier(self) -> Any:
        return self[-1]

    def forward_features(self, x: Tensor) -> Tensor:
        return self[:-1](x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        return x if pre_logits else self[-1](x)


def randomize_(module: nn.Module) -> None:
    """Random affine parameters and statistics, so that no BatchNorm is the identity and no bias 0."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in [*module.parameters(), *module.buffers()]:
            if tensor.is_floating_point() and tensor.ndim == 1:
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype))
