"""A network of layers with timm's interface, of which the last is the classifier."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class Layers(nn.Sequential):
    def get_classifier(self) -> Any:
        return self[-1]

    def forward_features(self, x: Tensor) -> Tensor:
        return self[:-1](x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        return x if pre_logits else self[-1](x)
