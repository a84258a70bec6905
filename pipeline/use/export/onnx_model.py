"""A model as ONNX: one file, the normalisation in its graph."""

from __future__ import annotations

import importlib.util
import json
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.base.errors import UserError
from pipeline.use.prediction.classifier import Classifier

NEEDED = ("onnx", "onnxscript", "onnxruntime")
FILE = "model.onnx"


class Normalized(nn.Module):
    """Images [B, C, H, W] in [0, 1] ↦ logits [B, K]."""

    mean: Tensor
    std: Tensor

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.network = classifier.module
        self.register_buffer("mean", classifier.statistics.mean)
        self.register_buffer("std", classifier.statistics.std)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network((images - self.mean) / self.std)
        return logits


def require(_: Classifier) -> None:
    """
    Raises:
        UserError: a package is missing.
    """
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        raise UserError(
            f"--format: found onnx, but {' and '.join(missing)} cannot be imported; install the extra: "
            'pip install "mlnt[export]", in a clone pip install -e ".[export]"'
        )


def write(classifier: Classifier, folder: Path) -> None:
    """Write model.onnx: `images` float32 [batch, C, H, W] in [0, 1] ↦ `logits`. Its metadata have the classes' names,
    and how images are prepared.

    Raises:
        UserError: torch cannot express the network in ONNX.
    """
    card = classifier.card
    module = Normalized(classifier).eval()
    example = torch.zeros(2, *card.shape)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own, about itself
            program: Any = torch.onnx.export(
                module,
                (example,),
                dynamo=True,
                input_names=["images"],
                output_names=["logits"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                verbose=False,
            )
        about = {"class_names": card.class_names, "shape": card.shape, **classifier.options._asdict()}
        program.model.metadata_props.update({key: json.dumps(value) for key, value in about.items()})
        program.save(folder / FILE)
    except (torch.onnx.errors.OnnxExporterError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"--format: torch cannot write this {card.network} as onnx: {reason}; expected timm") from error


def read(_: Classifier, folder: Path, pixels: Tensor) -> Tensor:
    """The logits [B, K] that onnxruntime gives for images [B, C, H, W] in [0, 1]."""
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / FILE, providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"images": pixels.numpy()})
    return torch.from_numpy(logits)


def use(classifier: Classifier, out: Path) -> str:
    shape = ", ".join(map(str, classifier.card.shape))
    return f"onnxruntime.InferenceSession({str(out / FILE)!r}) takes `images` [batch, {shape}], float32 in [0, 1]"
