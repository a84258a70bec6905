"""What can be known of a recorded step without a GPU: it reads everything anew, keeps its metrics apart, and nothing in
it looks at a value. Here a "recording" runs the function again, on the same buffers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import astuple, replace
from typing import Any

import pytest
import torch
from test_training import make_data, make_network, make_step, make_training
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mlnt.data import InputStatistics, MemoryImages
from mlnt.functional import Network
from mlnt.networks import create_model
from mlnt.recorded import RecordedStep
from mlnt.schedules import Rates
from mlnt.state import StepMetrics
from mlnt.step import MLNTStep
from mlnt.training import Training
from mlnt.training_data import TrainingData


class Recorder:
    """In place of a CUDA graph; counts recordings."""

    def __init__(self) -> None:
        self.recordings = 0

    def __call__(
        self, step: Callable[[], StepMetrics], changed: Sequence[Tensor]
    ) -> tuple[Callable[[], None], StepMetrics]:
        self.recordings += 1
        before = [tensor.detach().clone() for tensor in changed]
        metrics = step()
        with torch.no_grad():
            for tensor, value in zip(changed, before, strict=True):
                tensor.copy_(value)

        def replay() -> None:
            new = step()
            for name in ("class_loss", "meta_loss", "student_correct", "teacher_correct"):
                buffer, value = getattr(metrics, name), getattr(new, name)
                if buffer is not None:
                    buffer.copy_(value)

        return replay, metrics


PASSES: dict[str, dict[str, Any]] = {
    "first": {"order": "first"},
    "batched": {"order": "first", "batched": True},
    "second": {"order": "second"},
}


def training_in_float64(step: MLNTStep, kept: Tensor | None) -> Training:
    data = replace(make_data(), kept=kept)
    network = make_network().double()
    network[4].p = 0.0  # dropout would draw again in the recording
    training = make_training(step, data, network)
    batch = data.images.batch
    data.images.batch = lambda indices: batch(indices).double()  # type: ignore[method-assign]
    return training


@pytest.mark.parametrize("some_kept", [False, True], ids=["all kept", "some kept"])
@pytest.mark.parametrize("update", ["sequential", "joint"])
@pytest.mark.parametrize("passes", PASSES)
def test_replayed_training_equals_training_step_by_step(passes: str, update: str, some_kept: bool) -> None:
    kept = torch.arange(27) % 9 == 0 if some_kept else None  # few: some batches have none
    runs = []
    recorder = Recorder()
    seen: list[tuple[bool, bool]] = []
    for recorded in (False, True):
        training = training_in_float64(make_step(**PASSES[passes], update=update), kept)
        if recorded:
            step = RecordedStep(training._step_on, training.state.tensors(), recorder)
            training._run_step = lambda i, r, k, step=step: seen.append((r.meta, k)) or step(i, r, k)
        history = list(training.epochs())
        runs.append((history, training.state.tensors()))
    # η ramps up from 0: one recording without a meta update, one with, and others for batches without a kept sample.
    assert recorder.recordings == len(set(seen)) == (3 if some_kept else 2)
    for one, two in zip(runs[0][1], runs[1][1], strict=True):
        torch.testing.assert_close(two, one, rtol=1e-9, atol=1e-12)
    for row, other in zip(runs[0][0], runs[1][0], strict=True):
        assert row["class_loss"] == pytest.approx(other["class_loss"], rel=1e-9)
        assert row["student_train_accuracy"] == other["student_train_accuracy"]


READS = ("_local_scalar_dense", "nonzero", "item", "is_nonzero", "unique", "masked_select", "equal")


class NothingIsRead(TorchDispatchMode):
    """Refuses operators that wait for the device, or whose shapes depend on values; both break a recording."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert not name.startswith(READS), name
        if name == "index":  # by a boolean mask
            assert all(i is None or i.dtype != torch.bool for i in args[1])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("some_kept", [False, True], ids=["all kept", "some kept"])
@pytest.mark.parametrize("with_mentor", [False, True], ids=["alone", "mentor"])
@pytest.mark.parametrize("teacher_bn", ["own", "ema"])
@pytest.mark.parametrize("update", ["sequential", "joint"])
@pytest.mark.parametrize("passes", PASSES)
def test_nothing_in_a_step_looks_at_a_value(
    passes: str, update: str, teacher_bn: str, with_mentor: bool, some_kept: bool
) -> None:
    kept = torch.arange(27) % 2 == 0 if some_kept else None
    network, other = (create_model("preact_resnet_tiny", num_classes=4, in_chans=1, seed=seed) for seed in (0, 1))
    mentor = Network(other.eval()) if with_mentor else None
    step = make_step(**PASSES[passes], update=update, teacher_bn=teacher_bn, mentor=mentor)
    training = make_training(step, replace(make_data(), kept=kept), network)
    inputs, any_kept = training._inputs(torch.arange(24).view(3, 8), first=4)
    inputs = inputs._replace(fetched=training._data.train.indices[inputs.positions])
    rates = Rates(*torch.tensor(astuple(training._schedule.at(6)), dtype=torch.float64).unbind())
    with NothingIsRead():
        training._step_on(inputs.at(0), rates, any_kept[0])


def test_the_guard_refuses_what_it_should() -> None:
    for look in (lambda t: t.item(), lambda t: t[t > 0], lambda t: bool(t.any()), lambda t: t.nonzero()):
        with pytest.raises(AssertionError), NothingIsRead():
            look(torch.ones(1))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_cuda_graph_trains_as_the_loop_does() -> None:
    runs = []
    for recorded in (False, True):
        training = make_training(make_step(), on_gpu(make_data()), make_network().cuda())
        if recorded:
            training.record()
        epochs = training.epochs()
        next(epochs)
        training.load_state_dict(*training.state_dict())  # as after a stop
        list(epochs)
        runs.append(training)
    for one, two in zip(runs[0].state.tensors(), runs[1].state.tensors(), strict=True):
        torch.testing.assert_close(two, one, rtol=1e-3, atol=1e-4)


def on_gpu(data: TrainingData) -> TrainingData:
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(256, (len(data.images), 1, 8, 8), generator=draw, dtype=torch.uint8)
    statistics = InputStatistics(torch.tensor(0.5), torch.tensor(0.25))
    return replace(data, images=MemoryImages(images, statistics, torch.device("cuda")))
