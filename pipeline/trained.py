"""The models that earlier stages have trained, ready for use."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from pipeline import files, runtime, weights
from pipeline.artifacts import Dataset, Labels
from pipeline.params import Params


def best_weights(params: Params, labels: Labels, stage: str) -> Path:
    """The file with the weights of a stage's best model."""
    card = weights.read_card(stage, params.model.name, labels.digest)
    return weights.weights_file(stage, card.mentor, "best")


def load_best(
    params: Params, dataset: Dataset, labels: Labels, stage: str, device: torch.device
) -> tuple[nn.Module, str]:
    """A stage's best model on validation, in eval mode without gradient, and the digest of its weights."""
    path = best_weights(params, labels, stage)
    module = weights.load_into(runtime.empty_network(params, dataset, device), path)
    return module.eval().requires_grad_(False), files.file_digest(path)
