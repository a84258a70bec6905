"""The inputs of training steps: which samples, and everything that is random, drawn beforehand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from mlnt import seeding
from mlnt.images.batches import Augmentation, AugmentationDraws, draw_augmentation
from mlnt.training.passes import Network
from mlnt.training.state import StepFunction

StepInputs = dict[str, Tensor]
"""What differs from step to step, except the rates; for several steps with one more dimension in front.

    positions           of its samples in the training set [B]
    view 0/shift, …     `AugmentationDraws` of each view, those that are not None
    draws/…             what `StepFunction.draw` gives, by its names
    fetched             what its images are made from (`ImageStore.fetch`)
    features            its rows of a feature table that is not in memory

The last two are read when the step's turn comes.
"""


def draw_inputs(
    step: StepFunction, augmentation: Augmentation, positions_SB: Tensor, first: int, seed: int, iteration: int
) -> StepInputs:
    """The inputs of the steps `first`, `first` + 1, …, whose samples are the rows of `positions_SB`; on the CPU.

    Each step draws from streams of its own, named by seed, iteration and step, so that nothing depends on how many
    steps are drawn at a time; each view from one of its own, so that none depends on how many views there are.
    """
    batch_size = positions_SB.shape[1]
    steps = [
        _draw_step(step, augmentation, batch_size, seed, (iteration, at))
        for at in range(first, first + len(positions_SB))
    ]
    return {"positions": positions_SB} | {name: torch.stack([drawn[name] for drawn in steps]) for name in steps[0]}


def _draw_step(
    step: StepFunction, augmentation: Augmentation, batch_size: int, seed: int, address: tuple[int, int]
) -> StepInputs:
    drawn: StepInputs = {}
    for view in range(step.views):
        stream = f"augmentation, view {view}" if view else "augmentation"
        of_view = draw_augmentation(augmentation, batch_size, seeding.generator(seed, stream, *address))
        drawn |= {f"view {view}/{name}": value for name, value in of_view._asdict().items() if value is not None}
    # The stream keeps the name of its first use: another name would give other numbers.
    own = step.draw(batch_size, seeding.generator(seed, "synthetic labels", *address))
    return drawn | {f"draws/{name}": value for name, value in own.items()}


def augmentation_draws(inputs: StepInputs, view: int) -> AugmentationDraws:
    """The draws of one view, by the names that `draw_inputs` gives."""
    return AugmentationDraws(inputs.get(f"view {view}/shift"), inputs.get(f"view {view}/flip"))


def below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, named by the rest of their names."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


@contextmanager
def layer_randomness(device: torch.device, seed: int) -> Iterator[None]:
    """Random layers (dropout) draw from the global generators of the CPU and of `device`: inside the block these start
    at `seed`, and afterwards they are where they were."""
    gpus: list[int] = []
    if device.type == "cuda":
        gpus = [torch.cuda.current_device() if device.index is None else device.index]
    with torch.random.fork_rng(devices=gpus):
        torch.default_generator.manual_seed(seed)  # not torch.manual_seed, which reaches every GPU
        for gpu in gpus:
            torch.cuda.default_generators[gpu].manual_seed(seed)
        yield


def draws_at_random(network: Network, images: Tensor) -> bool:
    """Whether a forward pass in train mode draws random numbers; it leaves no trace in BatchNorm's statistics."""
    device = images.device
    generators = torch.cuda.default_generators if device.type == "cuda" else (torch.default_generator,)
    with layer_randomness(device, 0), network.frozen_statistics(), torch.no_grad():
        before = [generator.get_state() for generator in generators]
        network(images)
        return not all(map(torch.equal, before, [generator.get_state() for generator in generators]))
