"""What the scripts of this folder share: changed parameters, runs outside of DVC, what came out of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.paper.statistics import accuracy
from pipeline.params.load import changed, check, read_yaml
from pipeline.params.schema import Params
from pipeline.stages import download, embed, evaluate, features, noise, train
from pipeline.systems.registry import GROUPS


def checked(values: dict[str, Any], seed: int) -> Params:
    return check({**values, "seed": seed}, Path("params.yaml"))


def read_changed(path: Path, changes: list[str]) -> dict[str, Any]:
    """A parameter file with KEY=VALUE changes, the values as JSON."""
    pairs = [change.partition("=") for change in changes]
    return changed(read_yaml(path), {key: json.loads(value) for key, _, value in pairs})


def test_accuracies(history: list[Any]) -> dict[tuple[str, str], float]:
    """(model, choice) → of test, in percent: at its best epoch on validation, and at the last."""
    cells = [(model, choice) for model in ("student", "teacher") for choice in ("best", "last")]
    return {cell: 100 * (accuracy(history, *cell, "test") or 0.0) for cell in cells}


def paired(left: Sequence[float], right: Sequence[float]) -> list[float]:
    """left − right, seed by seed."""
    return [a - b for a, b in zip(left, right, strict=True)]


STAGES = {
    "download": download.run,
    "noise": noise.run,
    "embed": embed.run,
    "features": features.run,
    "evaluate": evaluate.run,
    **{f"evaluate {name}": partial(evaluate.run, group=name) for name in GROUPS},
}


def run_stage(params: Params, stage: str) -> None:
    """A stage in this process, in this folder."""
    STAGES[stage](params) if stage in STAGES else train.run(params, stage)
