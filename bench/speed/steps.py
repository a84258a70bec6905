"""A step of any kind, the package's or a rival's, with the network and the batch that it is timed or compared on.

It needs torch and timm, nothing else of the package's requirements.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from rivals import PlainStep, ReleasedStep, Setting, Settings, by_hand, by_torchopt

from mlnt.method.step import MLNTStep
from mlnt.networks import create_model
from mlnt.seeding import generator
from mlnt.training.cuda_graph import RecordedStep
from mlnt.training.draws import StepInputs, below
from mlnt.training.state import Batch, Metrics, Rates, TrainState

RATES = Rates(lr=1e-3, meta_lr=1e-3, ema_decay=0.99, teacher_weight=0.0)  # small: the numbers stay tame for any count
RIVALS: dict[str, Callable[[Settings], Any]] = {
    "plain": lambda settings: PlainStep(settings, by_hand),
    "torchopt": lambda settings: PlainStep(settings, by_torchopt),
    "released": lambda settings: ReleasedStep(settings, "first"),
    "released, head": lambda settings: ReleasedStep(settings, "second"),
}


@dataclass(frozen=True)
class Kind:
    """A kind of step, and how it runs; `num_synthetic` None is the setting's M, `rival` "" the package."""

    fast_weights: Any = "all"
    update: Any = "joint"
    order: Any = "first"
    num_synthetic: int | None = None
    dtype: torch.dtype = torch.float32
    amp: bool = False
    channels_last: bool = True
    recorded: bool = False
    compiled: bool = False
    rival: str = ""

    def __str__(self) -> str:
        if self.rival:
            return f"{self.rival}, channels_last" if self.channels_last else self.rival
        name = "CE-EMA" if self.num_synthetic == 0 else f"{self.fast_weights}, {self.update}, {self.order}"
        parts = {"recorded": self.recorded, "compiled": self.compiled, "bfloat16": self.amp}
        parts |= {"contiguous": not self.channels_last}
        return ", ".join([name, *(part for part, has in parts.items() if has)])


class Runner:
    """A network, batches, and a step of one kind."""

    def __init__(self, kind: Kind, setting: Setting, device: torch.device, rates: Rates = RATES) -> None:
        self.kind, self.setting, self.device, self.rates = kind, setting, device, rates
        module = create_model(setting.network, num_classes=setting.classes, in_chans=3, seed=0).to(device, kind.dtype)
        self.format = torch.channels_last if kind.channels_last else torch.contiguous_format
        self.state = TrainState(module.to(memory_format=self.format), torch.bfloat16 if kind.amp else None)
        if kind.compiled:
            self.state.compile()
        m = setting.num_synthetic if kind.num_synthetic is None else kind.num_synthetic
        ways = {"fast_weights": kind.fast_weights, "order": kind.order, "update": kind.update}
        self.own = MLNTStep(m, 0.5, min(10, setting.batch_size - 1), 0.2, 0.9, 1e-4, **ways)
        self.step: Any = RIVALS[kind.rival](Settings(m)) if kind.rival else self.own
        self.inputs = self._batch(0)
        self._recorded = RecordedStep(self._on, self.state.tensors()) if kind.recorded else None

    def images(self, size: int, number: int = 0) -> torch.Tensor:
        shape = (size, 3, self.setting.pixels, self.setting.pixels)
        images = torch.randn(shape, generator=generator(number, "images"))
        return images.to(self.device, self.kind.dtype).contiguous(memory_format=self.format)

    def _batch(self, number: int) -> StepInputs:
        size, draw = self.setting.batch_size, generator(number, "steps")
        drawn = {f"draws/{name}": value.to(self.device) for name, value in self.own.draw(size, draw).items()}
        return {
            "images": self.images(size, number),
            "labels": torch.randint(self.setting.classes, (size,), generator=draw).to(self.device),
            "features": torch.randn(size, 128, generator=draw).to(self.device),
            **drawn,
        }

    def _on(self, inputs: StepInputs, rates: Rates, any_kept: bool) -> Metrics:
        del any_kept  # all are
        batch = Batch(inputs["images"], inputs["labels"], features=inputs["features"], draws=below(inputs, "draws/"))
        found: Metrics = self.step(self.state, batch, rates)
        return found

    def __call__(self, number: int | None = None) -> Metrics:
        inputs = self.inputs if number is None else self._batch(number)
        return (self._recorded or self._on)(inputs, self.rates, True)

    def timed(self, work: Callable[[], Any] | None = None) -> float:
        """Seconds of one step, or of other work."""
        start = now(self.device)
        (work or self)()
        return now(self.device) - start


def now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
