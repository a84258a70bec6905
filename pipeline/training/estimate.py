"""How long training will take on this machine: a few real steps of the real network, timed here and now.

The steps are those of the loop, on random pixels of the data's shape. Nothing random of a run is drawn for them.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from mlnt import seeding
from mlnt.images.batches import Augmentation, MemoryImages
from mlnt.images.statistics import InputStatistics
from mlnt.method.step import MLNTStep
from mlnt.networks import create_model, pre_logit_features
from mlnt.training.data import LabeledSet, TrainingData
from mlnt.training.evaluation import predict_logits
from mlnt.training.loop import Training
from mlnt.training.state import Network, Rates, StepFunction
from pipeline import files
from pipeline.errors import RunError, UserError
from pipeline.params.schema import Params
from pipeline.store.sizes import Sizes
from pipeline.training.build import place
from pipeline.training.device import amp_dtype, describe
from pipeline.training.plan import System
from pipeline.training.session import steps_between

STEPS = 12
"""Most steps of a kind that are timed; the first half of them warms up."""
SOON_S = 0.4
"""Two steps at least; more of them until this time is over."""
CHEAP_S, SHARE, DEAR_S = 0.5, 0.01, 10.0
"""Whole batches are timed where that takes less than CHEAP_S, or SHARE of the run but at most DEAR_S."""
FRACTION = 2
"""Elsewhere half a batch. A fourth made resnet18 at 64 pixels seem 1.3 to 1.4 times as slow: what a step does with the
weights costs as much for fewer images."""
DVC_S = 0.5
"""Of a stage: DVC's look at inputs and outputs, and the end of the process."""
MEASURED = files.TIMINGS / "steps.json"


class _Enough(Exception):  # noqa: N818
    """Ends a rehearsal."""


@dataclass(frozen=True)
class Estimate:
    """What was measured, in seconds.

    Attributes:
        params: of the run.
        sizes: of its data, the validation split taken off.
        start_up: of a process, until it trains.
        image: of a prediction of one image.
        plain: of one step of cross entropy.
        steps: stage → of one step, for those that take another time.
    """

    params: Params
    sizes: Sizes
    start_up: float
    image: float
    plain: float
    steps: Mapping[str, float]

    def training(self, system: System) -> float:
        """Of a training stage, once it has started."""
        sizes, train = self.sizes, self.params.train
        steps = _steps(self.params, sizes, system)
        per_epoch = sizes.train // train.batch_size
        evaluations = math.ceil(steps / steps_between(train.evaluate_every, max(1, per_epoch)))
        images = 2 * evaluations * (sizes.validation + sizes.test) + (sizes.train if system.mentor else 0)
        of_step = self.plain
        if system.rehearse is not None:
            # The mentor looks at each batch as well, where it joins the target.
            of_step = self.steps[system.stage] + (train.batch_size * self.image if system.mentor else 0.0)
        return steps * of_step + images * self.image

    def run(self, systems: Sequence[System], others: int, evaluated: bool = True) -> float:
        """Of these training stages and the features, what evaluates and reports them, if that is done, and others that
        take little but their start."""
        sizes = self.sizes
        stages = len(systems) + 1 + 2 * evaluated + others
        judged = 4 * (sizes.validation + sizes.test) + sizes.train if evaluated else 0
        images = sizes.samples + len(systems) * judged
        return stages * (self.start_up + DVC_S) + images * self.image + sum(map(self.training, systems))


def measure(params: Params, sizes: Sizes, systems: Sequence[System], device: torch.device) -> Estimate:
    """Time a step of each kind that the systems have, and a prediction.

    Raises:
        UserError: there are fewer training samples than a batch has, or no such network.
    """
    batch = params.train.batch_size
    if sizes.train < batch:
        raise UserError(f"train.batch_size: need at least one batch of {batch} training samples, got {sizes.train}")
    part = max(batch // FRACTION, min(batch, params.mlnt.neighbors + 1))
    try:
        small = _measured(_Stage(params, sizes, device, part), systems)
    except ValueError as error:
        raise UserError(f"model: {error}") from error
    times = batch / part
    found = replace(
        small, plain=small.plain * times, steps={stage: seconds * times for stage, seconds in small.steps.items()}
    )
    whole = 2 * (found.plain + sum(set(found.steps.values())))  # seconds that two steps of each kind will take
    if whole < CHEAP_S or whole < min(SHARE * found.run(systems, 0), DEAR_S):
        found = _measured(_Stage(params, sizes, device, batch), systems)
    if device.type == "cuda":
        torch.cuda.empty_cache()  # what follows, or another process, wants the memory
    return found


@cache
def _start_up() -> float:
    """What this process has spent until now: on imports, as every stage does."""
    return time.process_time()


def _measured(stage: _Stage, systems: Sequence[System]) -> Estimate:
    start_up, train, teacher = _start_up(), stage.params.train, stage.params.teacher
    plain = MLNTStep(0, 0.0, 1, 0.0, train.momentum, train.weight_decay, teacher_bn=teacher.batch_norm)
    of_plain = stage.step(plain)
    kinds: dict[Callable[[Params], StepFunction], float] = {}
    steps: dict[str, float] = {}
    for system in systems:
        if system.rehearse is not None:
            if system.rehearse not in kinds:
                kinds[system.rehearse] = stage.step(system.rehearse(stage.params))
            steps[system.stage] = kinds[system.rehearse]
    return Estimate(stage.params, stage.sizes, start_up, stage.image(), of_plain, steps)


class _Stage:
    """A network and random images for it, to rehearse steps with."""

    def __init__(self, params: Params, sizes: Sizes, device: torch.device, batch_size: int) -> None:
        self.params = params
        self.sizes = sizes
        self._device = device
        self._batch_size = batch_size
        generator = seeding.generator(0, "rehearsal")
        channels = sizes.shape[0]
        backbone = create_model(params.model.name, num_classes=sizes.classes, in_chans=channels, seed=0)
        self._module: nn.Module = place(backbone, params.compute, device)
        pixels = torch.randint(256, (batch_size, *sizes.shape), dtype=torch.uint8, generator=generator)
        statistics = InputStatistics(torch.tensor(0.5), torch.tensor(0.25))
        self._images = MemoryImages(pixels, statistics, device, params.compute.channels_last)
        self._rows = torch.arange(STEPS * batch_size) % batch_size
        labels = torch.randint(sizes.classes, (len(self._rows),), generator=generator)
        self._train = LabeledSet(self._rows, labels)

    def step(self, step: StepFunction) -> float:
        """Seconds of one step as the loop makes it."""
        params, times = self.params, [self._now()]
        data = TrainingData(self._images, self._train, {}, features=self._features() if step.needs_features else None)
        training = Training(
            self._module,
            step,
            data,
            _Rates(),
            seed=0,
            iteration=0,
            epochs=1,
            batch_size=self._batch_size,
            eval_batch_size=self._batch_size,
            augmentation=Augmentation(params.train.crop_padding, params.train.horizontal_flip),
            amp_dtype=amp_dtype(params.compute),
        )
        if params.compute.cuda_graphs and self._device.type == "cuda":
            training.record()

        def before(number: int) -> None:
            times.append(self._now())
            if number == STEPS - 1 or (number > 1 and times[-1] - times[0] > SOON_S):
                raise _Enough

        with suppress(_Enough):
            list(training.epochs(before))
        taken = [after - before for before, after in pairwise(times[1:])]
        return statistics.median(taken[len(taken) // 2 :])

    def image(self) -> float:
        """Seconds of a prediction of one image."""
        network = Network(self._module, amp_dtype(self.params.compute))
        rows = self._rows[: max(self._batch_size, min(len(self._rows), self.params.compute.eval_batch_size))]
        rows, wanted = rows[: self._batch_size], rows
        seconds = self._timed(lambda: predict_logits([network], self._images, rows, len(rows)))
        if seconds < SOON_S / 20:  # the batches of an evaluation are larger, and cost less an image
            self._timed(lambda: predict_logits([network], self._images, wanted, len(wanted)))
            seconds = self._timed(lambda: predict_logits([network], self._images, wanted, len(wanted)))
            rows = wanted
        return seconds / len(rows)

    def _features(self) -> torch.Tensor:
        with torch.no_grad():
            width = pre_logit_features(self._module.eval(), self._images.batch(self._rows[:1])).shape[1]
        return torch.randn(len(self._rows), width, generator=seeding.generator(0, "rehearsal"))

    def _timed(self, work: Callable[[], object]) -> float:
        start = self._now()
        work()
        return self._now() - start

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


class _Rates:
    """Small ones: a network that diverged would take other times."""

    def at(self, _: int) -> Rates:
        return Rates(lr=1e-4, meta_lr=1e-4, ema_decay=0.9, teacher_weight=0.5)


def _steps(params: Params, sizes: Sizes, system: System) -> int:
    epochs = params.train.epochs if system.epochs is None else system.epochs(params)
    return epochs * (sizes.train // params.train.batch_size)


def keep(estimate: Estimate, device: torch.device) -> None:
    """For the stages that follow. That it cannot be written is said when times are."""
    measured = {name: getattr(estimate, name) for name in ("start_up", "image", "plain")}
    about = {"of": _key(estimate.params, estimate.sizes, device), "steps": dict(estimate.steps)}
    with suppress(RunError):
        files.write_text(MEASURED, json.dumps(measured | about, indent=2) + "\n")


def kept(params: Params, sizes: Sizes, device: torch.device) -> Estimate | None:
    """What a stage before has measured for the same network, steps and machine."""
    try:
        values = files.read_json(MEASURED)
        if values["of"] != _key(params, sizes, device):
            return None
        return Estimate(params, sizes, values["start_up"], values["image"], values["plain"], values["steps"])
    except (UserError, KeyError, TypeError):
        return None


def _key(params: Params, sizes: Sizes, device: torch.device) -> dict[str, Any]:
    sections = params.model_dump(mode="json", by_alias=True, include={"compute", "mlnt", "teacher"})
    about = {"network": params.model.name, "batch_size": params.train.batch_size, "device": describe(device)}
    return {**sections, **about, "shape": list(sizes.shape), "classes": sizes.classes, "torch": torch.__version__}
