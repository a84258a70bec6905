"""The weights of a file, for a network that may have other classes or channels: `model.weights`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mlnt.networks import classifier_names
from pipeline.base import console


def load_matching_(model: nn.Module, path: Path) -> list[str]:
    """Start from the weights of a file, safetensors or PyTorch's; mutates `model`.

    A prefix of all names (`module.`, `model.`, `state_dict.module.`) is taken off. Classifiers that are missing, or of
    another number of classes, stay fresh. Weights for three channels are summed up for one, and those for one spread
    over three, as timm does it: grey images give the same values either way. Other tensors of the file are ignored,
    with a warning where they have the prefix.

    Returns:
        The names of the classifiers that stayed fresh.

    Raises:
        ValueError: other tensors are missing or of another shape: which; the file's network has more of what this one
            has, such as layers, or values that are no finite numbers; or the file cannot be read.
    """
    tensors = _read_tensors(path)
    state = model.state_dict()
    fresh = tuple(f"{name}." for name in classifier_names(model))
    prefix = _prefix(path, tensors, [name for name in state if not name.startswith(fresh)])
    found = {name: _fitted(tensors[prefix + name], state[name]) for name in state if prefix + name in tensors}
    other = {name: value for name, value in found.items() if _kind(value) != _kind(state[name])}
    found = {name: value for name, value in found.items() if name not in other}
    for classifier in fresh:  # as a whole: its weight with another one's bias is no classifier
        if any(name.startswith(classifier) and name not in found for name in state):
            found = {name: value for name, value in found.items() if not name.startswith(classifier)}
    filled = {state[name].data_ptr() for name in found}  # a tensor that has several names may have one in the file
    # Whole numbers are tables and counters, which the network has made itself.
    left = [
        name
        for name, tensor in state.items()
        if tensor.is_floating_point() and tensor.data_ptr() not in filled and not name.startswith(fresh)
    ]
    missing = [name for name in left if name not in other]
    differ = [f"{prefix}{n} is {_kind(other[n])}, expected {_kind(state[n])}" for n in left if n in other]
    if missing or differ:
        reasons = [f"{len(missing)} of {len(state)} tensors are missing ({_first(missing)})"] if missing else []
        reasons += [f"{len(differ)} of {len(state)} have another shape or type ({_first(differ)})"] if differ else []
        if len(missing) + len(differ) > len(state) / 2:
            own = [name for name, tensor in tensors.items() if tensor.is_floating_point()]
            reasons.append(f"its own begin with {_first(own)}: it is of another network")
        raise ValueError(f"{path}: does not fit: {'; '.join(reasons)}")
    _look_at_the_rest(path, tensors, prefix, [name for name in state if not name.startswith(fresh)], fresh)
    for name, value in found.items():  # a few networks have limits that are infinite
        if not value.float().isfinite().all() and state[name].isfinite().all():
            raise ValueError(
                f"{path}: {prefix}{name} holds values that are nan or infinite, expected finite numbers: the training "
                "that it is from has failed, or the file is damaged; take weights from before that"
            )
    model.load_state_dict(found, strict=False)
    return [name.removesuffix(".") for name in fresh if not any(other.startswith(name) for other in found)]


def _read_tensors(path: Path) -> dict[str, Tensor]:
    """A file's tensors by name; those in dictionaries within dictionaries by all names, joined by dots."""
    from safetensors.torch import load_file

    with path.open("rb") as file:
        pickled = file.read(4).startswith((b"PK\x03\x04", b"\x80"))
    if not pickled:
        return load_file(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged, or Python objects beside the tensors
        raise ValueError(
            f"{path}: found a PyTorch file that is damaged or holds more than tensors ({str(error).splitlines()[0]}); "
            "expected tensors alone: if you trust it, save the state_dict in it by safetensors.torch.save_file"
        ) from error
    return dict(_flat(content))


def _flat(content: Any, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(content, Tensor):
        yield prefix.removesuffix("."), content
    elif isinstance(content, Mapping):
        for name, value in content.items():
            yield from _flat(value, f"{prefix}{name}.")


def _prefix(path: Path, tensors: Mapping[str, Tensor], names: Sequence[str]) -> str:
    """What stands before most of the names in a file.

    Raises:
        ValueError: two networks in it fit equally well.
    """
    some = names[:: max(1, len(names) // 8)]
    ends = {key.removesuffix(name) for name in some for key in tensors if f".{key}".endswith(f".{name}")} | {""}
    fitting = {prefix: sum(prefix + name in tensors for name in names) for prefix in ends}
    best = sorted(prefix for prefix, count in fitting.items() if count == max(fitting.values()))
    if len(best) > 1 and "" not in best:
        raise ValueError(f"{path}: holds several networks, whose names begin with {_first(best)}; leave one in it")
    return "" if "" in best else best[0]


def _look_at_the_rest(
    path: Path, tensors: Mapping[str, Tensor], prefix: str, names: Sequence[str], fresh: tuple[str, ...]
) -> None:
    """Warn of tensors that the network has no place for, such as a head of self-supervised training.

    Args:
        names: the network's tensors, classifiers aside.
        fresh: what the names of its classifiers begin with.

    Raises:
        ValueError: some belong where others are taken from: a deeper network would be cut off.
    """
    here = {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
    own, lists = set(names), {_list(name) for name in names}
    rest = [n for n, t in here.items() if t.is_floating_point() and n not in own and not n.startswith(fresh)]
    if cut := [prefix + name for name in rest if _list(name) in lists]:
        raise ValueError(
            f"{path}: does not fit: {len(cut)} of its {len(here)} tensors have no place in this network "
            f"({_first(cut)}): it is of another network, which has more layers; set model.name to that one"
        )
    if rest:
        console.warn(
            f"model.weights: {path}: {len(rest)} of its {len(here)} tensors have no place in this network, and are "
            f"left out ({_first([prefix + name for name in rest])})"
        )


def _list(name: str) -> str:
    """Where a tensor stands: its name up to the first number, without which it is alone."""
    return re.split(r"\d", name, maxsplit=1)[0]


def _fitted(value: Tensor, expected: Tensor) -> Tensor:
    """A tensor as it is, or the weight of a first convolution for another number of channels."""
    if value.ndim == 4 and value.shape[0] == expected.shape[0] and value.shape[2:] == expected.shape[2:]:
        channels = value.shape[1], expected.shape[1]
        if channels == (3, 1):
            return value.float().sum(dim=1, keepdim=True)
        if channels == (1, 3):
            return value.float().expand(-1, 3, -1, -1) / 3
    return value


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


def _kind(tensor: Tensor) -> str:
    """Its shape, and its type where that is no floating-point number."""
    shape = " × ".join(map(str, tensor.shape)) or "a number"
    return shape if tensor.is_floating_point() else f"{shape} of {tensor.dtype}".replace("torch.", "")
