"""What a network starts from: nothing, timm's trained weights, or a file."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from torch import nn

from mlnt import networks
from pipeline import files
from pipeline.errors import UserError
from pipeline.params.schema import Model
from pipeline.training import pretrained


def started(model: Model, num_classes: int, in_chans: int, seed: int) -> nn.Module:
    """The network of params.yaml with its start weights; what has none is initialised by the seed alone.

    Raises:
        UserError: unknown name, weights of another network, or weights that cannot be had.
    """
    if model.pretrained:
        pretrained.require_weights(model)
    try:
        backbone = networks.create_model(
            model.name, num_classes=num_classes, in_chans=in_chans, seed=seed, pretrained=model.pretrained
        )
    except ValueError as error:
        raise UserError(f"model.name: {error}") from error
    except (OSError, RuntimeError) as error:
        raise UserError(f"model: {model.name} could not be built with these weights: {error}") from error
    if model.weights:
        _start_from(backbone, files.resolve(model.weights))
    return backbone


def _start_from(backbone: nn.Module, weights: Path) -> None:
    """
    Raises:
        UserError: no such file, a damaged one, or weights that do not fit.
    """
    try:
        networks.load_matching_(backbone, weights)
    except FileNotFoundError as error:
        raise UserError(f"model.weights: {weights}: no such file") from error
    except ValueError as error:
        raise UserError(f"model.weights: {error}") from error
    except SafetensorError as error:
        raise UserError(f"model.weights: {weights}: damaged or no safetensors file ({error})") from error
    except (OSError, RuntimeError) as error:
        raise UserError(f"model.weights: {weights}: could not be read: {error}") from error


def start_digest(model: Model) -> str:
    """The digest of the file that the network starts from, "" for none; part of the checkpoint's identity.

    Raises:
        UserError: it cannot be read.
    """
    if not model.weights:
        return ""
    path = files.resolve(model.weights)
    try:
        return files.file_digest(path)
    except OSError as error:
        raise UserError(f"model.weights: {path}: could not be read: {error.strerror}") from error


def identity(model: Model) -> str:
    """Which network it starts as: its name, and what its weights are."""
    return f"{model.name} {start_digest(model) or 'pretrained'}, normalize {model.normalize}"
