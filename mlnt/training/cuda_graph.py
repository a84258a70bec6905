"""A training step recorded once and replayed as a CUDA graph: for networks whose kernels are launched slower than run.

What changes from step to step goes into buffers at fixed addresses: one for each of the step's inputs, by its name,
and one for the rates. Whatever decides which kernels run, η > 0, whether a sample is kept and the step's own phase, is
known on the host, and has a recording of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import astuple
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mlnt.training.draws import StepInputs
from mlnt.training.state import Metrics, Rates

StepOn = Callable[[StepInputs, Rates, bool], Metrics]
Record = Callable[[Callable[[], Metrics], Sequence[Tensor]], tuple[Callable[[], None], Metrics]]
WARM_UPS = 3  # cuDNN and cuBLAS choose kernels and allocate workspaces in the first ones


class Recording(NamedTuple):
    """One recorded step: the buffers that it reads, how to run it again, and where its metrics appear."""

    inputs: StepInputs
    rates: Tensor
    replay: Callable[[], None]
    metrics: Metrics


class RecordedStep:
    """`step(inputs, rates, any_kept)`, run as a replay.

    Attributes:
        changed: everything that a step changes; the warm-up before a recording is undone in them.
        record: runs a function often enough to record it; returns how to replay it, and its output.
        phase: of the step, as it is now.
    """

    def __init__(
        self,
        step: StepOn,
        changed: Sequence[Tensor],
        record: Record | None = None,
        phase: Callable[[], Hashable] = lambda: None,
    ) -> None:
        self._step = step
        self._changed = changed
        self._phase = phase
        self._record = CUDAGraphs(changed[0].device) if record is None else record
        self._recordings: dict[tuple[bool, bool, Hashable], Recording] = {}

    def __call__(self, inputs: StepInputs, rates: Rates, any_kept: bool) -> Metrics:
        key = (rates.meta, any_kept, self._phase())
        if key not in self._recordings:
            self._recordings[key] = self._recorded(inputs, rates, any_kept)
        recording = self._recordings[key]
        for name, buffer in recording.inputs.items():
            buffer.copy_(inputs[name])
        recording.rates.copy_(torch.tensor(astuple(rates), dtype=recording.rates.dtype), non_blocking=True)
        recording.replay()
        # The next replay overwrites its metrics.
        return {name: value.clone() for name, value in recording.metrics.items()}

    def _recorded(self, inputs: StepInputs, rates: Rates, any_kept: bool) -> Recording:
        buffers = {name: value.clone() for name, value in inputs.items()}
        # In double precision: 1 − γ is small.
        numbers = torch.tensor(astuple(rates), device=self._changed[0].device, dtype=torch.float64)
        at = Rates(*numbers.unbind())
        if not rates.meta:
            at = Rates(at.lr, 0.0, at.ema_decay, at.teacher_weight)
        replay, metrics = self._record(lambda: self._step(buffers, at, any_kept), self._changed)
        return Recording(buffers, numbers, replay, metrics)


class CUDAGraphs:
    """Records CUDA graphs that share their memory: no two run at a time, and what they return is copied at once."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool: Any = None

    def __call__(self, step: Callable[[], Metrics], changed: Sequence[Tensor]) -> tuple[Callable[[], None], Metrics]:
        """Warm up on a side stream, put `changed` and the generator back, record."""
        with torch.cuda.device(self._device):
            if self._pool is None:
                self._pool = torch.cuda.graph_pool_handle()
            before = [tensor.detach().clone() for tensor in changed]
            random_state = torch.cuda.get_rng_state()
            stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(WARM_UPS):
                    step()
            torch.cuda.current_stream().wait_stream(stream)
            with torch.no_grad():
                for tensor, value in zip(changed, before, strict=True):
                    tensor.copy_(value)
            torch.cuda.set_rng_state(random_state)
            graph = torch.cuda.CUDAGraph()
            # Other threads may go on: one moves images to pinned memory ahead of the steps (`mlnt.images.files`).
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                metrics = step()
        return graph.replay, metrics
