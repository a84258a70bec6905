"""What systems of two networks that train each other share (`mlnt.baselines.pair`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn


def pair_network(backbones: Sequence[nn.Module], _: int) -> nn.Module:
    """`System.wrap`: both backbones as one network."""
    from mlnt.baselines.pair import PairNetwork

    return PairNetwork(*backbones)
