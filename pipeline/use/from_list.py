"""`mlnt preset NAME --from-list`: what a run of heads has found, as where fine-tuning begins.

The labels that it lists are left out of training and validation, and the network begins with the classifier that made
the list: a linear probe first, then all weights (Kumar et al. 2022, arXiv 2202.10054).
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.base import console, files
from pipeline.base.errors import UserError
from pipeline.params import presets
from pipeline.params.load import leaves, load, values_of
from pipeline.params.schema import Params
from pipeline.use.export import labels, model_formats

FOLDER = Path("exports/from_list")
LABELS, WEIGHTS = FOLDER / "csv", FOLDER / "timm"
OTHERS = ("data.source", "data.limit", "data.limit_test")
"""Of the section `data`, what is the preset's. The rest is the run's: the images are those that the list was made
with."""


def apply(name: str, target: Path, model: Path) -> list[str]:
    """Export the labels that are left and the model; merge the preset into the run's parameter file, so that it begins
    there. All of it is done, or nothing.

    Args:
        target: the parameter file; its run has ended.
        model: the folder of the model that made the list.

    Returns:
        A line for each change, as `presets.apply`.

    Raises:
        UserError: the preset does not fine-tune; the run is none of heads; the list has every training label of a
            class; the exports are there.
        RunError: they could not be written.
    """
    params, preset = load(target), leaves(presets.read(name, target.parent / presets.FOLDER))
    if (preset.get("data.source"), preset.get("model.train")) != ("imagefolder", "all"):
        raise UserError("--from-list: expected a preset that fine-tunes own images, such as imagefolder")
    if params.model.train != "head":
        raise UserError(
            f"--from-list: found model.train: {params.model.train}; expected a run of `mlnt preset imagefolder-quick`, "
            "whose list and classifier it begins with"
        )
    if params.data.root == str(LABELS / "labels.csv"):
        raise UserError(
            f"--from-list: found data.root: {params.data.root}, of an earlier list; expected your own images"
        )
    if FOLDER.exists():
        raise UserError(f"--from-list: {FOLDER} is there already, perhaps of an earlier list; remove it")
    try:
        console.say(labels.run(params, "csv", "drop", changed_only=False, out=LABELS, keep_test=True, complete=True))
        console.say(model_formats.run("timm", model, WEIGHTS))
        return presets.apply(name, target, _instead(params, preset))
    except BaseException:
        shutil.rmtree(FOLDER, ignore_errors=True)
        raise


def _instead(params: Params, preset: Mapping[str, Any]) -> dict[str, Any]:
    """What takes the place of the preset's values.

    Raises:
        UserError: the list leaves too few images.
    """
    kept = values_of(params, ("data",))
    both = {**values_of(params, ("noise", "train", "mlnt")), **preset}
    left = Counter(row["split"] for row in files.read_csv(LABELS / "labels.csv"))
    return {key: value for key, value in kept.items() if key not in OTHERS} | {
        "data.root": str(LABELS / "labels.csv"),
        "data.url": None,
        "data.sha256": None,
        "noise.corrections": None,  # are in the labels
        "model.name": params.model.name,
        "model.normalize": params.model.normalize,
        "model.pretrained": False,
        "model.weights": str(WEIGHTS / "model.safetensors"),
        "train.batch_size": presets.batch_size(both, left["train"], left["val"], "--from-list: the list leaves"),
        # The last weights are kept: few images are left to validate on, too few to tell one epoch from the next.
        "train.evaluate_every": both["train.epochs"],
    }
