"""The inputs of training steps: which samples, and everything that is random, drawn beforehand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mlnt import seeding
from mlnt.images.batches import Augmentation, draw_augmentation
from mlnt.training.state import StepFunction


class StepInputs(NamedTuple):
    """What tells one step from another, but for the rates: positions in the training set [B], and all that is random.

    With one more dimension in front: those of several steps. What is read for a step joins them last: what its images
    are made from (`ImageStore.fetch`), and its rows of a feature table that is not in memory.
    """

    positions: Tensor
    shift: Tensor | None
    flip: Tensor | None
    replaced_MB: Tensor | None
    pick_MB: Tensor | None
    fetched: Tensor | None = None
    features: Tensor | None = None

    def each(self, change: Callable[[Tensor], Tensor]) -> StepInputs:
        return StepInputs(change(self.positions), *(None if v is None else change(v) for v in self[1:]))

    def at(self, step: int) -> StepInputs:
        return self.each(lambda values: values[step])


def draw_inputs(
    step: StepFunction, augmentation: Augmentation, positions_SB: Tensor, first: int, seed: int, iteration: int
) -> StepInputs:
    """The inputs of the steps `first`, `first` + 1, …, whose samples are the rows of `positions_SB`; on the CPU.

    Each step draws from streams of its own, named by seed, iteration and step, so that nothing depends on how many
    steps are drawn at a time.
    """
    steps = range(first, first + len(positions_SB))
    batch_size = positions_SB.shape[1]
    augmentations = [
        draw_augmentation(augmentation, batch_size, seeding.generator(seed, "augmentation", iteration, at))
        for at in steps
    ]
    draws = [step.draw(batch_size, seeding.generator(seed, "synthetic labels", iteration, at)) for at in steps]
    return StepInputs(
        positions_SB,
        *(_stack(column) for column in zip(*augmentations, strict=True)),
        *(_stack(column) for column in zip(*(draw or (None, None) for draw in draws), strict=True)),
    )


def _stack(values: Sequence[Tensor | None]) -> Tensor | None:
    known = [value for value in values if value is not None]
    return torch.stack(known) if known else None
