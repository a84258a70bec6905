"""Wall times: for people, in ignored files, never in a metric, because metrics are committed and must repeat."""

from __future__ import annotations

import platform
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from pipeline import console, files, runtime
from pipeline.errors import RunError


@dataclass
class Clock:
    """What the stage tells.

    Attributes:
        steps: training steps made in this process.
        checkpoint_seconds: spent on writing checkpoints.
    """

    steps: int = 0
    checkpoint_seconds: float = 0.0

    @contextmanager
    def saving(self) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.checkpoint_seconds += time.perf_counter() - start


@contextmanager
def measured(stage: str, device: torch.device) -> Iterator[Clock]:
    """Write timings/<stage>.json when the block ends well. That it cannot be written is said, and no more: what the
    stage has made is there."""
    clock = Clock()
    start = time.perf_counter()
    yield clock
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    seconds = time.perf_counter() - start
    values = {
        "seconds": seconds,
        "checkpoint_seconds": clock.checkpoint_seconds,
        "milliseconds_per_step": 1000 * seconds / clock.steps if clock.steps else None,
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "device": runtime.describe(device),
        "machine": platform.machine(),
        "torch": torch.__version__,
    }
    try:
        files.write_json(files.TIMINGS / f"{stage}.json", values)
    except RunError as error:
        console.warn(f"{error}; how long {stage} took is not kept, the rest is")
