"""The network of params.yaml: a fresh one, an empty one for saved weights, or a stage's best."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from mlnt import networks, seeding
from pipeline.base import files
from pipeline.params.schema import Params
from pipeline.store import cards, models
from pipeline.store.dataset import Dataset, Labels
from pipeline.training.device import place
from pipeline.training.plan import System
from pipeline.training.start_weights.start import started


def fresh_network(system: System, params: Params, dataset: Dataset, device: torch.device) -> nn.Module:
    """The network that a system starts from.

    The initialisation depends on the seed, the iteration and the number of outputs alone, so that cross entropy and
    MLNT start alike in iteration 1 and their difference is that of the method. A second backbone has its own.

    Raises:
        UserError: unknown name, weights of another network, or weights that cannot be had.
    """
    backbone = fresh_backbone(system, params, dataset)
    return place(system.network(backbone, len(dataset.class_names)), params.compute, device)


def fresh_backbone(system: System, params: Params, dataset: Dataset) -> Callable[[int, int], nn.Module]:
    """What makes the backbone of a number, from 0, with so many outputs, as a system starts from it."""

    def backbone(number: int, outputs: int) -> nn.Module:
        seed = seeding.derive(params.seed, "initialisation", *system.address(number))
        made = started(params.model, outputs, dataset.images.shape[1], seed)
        if params.train.batch_norm == "start":
            networks.freeze_statistics_(made)
        return made

    return backbone


def empty_network(system: System, params: Params, dataset: Dataset, device: torch.device) -> nn.Module:
    """A system's network, to load saved weights into; no start weights are fetched."""
    name, in_chans = params.model.name, dataset.images.shape[1]

    def backbone(_: int, outputs: int) -> nn.Module:
        return networks.create_model(name, num_classes=outputs, in_chans=in_chans, seed=0)

    return place(system.network(backbone, len(dataset.class_names)), params.compute, device)


def best_weights(params: Params, labels: Labels, stage: str) -> Path:
    """The file with the weights of a stage's best model."""
    card = cards.read_card(stage, params.model.name, labels.digest)
    return models.weights_file(stage, card.mentor, "best")


def load_best(
    system: System, params: Params, dataset: Dataset, labels: Labels, device: torch.device
) -> tuple[nn.Module, str]:
    """A system's best model on validation, in eval mode without gradient, and the digest of its weights."""
    path = best_weights(params, labels, system.stage)
    module = models.load_into(empty_network(system, params, dataset, device), path)
    return module.eval().requires_grad_(False), files.file_digest(path)
