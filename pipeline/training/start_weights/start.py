"""The network of params.yaml with its start weights, and which these are."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from torch import nn

from mlnt import networks
from pipeline.base import files
from pipeline.base.errors import UserError
from pipeline.params.schema import Model
from pipeline.training.start_weights import pretrained
from pipeline.training.start_weights.matching import load_matching_


def started(model: Model, num_classes: int, in_chans: int, seed: int) -> nn.Module:
    """The network of params.yaml with its start weights; what has none is initialised by the seed alone: a classifier
    on trained weights as PyTorch does it, see `networks.reset_`.

    Raises:
        UserError: unknown name, weights of another network, or weights that cannot be had.
    """
    if model.pretrained:
        pretrained.weights_file(model)
    try:
        backbone = networks.create_model(
            model.name, num_classes=num_classes, in_chans=in_chans, seed=seed, pretrained=model.pretrained
        )
    except ValueError as error:
        raise UserError(f"model.name: {error}") from error
    except (OSError, RuntimeError) as error:
        raise UserError(f"model: {model.name} could not be built with these weights: {error}") from error
    if model.weights:
        networks.reset_(backbone, _start_from(backbone, files.resolve(model.weights)), seed)
    elif model.pretrained and not pretrained.knows_classes(backbone, num_classes):
        networks.reset_(backbone, networks.classifier_names(backbone), seed)
    return backbone


def _start_from(backbone: nn.Module, weights: Path) -> list[str]:
    """
    Returns:
        The names of the classifiers that stayed fresh.

    Raises:
        UserError: no such file, a damaged one, or weights that do not fit.
    """
    try:
        return load_matching_(backbone, weights)
    except FileNotFoundError as error:
        raise UserError(f"model.weights: {weights}: no such file") from error
    except ValueError as error:
        raise UserError(f"model.weights: {error}") from error
    except SafetensorError as error:
        raise UserError(f"model.weights: {weights}: damaged or no safetensors file ({error})") from error
    except (OSError, RuntimeError) as error:
        raise UserError(f"model.weights: {weights}: could not be read: {error}") from error


def start_digest(model: Model) -> str:
    """The digest of the file that the network starts from, `model.weights` or what the Hugging Face hub has given; ""
    where there is none, and for the few networks whose trained weights timm has from elsewhere.

    Raises:
        UserError: it cannot be had or read.
    """
    if model.pretrained:
        path = pretrained.weights_file(model)
        return "" if path is None else _digest("model.pretrained", path)
    return _digest("model.weights", files.resolve(model.weights)) if model.weights else ""


def digest_here(model: Model, hub: str) -> str:
    """What `start_digest` gives, as far as it can be told at once and without a network: timm, which knows where
    weights are, is slow to import.

    Args:
        hub: the repository of the weights of `model.pretrained`.

    Returns:
        "" where it cannot: the weights are on another machine, and here they are needed no more.

    Raises:
        UserError: `model.weights` cannot be read.
    """
    if model.weights:
        return start_digest(model)
    path = pretrained.cached(hub)
    return "" if path is None else _digest("model.pretrained", path)


def _digest(key: str, path: Path) -> str:
    try:
        return files.file_digest(path)
    except OSError as error:
        raise UserError(f"{key}: {path}: could not be read: {error.strerror}") from error


def identity(model: Model) -> str:
    """Which network it starts as, its weights aside."""
    return f"{model.name}, normalize {model.normalize}"
