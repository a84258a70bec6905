"""`mlnt preset NAME --from-list`: what a run of heads has found, as where fine-tuning begins.

The labels that it lists are left out of training and validation, and the network begins with the classifier that made
the list: a linear probe first, then all weights (Kumar et al. 2022, arXiv 2202.10054).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.base import console
from pipeline.base.errors import UserError
from pipeline.params.load import leaves, values_of
from pipeline.params.schema import Params
from pipeline.use.export import labels, model_formats

LABELS, WEIGHTS = Path("exports/csv"), Path("exports/timm")
KEPT = (
    "data.channels", "data.resize", "data.interpolation", "data.crop", "data.storage", "model.name", "model.normalize",
)  # fmt: skip
"""The images and the network are those that the list was made with."""


def prepare(params: Params, preset: Mapping[str, Any], model: Path) -> dict[str, Any]:
    """Export the labels that are left and the model; returns the parameters that take the place of the preset's.

    Args:
        params: of the run.
        preset: the preset's values.
        model: the folder of the model that made the list.

    Raises:
        UserError: the preset does not fine-tune; the run is none of heads or not finished; the exports are there.
        RunError: they could not be written.
    """
    wanted = leaves(preset)
    if (wanted.get("data.source"), wanted.get("model.train")) != ("imagefolder", "all"):
        raise UserError("--from-list: expected a preset that fine-tunes own images, such as imagefolder")
    if params.model.train != "head":
        raise UserError(
            f"--from-list: found model.train: {params.model.train}; expected a run of `mlnt preset imagefolder-quick`, "
            "whose list and classifier it begins with"
        )
    for folder in (LABELS, WEIGHTS):
        if folder.exists():
            raise UserError(f"--from-list: {folder} is there already, perhaps of an earlier list; remove it")
    console.say(labels.run(params, "csv", "drop", changed_only=False, out=LABELS, keep_test=True))
    console.say(model_formats.run("timm", model, WEIGHTS))
    values = values_of(params, ("data", "model"))
    return {key: values[key] for key in KEPT} | {
        "data.root": str(LABELS / "labels.csv"),
        "noise.corrections": None,  # are in the labels
        "model.pretrained": False,
        "model.weights": str(WEIGHTS / "model.safetensors"),
        # The last weights are kept: few images are left to validate on, too few to tell one epoch from the next.
        "train.evaluate_every": wanted.get("train.epochs", params.train.epochs),
    }
