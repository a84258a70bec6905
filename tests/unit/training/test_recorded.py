"""What can be known of a recorded step without a GPU: it reads everything anew, from where it was when it was recorded,
keeps its metrics apart, and nothing in it looks at a value. Here a "recording" is a list of operators and tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from recordings import NothingIsRead, Recorder, assert_replayed_as_step_by_step, training_in_float64
from torch import Tensor
from trainings import (
    NUM_CLASSES,
    OPTIMIZER,
    SYMMETRIC,
    label_correction,
    make_crf,
    make_data,
    make_network,
    make_step,
    make_training,
)

from mlnt.baselines.cnn_crf import CRFStep, auxiliary_from_transition
from mlnt.baselines.elr import EarlyLearning, ELRStep
from mlnt.baselines.forward import ForwardStep
from mlnt.baselines.gce import TruncatedGCEStep
from mlnt.baselines.joint_optimization import SoftLabelStep
from mlnt.baselines.meta_weight_net import MetaWeightNetStep, weight_net
from mlnt.baselines.sop import SOPStep
from mlnt.images.batches import MemoryImages
from mlnt.images.statistics import InputStatistics
from mlnt.networks import create_model
from mlnt.training.data import TrainingData
from mlnt.training.loop import Training
from mlnt.training.passes import Network
from mlnt.training.state import Rates

PASSES: dict[str, dict[str, Any]] = {
    "first": {"order": "first"},
    "second": {"order": "second"},
    "classifier": {"fast_weights": "classifier"},
}


@pytest.mark.parametrize("some_kept", [False, True], ids=["all kept", "some kept"])
@pytest.mark.parametrize("update", ["sequential", "joint"])
@pytest.mark.parametrize("passes", PASSES)
def test_replayed_training_equals_training_step_by_step(
    passes: str, update: str, some_kept: bool, recorder: Recorder
) -> None:
    kept = torch.arange(27) % 9 == 0 if some_kept else None  # few: some batches have none
    assert_replayed_as_step_by_step(lambda: training_in_float64(make_step(**PASSES[passes], update=update), kept))
    # η ramps up from 0: one recording without a meta update, one with, and another for batches without a kept sample.
    assert recorder.recordings == (3 if some_kept else 2)


# Every system's step


def mlnt_step() -> Training:
    return training_in_float64(make_step())


def mlnt_step_with_mentor() -> Training:
    return training_in_float64(make_step(mentor=Network(make_network(seed=1).double().eval().requires_grad_(False))))


def forward_step() -> Training:
    return training_in_float64(ForwardStep(**OPTIMIZER, transition_matrix=SYMMETRIC))


def soft_label_step() -> Training:
    labels = F.one_hot(make_data().train.labels.flip(0), NUM_CLASSES).double()
    return training_in_float64(SoftLabelStep(**OPTIMIZER, soft_labels=labels))


def label_correction_step() -> Training:
    step = label_correction(27, make_data().train.labels, first_update=1, average_epochs=2)
    return training_in_float64(replace(step, soft_labels=step.soft_labels.double(), prior=step.prior.double()))


def crf_step() -> Training:
    known = torch.where(torch.arange(27) < 5, make_data().train.labels, -1)
    auxiliary = auxiliary_from_transition(SYMMETRIC)
    step = CRFStep(**OPTIMIZER, auxiliary=auxiliary, known=known, weight_start=4.0, weight_end=1.0, weight_epochs=2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = make_crf()
    return training_in_float64(step, network=network)


def gce_step() -> Training:
    kept = torch.ones(27, dtype=torch.bool)
    options = {"q": 0.7, "threshold": 0.25, "first_pruning": 1, "pruning_every": 2, "kept": kept}
    return training_in_float64(TruncatedGCEStep(**OPTIMIZER, **options))


def elr_step() -> Training:
    return training_in_float64(
        ELRStep(**OPTIMIZER, early_learning=EarlyLearning(3.0, 0.7, torch.zeros(27, NUM_CLASSES).double()))
    )


def sop_step() -> Training:
    u, v = (torch.full(size, 0.1).double() for size in ((27,), (27, NUM_CLASSES)))
    return training_in_float64(SOPStep(**OPTIMIZER, u_lr=5.0, v_lr=5.0, u=u, v=v))


def meta_weight_net_step() -> Training:
    theta = [each.double() for each in weight_net(5, torch.Generator().manual_seed(8))]
    images, labels = torch.linspace(-1, 1, 640).double().view(10, 1, 8, 8), torch.arange(10) % NUM_CLASSES
    step = MetaWeightNetStep(**OPTIMIZER, net_lr=5.0, clean_images=images, clean_labels=labels, weight_net=theta)
    return training_in_float64(step)


STEPS = (
    *(mlnt_step, mlnt_step_with_mentor, forward_step, soft_label_step, label_correction_step, crf_step),
    *(gce_step, elr_step, sop_step, meta_weight_net_step),
)


@pytest.mark.parametrize("make", STEPS)
def test_every_step_is_replayed_as_it_would_be_run(make: Callable[[], Training], recorder: Recorder) -> None:
    assert_replayed_as_step_by_step(make)
    assert recorder.recordings == 2


def tensors_of(training: Training) -> dict[str, Tensor]:
    """All that a step reads and is not given anew for each."""
    found = {f"state {i}": tensor for i, tensor in enumerate(training.state.tensors())}
    found |= {f"remembered {name}": tensor for name, tensor in training._step.tensors().items()}
    for name, value in vars(training._step).items():
        if isinstance(value, Tensor):
            found[name] = value
        elif isinstance(value, Network):
            found |= {f"{name}.{key}": tensor for key, tensor in value.module.state_dict().items()}
    return found


@pytest.mark.parametrize("make", STEPS)
def test_what_a_step_reads_stays_where_it_is(make: Callable[[], Training]) -> None:
    """A CUDA graph holds addresses. From epoch to epoch, and when a stopped training goes on."""
    training = make()
    before = tensors_of(training)  # held: nothing else can come to lie at their addresses
    epochs = training.epochs()
    next(epochs)
    training.load_state_dict(*training.state_dict())
    next(epochs)
    after = tensors_of(training)
    assert after.keys() == before.keys()
    assert [name for name, tensor in after.items() if tensor.data_ptr() != before[name].data_ptr()] == []


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
    one = {name: values[0] for name, values in inputs.items()}
    one["fetched"] = training._data.train.indices[one["positions"]]
    rates = Rates(*torch.tensor(astuple(training._schedule.at(6)), dtype=torch.float64).unbind())
    with NothingIsRead():
        training._step_on(one, rates, any_kept[0])


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
