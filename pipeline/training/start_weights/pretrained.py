"""What timm knows of a network's trained weights: how their images were normalised, and whether they can be had."""

from __future__ import annotations

import os
import urllib.request
from pathlib import Path
from typing import Any, NamedTuple

from mlnt import networks
from mlnt.images.statistics import InputStatistics
from pipeline.base.errors import UserError
from pipeline.params.schema import Model

FILE = "model.safetensors"
"""The weights in a repository of the Hugging Face hub."""
ANSWER_S = 10.0
"""How long the hub may take to answer. Its own client tries for most of a minute."""


class Configuration(NamedTuple):
    """timm's data configuration of a network's default weights.

    Attributes:
        mean, std: of each of three channels, of values in [0, 1]: the images were (x − mean) / std.
        hub: the repository of the weights on the Hugging Face hub; None where they lie elsewhere.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    hub: str | None


def repository(model: Model) -> str:
    """The repository of the weights of `model.pretrained` on the Hugging Face hub, "" where they lie elsewhere.

    Raises:
        UserError: no network has this name, or timm knows of no trained weights of it.
    """
    return _configuration("model.pretrained: found true", model.name, "false").hub or ""


def cached(hub: str) -> Path | None:
    """The weights of a repository, as the hub's client keeps them on this machine; None where it has none."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(hub, FILE) if hub else None
    return Path(found) if isinstance(found, str) else None


def weights_file(model: Model) -> Path | None:
    """The weights of `model.pretrained` as the hub's client keeps them on this machine, fetched where they are not;
    None where they lie elsewhere than on the hub.

    Raises:
        UserError: the hub does not give them; says which file would do as `model.weights`.
    """
    from huggingface_hub import hf_hub_download, hf_hub_url

    hub = repository(model)
    if not hub:
        return None
    if (found := cached(hub)) is not None:
        return found
    try:
        if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
            raise OSError("HF_HUB_OFFLINE is set")
        request = urllib.request.Request(hf_hub_url(hub, FILE), method="HEAD")
        urllib.request.urlopen(request, timeout=ANSWER_S).close()
        return Path(hf_hub_download(hub, FILE))
    except OSError as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"model.pretrained: found true, but the weights of {model.name} are not on this machine, and the Hugging "
            f"Face hub does not give them ({reason}); expected it to, or the weights as a file: on "
            f"another machine fetch {FILE} of {hub}, then set model.weights to its path and model.pretrained to false"
        ) from error


def input_statistics(name: str, channels: int) -> InputStatistics:
    """`model.normalize: pretrained`. Of grey images one value counts for all three channels, by their mean.

    Raises:
        UserError: no network has this name, or timm has no data configuration of it.
    """
    import torch

    found = _configuration("model.normalize: found pretrained", name, "mean_image or channel")
    mean, std = (torch.tensor(values, dtype=torch.float64) for values in (found.mean, found.std))
    if channels != len(found.mean):
        mean, std = mean.mean().expand(channels), std.mean().expand(channels)
    return InputStatistics(mean.float().view(-1, 1, 1), std.float().view(-1, 1, 1))


def knows_classes(backbone: Any, num_classes: int) -> bool:
    """Whether timm's weights have a classifier of that many classes, which it has loaded with them."""
    return bool(backbone.pretrained_cfg["num_classes"] == num_classes)


def _configuration(found: str, name: str, expected: str) -> Configuration:
    """Nothing is fetched, save the description of a network that lies on the hub itself."""
    import timm

    try:
        networks.check_name(name)
        cfg: Any = timm.create_model(name).pretrained_cfg if ":" in name else timm.get_pretrained_cfg(name)
    except (ValueError, RuntimeError, OSError) as error:  # no such network, tag or description on the hub
        raise UserError(f"model.name: {' '.join(str(error).split())}") from error
    values: dict[str, Any] = cfg if isinstance(cfg, dict) else {} if cfg is None else cfg.to_dict()
    if not (values.get("hf_hub_id") or values.get("url") or values.get("file")):
        raise UserError(
            f"{found}, but timm knows of no trained weights of {name}; expected {expected}, or another network "
            "(model.name)"
        )
    return Configuration(tuple(values["mean"]), tuple(values["std"]), values.get("hf_hub_id"))
