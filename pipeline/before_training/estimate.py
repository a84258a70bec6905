"""How long training will take on this machine: a few real steps of the real network, timed here and now.

The steps are those of the loop, on random pixels of the data's shape. Nothing random of a run is drawn for them.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch

from mlnt.method.step import MLNTStep
from pipeline.base import files
from pipeline.base.errors import RunError, UserError
from pipeline.before_training import timing
from pipeline.params.schema import Params
from pipeline.store.sizes import Sizes
from pipeline.training.device import describe, processes
from pipeline.training.folds import require_batch
from pipeline.training.plan import System, TimedStep
from pipeline.training.session import steps_between

CHEAP_S, SHARE, DEAR_S = 0.5, 0.01, 10.0
"""Whole batches are timed where that takes less than CHEAP_S, or SHARE of the run but at most DEAR_S."""
EMBEDDED = 32
"""Images that embedding is timed on."""
FRACTION = 2
"""Elsewhere half a batch. A fourth made resnet18 at 64 pixels seem 1.3 to 1.4 times as slow: what a step does with the
weights costs as much for fewer images."""
DVC_S = 0.5
"""Of a stage: DVC's look at inputs and outputs, and the end of the process."""
MEASURED = files.TIMINGS / "steps.json"


@dataclass(frozen=True)
class Estimate:
    """What was measured, in seconds.

    Attributes:
        params: of the run.
        sizes: of its data, the validation split taken off.
        start_up: of a process, until it trains.
        image: of a prediction of one image, or of one embedding.
        plain: of one step of cross entropy.
        steps: stage → of one step, for those that take another time.
        embedding: of an image that is embedded; 0 where none is, or all are already.
    """

    params: Params
    sizes: Sizes
    start_up: float
    image: float
    plain: float
    steps: Mapping[str, float]
    embedding: float = 0.0

    def training(self, system: System) -> float:
        """Of a training stage, once it has started."""
        sizes, train = self.sizes, self.params.train
        steps = _steps(self.params, sizes, system)
        per_epoch = sizes.train // train.batch_size
        evaluations = math.ceil(steps / steps_between(train.evaluate_every, max(1, per_epoch)))
        images = 2 * evaluations * (sizes.validation + sizes.test) * system.backbones
        images += sizes.train * (bool(system.mentor) + system.predictions * (steps // max(1, per_epoch)))
        of_step = self.plain
        if system.timed_step is not None:
            # The mentor looks at each batch as well, where it joins the target.
            of_mentor = train.batch_size * self.image if system.mentor else 0.0
            of_step = self.steps[system.stage] * self._share(system) + of_mentor
        times = max(1, train.folds) if system.default else 1  # K trainings of K - 1 parts, and one of all
        return times * (steps * of_step + images * self.image)

    def _share(self, system: System) -> float:
        """Of a step's passes, those that one of several processes makes."""
        if system.splits is None:
            return 1.0
        number = self.params.mlnt.M
        mine = math.ceil(number / min(system.splits(self.params), processes(self.params)))
        shared = 4 if self.params.mlnt.update == "joint" else 5
        return (shared + 5 * mine) / (shared + 5 * number)

    def run(self, systems: Sequence[System], others: int, evaluated: bool = True) -> float:
        """Of these training stages and the features, what evaluates and reports them, if that is done, and others that
        take little but their start."""
        sizes, apart = self.sizes, processes(self.params)  # what embeds; what predicts, where that is a whole network
        stages = len(systems) + 1 + 2 * evaluated + others
        embedding = sizes.samples * self.embedding / apart
        judged = 4 * (sizes.validation + sizes.test) + sizes.train if evaluated else 0
        images = sizes.samples + sum(system.backbones for system in systems) * judged
        predicting = images * self.image / (apart if self.params.model.train == "all" else 1)
        return stages * (self.start_up + DVC_S) + embedding + predicting + sum(map(self.training, systems))


def measure(
    params: Params, sizes: Sizes, systems: Sequence[System], device: torch.device, width: int | None = None
) -> Estimate:
    """Time a step of each kind that the systems have, and a prediction.

    Args:
        width: of the embeddings that there are; where there are none, making one is timed too.

    Raises:
        UserError: there are fewer training samples than a batch has, or no such network.
    """
    batch = params.train.batch_size
    if sizes.train < batch:
        raise UserError(
            f"train.batch_size: need at least one batch of {batch} training samples, got {sizes.train}; lower it"
        )
    if folds := params.train.folds:
        require_batch(params, sizes.train - math.ceil(sizes.train / folds))
    part = max(batch // FRACTION, min(batch, params.mlnt.neighbors + 1))
    try:
        if params.model.train == "head":
            return _measure_head(params, sizes, systems, device, width)
        small = _measured(timing.Images(params, sizes, device, part), systems)
    except ValueError as error:
        raise UserError(f"model: {error}") from error
    times = batch / part
    found = replace(
        small, plain=small.plain * times, steps={stage: seconds * times for stage, seconds in small.steps.items()}
    )
    whole = 2 * (found.plain + sum(set(found.steps.values())))  # seconds that two steps of each kind will take
    if whole < CHEAP_S or whole < min(SHARE * found.run(systems, 0), DEAR_S):
        found = _measured(timing.Images(params, sizes, device, batch), systems)
    if device.type == "cuda":
        torch.cuda.empty_cache()  # what follows, or another process, wants the memory
    return found


def _measure_head(
    params: Params, sizes: Sizes, systems: Sequence[System], device: torch.device, width: int | None
) -> Estimate:
    """Of heads; each core embeds images of its own, and one trains."""
    start_up, embedding, cores = _start_up(), 0.0, torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        if width is None:
            images = timing.Images(params, sizes, device, EMBEDDED)
            embedding, width = images.image() / (cores if device.type == "cpu" else 1), images.width()
        found = _measured(timing.Embeddings(params, sizes, device, width), systems)
        return replace(found, embedding=embedding, start_up=start_up)
    finally:
        torch.set_num_threads(cores)


@cache
def _start_up() -> float:
    """What this process has spent until now: on imports, as every stage does."""
    return time.process_time()


def _measured(timer: timing.Timer, systems: Sequence[System]) -> Estimate:
    start_up, train, teacher = _start_up(), timer.params.train, timer.params.teacher
    plain = MLNTStep(0, 0.0, 1, 0.0, train.momentum, train.weight_decay, teacher_bn=teacher.batch_norm)
    of_plain = timer.step(plain)
    kinds: dict[TimedStep, float] = {}
    steps: dict[str, float] = {}
    for system in systems:
        if system.timed_step is not None:
            if system.timed_step not in kinds:
                kinds[system.timed_step] = timer.of(system, system.timed_step)
            steps[system.stage] = kinds[system.timed_step]
    return Estimate(timer.params, timer.sizes, start_up, timer.image(), of_plain, steps)


def _steps(params: Params, sizes: Sizes, system: System) -> int:
    epochs = params.train.epochs if system.epochs is None else system.epochs(params)
    return epochs * (sizes.train // params.train.batch_size)


def keep(estimate: Estimate, device: torch.device) -> None:
    """For the stages that follow. That it cannot be written is said when times are."""
    measured = {name: getattr(estimate, name) for name in ("start_up", "image", "plain", "embedding")}
    about = {"of": _key(estimate.params, estimate.sizes, device), "steps": dict(estimate.steps)}
    with suppress(RunError):
        files.write_text(MEASURED, json.dumps(measured | about, indent=2) + "\n")


def kept(params: Params, sizes: Sizes, device: torch.device) -> Estimate | None:
    """What a stage before has measured for the same network, steps and machine."""
    try:
        values = files.read_json(MEASURED)
        if values["of"] != _key(params, sizes, device):
            return None
        measured = (values[name] for name in ("start_up", "image", "plain", "steps", "embedding"))
        return Estimate(params, sizes, *measured)
    except (UserError, KeyError, TypeError):
        return None


def _key(params: Params, sizes: Sizes, device: torch.device) -> dict[str, Any]:
    sections = params.model_dump(mode="json", by_alias=True, include={"compute", "mlnt", "teacher"})
    about = {
        "network": params.model.name,
        "train": params.model.train,
        "batch_size": params.train.batch_size,
        "device": describe(device),
    }
    return {**sections, **about, "shape": list(sizes.shape), "classes": sizes.classes, "torch": torch.__version__}
