"""What the scripts of this folder share: changed parameters, runs outside of DVC, means with standard errors."""

from __future__ import annotations

import csv
import json
import os
import statistics
from pathlib import Path
from typing import Any

from pipeline import params_file
from pipeline.params import Params
from pipeline.stages import download, evaluate, features, noise, train


def checked(values: dict[str, Any], seed: int) -> Params:
    return params_file.check({**values, "seed": seed}, Path("params.yaml"))


def set_key(values: dict[str, Any], key: str, value: Any) -> None:
    section, _, name = key.partition(".")
    values[section][name] = value


def read_changed(path: Path, changes: list[str]) -> dict[str, Any]:
    """A parameter file with KEY=VALUE changes, the values as JSON."""
    values: dict[str, Any] = params_file.read_yaml(path)
    for change in changes:
        key, _, value = change.partition("=")
        set_key(values, key, json.loads(value))
    return values


def step_options(params: Params) -> dict[str, Any]:
    """What `MLNTStep` is made with, without a mentor."""
    mlnt = params.mlnt
    return {
        "num_synthetic": mlnt.M,
        "replace_fraction": mlnt.rho,
        "num_neighbors": mlnt.neighbors,
        "inner_lr": mlnt.alpha,
        "momentum": params.train.momentum,
        "weight_decay": params.train.weight_decay,
        "order": mlnt.order,
        "update": mlnt.update,
        "kl_reduction": mlnt.kl_reduction,
        "teacher_bn": mlnt.teacher_bn,
        "batched": mlnt.batched,
    }


def run_pipeline(params: Params, folder: Path) -> None:
    """Every stage but the report, in this process, in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    download.run(params)
    noise.run(params)
    train.run(params, "pretrain")
    features.run(params)
    for stage in ("meta1", "meta2", "meta3", "control2", "control3"):
        train.run(params, stage)
    evaluate.run(params)


def standard_error(values: list[float]) -> float:
    return statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")


def paired(left: list[float], right: list[float]) -> list[float]:
    return [a - b for a, b in zip(left, right, strict=True)]


def write_table(out: Path, table: list[dict[str, Any]]) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(table[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)
