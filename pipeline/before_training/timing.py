"""Steps and predictions of a network on random images or embeddings, timed here and now.

The steps are those of the loop. Nothing random of a run is drawn for them.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise

import torch
from torch import nn

from mlnt import seeding
from mlnt.images.batches import Augmentation, ImageStore, MemoryImages
from mlnt.images.embeddings import MemoryEmbeddings, Standardization
from mlnt.images.statistics import InputStatistics
from mlnt.networks import LinearHead, create_model, pre_logit_features
from mlnt.training.data import LabeledSet, TrainingData
from mlnt.training.evaluation import predict_logits
from mlnt.training.loop import Training
from mlnt.training.passes import Network
from mlnt.training.state import Rates, StepFunction
from pipeline.params.schema import Params
from pipeline.store.sizes import Sizes
from pipeline.training.device import amp_dtype, place
from pipeline.training.plan import System, TimedStep

STEPS = 12
"""Most steps of a kind that are timed; the first half of them warms up."""
SOON_S = 0.4
"""Two steps at least; more of them until this time is over."""


class _Enough(Exception):  # noqa: N818
    """Ends a training of which enough steps are timed."""


class Timer:
    """A network and random images for it, to time steps with."""

    def __init__(
        self,
        params: Params,
        sizes: Sizes,
        device: torch.device,
        batch_size: int,
        backbone: Callable[[int, int], nn.Module],
        images: ImageStore,
    ) -> None:
        self.params = params
        self.sizes = sizes
        self._device = device
        self._batch_size = batch_size
        self._backbone = backbone
        self._module = backbone(0, sizes.classes)
        self._images = images
        self._rows = torch.arange(STEPS * batch_size) % batch_size
        labels = torch.randint(sizes.classes, (len(self._rows),), generator=seeding.generator(0, "timing"))
        self._train = LabeledSet(self._rows, labels)

    def of(self, system: System, timed_step: TimedStep) -> float:
        """Seconds of one step of a system that has another than cross entropy's."""
        step = timed_step(self.params, len(self._rows), self._device)
        return self.step(step, system.network(self._backbone, self.sizes.classes).to(self._device))

    def step(self, step: StepFunction, module: nn.Module | None = None) -> float:
        """Seconds of one step as the loop makes it; None is one backbone."""
        params, times = self.params, [self._now()]
        data = TrainingData(self._images, self._train, {}, features=self._features() if step.needs_features else None)
        training = Training(
            self._module if module is None else module,
            step,
            data,
            _SmallRates(),
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

    def width(self) -> int:
        """Of what neighbours are found by."""
        with torch.no_grad():
            return int(pre_logit_features(self._module.eval(), self._images.batch(self._rows[:1])).shape[1])

    def _features(self) -> torch.Tensor:
        return torch.randn(len(self._rows), self.width(), generator=seeding.generator(0, "timing"))

    def _timed(self, work: Callable[[], object]) -> float:
        start = self._now()
        work()
        return self._now() - start

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


class Images(Timer):
    """Of whole networks."""

    def __init__(self, params: Params, sizes: Sizes, device: torch.device, batch_size: int) -> None:
        def backbone(number: int, outputs: int) -> nn.Module:
            made = create_model(params.model.name, num_classes=outputs, in_chans=sizes.shape[0], seed=number)
            return place(made, params.compute, device)

        generator = seeding.generator(0, "timing")
        pixels = torch.randint(256, (batch_size, *sizes.shape), dtype=torch.uint8, generator=generator)
        statistics = InputStatistics(torch.tensor(0.5), torch.tensor(0.25))
        images = MemoryImages(pixels, statistics, device, params.compute.channels_last)
        super().__init__(params, sizes, device, batch_size, backbone, images)


class Embeddings(Timer):
    """Of heads."""

    def __init__(self, params: Params, sizes: Sizes, device: torch.device, width: int) -> None:
        batch_size = params.train.batch_size
        self._width = width
        rows = torch.randn(batch_size, width, generator=seeding.generator(0, "timing"))
        store = MemoryEmbeddings(rows, Standardization.of([rows]), device)

        def backbone(_: int, outputs: int) -> nn.Module:
            return LinearHead(width, outputs).to(device)

        super().__init__(params, sizes, device, batch_size, backbone, store)

    def width(self) -> int:
        return self._width


class _SmallRates:
    """Small ones: a network that diverged would take other times."""

    def at(self, _: int) -> Rates:
        return Rates(lr=1e-4, meta_lr=1e-4, ema_decay=0.9, teacher_weight=0.5)
