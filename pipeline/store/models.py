"""models/<stage>/: the weights of a finished training stage, as safetensors, and what they are."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from mlnt.images.statistics import InputStatistics
from pipeline.base import files
from pipeline.base.errors import UserError, damaged
from pipeline.store.cards import ModelCard, folder

CHOICES = ("best", "last")
INPUT = "input.safetensors"
CHECKSUM = "sha256"


def weights_name(model: str, choice: str) -> str:
    return f"{model}_{choice}.safetensors"


def weights_file(stage: str, model: str, choice: str) -> Path:
    return folder(stage) / weights_name(model, choice)


def fold_file(stage: str, number: int | Literal["*"]) -> Path:
    """The weights, as they were trained, of the network that has not seen part `number` of the training set."""
    return folder(stage) / f"fold_{number}.safetensors"


def out_of_fold_file(stage: str) -> Path:
    """`probabilities` [n, C] of all training samples, each by the network that has not seen it, and the number of that
    network, `part` [n]."""
    return folder(stage) / "out_of_fold.safetensors"


def save_models(
    stage: str,
    weights: Mapping[tuple[str, str], Mapping[str, Tensor]],
    statistics: InputStatistics,
    card: ModelCard,
    others: Mapping[Path, Mapping[str, Tensor]],
) -> None:
    """Write the weights by (model, choice), other tensors by file, the input statistics, and last of all the card.

    What an earlier run left of its folds is removed. Weights without a card are not used: after an interruption, those
    of two runs cannot be mixed.
    """
    files.remove(folder(stage) / "model.json")
    for (model, choice), tensors in weights.items():
        save_tensors(weights_file(stage, model, choice), tensors)
    for path, tensors in others.items():
        save_tensors(path, tensors)
    for path in [*folder(stage).glob(fold_file(stage, "*").name), out_of_fold_file(stage)]:
        if path not in others:
            files.remove(path)
    save_tensors(folder(stage) / INPUT, {"mean": statistics.mean, "std": statistics.std})
    files.write_json(folder(stage) / "model.json", asdict(card))


def load_statistics(place: Path) -> InputStatistics:
    """What images were normalised by, from a model's folder.

    Raises:
        UserError: the file is missing or damaged.
    """
    tensors = load_tensors(place / INPUT)
    if missing := {"mean", "std"} - tensors.keys():
        raise damaged(place / INPUT, f"lacks {', '.join(sorted(missing))}")
    return InputStatistics(tensors["mean"], tensors["std"])


def load_into(module: nn.Module, path: Path) -> nn.Module:
    """Load a weights file into the network; mutates and returns it.

    Raises:
        UserError: the file is missing, damaged, or belongs to another network.
    """
    try:
        module.load_state_dict(load_tensors(path))
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise UserError(f"{path}: not the weights of this network ({reason}); train it again: `dvc repro`") from error
    return module


def load_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU.

    Raises:
        UserError: the file is missing or damaged.
    """
    return load_with_metadata(path)[0]


def load_with_metadata(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata that `save_tensors` wrote.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; `dvc repro` makes it") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise damaged(path, error) from error
    if metadata.pop(CHECKSUM, "") != _checksum(tensors, metadata):
        raise damaged(path, "its checksum does not fit")
    return tensors, metadata


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file, atomically and with a checksum; tensors are stored in their plain memory format.

    Raises:
        RunError: the folder cannot be written or the disk is full.
    """
    content = encoded(tensors, metadata)
    with files.replacing(path) as temporary:
        # Not `save_file`, which writes beside the file it is given: after kill -9 nobody would remove that one.
        temporary.write_bytes(content)


def encoded(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """What `save_tensors` writes. Tensors that share memory, as layers with tied weights do, are written out each."""
    plain: dict[str, Tensor] = {}
    memory: set[int] = set()
    for key, value in tensors.items():
        tensor = value.detach().cpu().contiguous(memory_format=torch.contiguous_format)
        # safetensors refuses two names for one memory.
        plain[key] = tensor.clone() if tensor.untyped_storage().data_ptr() in memory else tensor
        memory.add(tensor.untyped_storage().data_ptr())
    about = dict(metadata or {})
    about[CHECKSUM] = _checksum(plain, about)
    return save(plain, about)


def _checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for key, value in sorted(tensors.items()):
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
