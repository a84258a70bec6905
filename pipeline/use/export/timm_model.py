"""A model as timm keeps it: config.json, with the names of the classes and how images are prepared, and weights."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mlnt.networks import BUILT_IN, register_in_timm
from pipeline.base import console
from pipeline.base.errors import UserError
from pipeline.systems.registry import BY_STAGE
from pipeline.use.prediction.classifier import Classifier


def require(classifier: Classifier) -> None:
    """
    Raises:
        UserError: timm has no place for a part of the model.
    """
    card = classifier.card
    if BY_STAGE[card.system].wrap is not None:
        raise UserError(f"--format: found timm, but {card.system} is more than a network of timm; expected onnx")
    if _has_mean_image(classifier) and card.network not in BUILT_IN:
        raise UserError(
            f"--format: found timm, but this {card.network} was trained with model.normalize mean_image, a mean for "
            "each pixel, and timm knows one for each channel; expected onnx, or a model trained with model.normalize "
            "channel"
        )


def write(classifier: Classifier, folder: Path) -> None:
    """Write config.json and model.safetensors.

    A mean for each pixel goes into the network, where that is one of `mlnt.networks`.
    """
    import timm
    from timm.models import save_for_hf

    card, statistics = classifier.card, classifier.statistics
    register_in_timm()
    options: dict[str, Any] = {"num_classes": len(card.class_names), "in_chans": card.shape[0]}
    weights = classifier.module.state_dict()
    mean, std = statistics.mean.flatten().tolist(), statistics.std.flatten().tolist()
    if _has_mean_image(classifier):
        options["mean_shape"], weights["mean_image"] = card.shape, statistics.mean
        mean, std = [0.0] * card.shape[0], [1.0] * card.shape[0]
    network: nn.Module = timm.create_model(card.network, **options)
    network.load_state_dict(weights)
    prepared = {
        "input_size": card.shape,
        "interpolation": classifier.options.interpolation,
        "crop_mode": "squash",  # to a square, whatever the image's sides
        "crop_pct": _crop_share(classifier),
        "mean": mean,
        "std": std,
        "tag": "",
        "test_input_size": None,
        "test_crop_pct": None,
    }
    about = {"label_names": card.class_names, "pretrained_cfg": prepared}
    try:
        save_for_hf(network, str(folder), model_config=about, safe_serialization=True)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"--format: timm cannot save this {card.network}: {error}; expected onnx") from error
    (folder / "model.safetensors").chmod(0o644)  # safetensors makes it for its owner alone


def read(_: Classifier, folder: Path, pixels: Tensor) -> Tensor:
    """The logits [B, K] that timm's users get for images [B, C, H, W] in [0, 1]."""
    import timm

    network = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    mean, std = (torch.tensor(network.pretrained_cfg[key]).view(-1, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        logits: Tensor = network((pixels - mean) / std)
    return logits


def use(classifier: Classifier, out: Path) -> str:
    options = classifier.options
    if options.crop is not None and options.resize is None:
        console.warn(
            f"{out}: timm's transform resizes the whole image, and this model was trained on the middle square of "
            f"{options.crop} pixels of images of any size; crop them yourself"
        )
    first = ""
    if classifier.card.network in BUILT_IN:
        first = "from mlnt.networks import register_in_timm; register_in_timm(); "
    return f'{first}timm.create_model("local-dir:{out}", pretrained=True)'


def _has_mean_image(classifier: Classifier) -> bool:
    return classifier.statistics.mean.shape[1:] != (1, 1)


def _crop_share(classifier: Classifier) -> float:
    """crop_pct, by which timm computes the size to resize to before the middle square is taken."""
    resize, crop = classifier.options.resize, classifier.options.crop
    if resize is None or crop is None:
        return 1.0
    share = crop / resize
    return share if math.floor(crop / share) == resize else math.nextafter(share, 0.0)
