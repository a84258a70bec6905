"""The teacher θ̃: an exponential moving average of the student."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from mlnt.training.foreach import Scalar, lerp_

TeacherBatchNorm = Literal["own", "ema"]


@torch.no_grad()
def update_average_(average: Sequence[Tensor], values: Sequence[Tensor], decay: Scalar) -> None:
    """θ̃ ← γθ̃ + (1 − γ)θ (3), in place.

    γ = 1 leaves the average as it is, γ = 0 copies: both to the bit, where γ is a number.
    """
    lerp_(average, values, 1.0 - decay)


@torch.no_grad()
def update_buffers_(teacher: nn.Module, student: nn.Module, decay: Scalar) -> None:
    """`teacher_bn: ema`: the floating-point buffers (BatchNorm statistics) follow the student's by (3) too."""
    pairs = [
        (mine, other)
        for mine, other in zip(teacher.buffers(), student.buffers(), strict=True)
        if mine.is_floating_point()
    ]
    if pairs:
        update_average_([mine for mine, _ in pairs], [other for _, other in pairs], decay)
