"""`mlnt export model`: a trained model for timm, or as ONNX, tried before it is handed over."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch

from pipeline.base.errors import RunError
from pipeline.use.export import onnx_model, timm_model
from pipeline.use.export.folder import new_folder
from pipeline.use.prediction.classifier import Classifier

FORMATS: dict[str, Any] = {"timm": timm_model, "onnx": onnx_model}
TOLERANCE = 1e-3
"""Of the logits, absolute and relative; other libraries add in another order."""


def run(kind: Literal["timm", "onnx"], model: Path, out: Path | None) -> str:
    """Write the folder, read it back as its users will, compare logits; returns a line that says how to use it.

    Raises:
        UserError: no model, one that the format cannot express, a missing package, or something is at `out`.
        RunError: what was written gives other logits, or could not be written.
    """
    exporter, out = FORMATS[kind], out or Path("exports") / kind
    with new_folder(out) as folder:
        classifier = Classifier.load(model, torch.device("cpu"))
        exporter.require(classifier)
        exporter.write(classifier, folder)
        for size in (2, 3):  # the batch is free
            pixels = torch.rand(size, *classifier.card.shape, generator=torch.Generator().manual_seed(size))
            expected, found = classifier.logits(pixels), exporter.read(classifier, folder, pixels)
            if not torch.allclose(found, expected, rtol=TOLERANCE, atol=TOLERANCE):
                apart = float((found - expected).abs().max())
                raise RunError(f"{out}: what was written gives other logits, up to {apart:.3g} apart; nothing is left")
    return f"export: {classifier.name} → {out}; {exporter.use(classifier, out)}"
