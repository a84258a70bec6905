"""How long experiments will take on this machine: passes through their networks, timed here and now."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F

from mlnt.networks import create_model
from pipeline.paper.grid import PARAMS, Values
from pipeline.params.load import check
from pipeline.params.schema import Params
from pipeline.training.build import place
from pipeline.training.device import amp_dtype, prepare

# Training samples before the validation split is taken off, channels, pixels a side, classes.
SOURCES = {"digits": (1078, 1, 8, 10), "cifar10": (50_000, 3, 32, 10), "clothing1m": (1_000_000, 3, 224, 14)}
START_UP_SECONDS = 4.0  # of a stage: Python, torch, DVC's look at inputs and outputs
STAGES_BEFORE = 3  # download, noise, features
TIMED = 3


def seconds(runs: Iterable[Values], stages: Sequence[str]) -> float | None:
    """The seconds that one worker needs for all runs; None where the size of the data is not known beforehand.

    A step of cross entropy or of a baseline counts as 4 forward passes: the student's, its backward pass as two, and
    the teacher's. A step of MLNT counts as 5 + 5M, and as a third more with second order. The time of one is a third of
    a forward and backward pass, measured on this machine.
    """
    per_pass: dict[tuple[object, ...], float] = {}
    total = 0.0
    for values in runs:
        params = check(values, PARAMS)
        if params.data.source not in SOURCES:
            return None
        key = (
            params.data.source,
            params.model.name,
            params.train.batch_size,
            params.compute.amp,
            params.compute.threads,
        )
        if key not in per_pass:
            per_pass[key] = _pass_seconds(params)
        total += START_UP_SECONDS * (STAGES_BEFORE + len(stages))
        total += per_pass[key] * sum(_passes(params, stage) for stage in stages)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # the experiments want the memory that this process would keep
    return total


def _passes(params: Params, stage: str) -> float:
    """Forward passes of a whole stage, a backward pass being two."""
    size = SOURCES[params.data.source][0]
    if params.data.source != "clothing1m":
        size = round((1 - params.noise.validation_fraction) * min(size, params.data.limit or size))
    epochs = params.joint_optimization.epochs if stage == "joint_optimization_1" else params.train.epochs
    steps = epochs * (size // params.train.batch_size)
    if not stage.startswith("meta"):
        return 4.0 * steps
    return (5 + 5 * params.mlnt.M) * steps * (4 / 3 if params.mlnt.order == "second" else 1.0)


def _pass_seconds(params: Params) -> float:
    """The seconds of a third of a forward and backward pass over one batch; the fastest of `TIMED` tries."""
    _, channels, pixels, classes = SOURCES[params.data.source]
    device = prepare(params.compute)
    module = place(
        create_model(params.model.name, num_classes=classes, in_chans=channels, seed=0), params.compute, device
    )
    images = torch.zeros(params.train.batch_size, channels, pixels, pixels, device=device)
    labels = torch.zeros(len(images), dtype=torch.int64, device=device)
    dtype = amp_dtype(params.compute)
    found = []
    for _ in range(TIMED):
        start = time.perf_counter()
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            loss = F.cross_entropy(module(images), labels)
        torch.autograd.grad(loss, list(module.parameters()))
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        found.append(time.perf_counter() - start)
    return min(found) / 3
