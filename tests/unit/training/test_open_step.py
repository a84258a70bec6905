"""What the loop offers every step function: views, draws and metrics of its own, a look at D between epochs."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
import torch.nn.functional as F
from recordings import Recorder
from torch import Tensor
from trainings import FakeStep, assert_same_state, make_data, make_network, make_training, stopped_before

from mlnt.baselines.loss_step import LossStep
from mlnt.images.batches import Augmentation
from mlnt.training.cuda_graph import RecordedStep
from mlnt.training.draws import draw_inputs, layer_randomness
from mlnt.training.loop import Training
from mlnt.training.passes import Network
from mlnt.training.state import Batch, EpochContext, Metrics, Rates, TrainState

SIZE = 27


@dataclass
class CleanShare(LossStep):
    """In the manner of DivideMix: before each epoch every sample of D is weighted by its loss, and the weights of
    earlier epochs count too, so that a second call before the same epoch would show. A step looks at two views, mixed
    by a drawn number, and tells a metric of its own."""

    views = 2
    metrics = (*LossStep.metrics, "mean_weight")
    weights: Tensor = field(default_factory=lambda: torch.zeros(SIZE))
    calls: list[tuple[str, int]] = field(default_factory=list)
    seen: list[Batch] = field(default_factory=list)

    def draw(self, batch_size: int, generator: torch.Generator) -> dict[str, Tensor]:
        return {
            "mix": torch.rand((), generator=generator),
            "partner": torch.randperm(batch_size, generator=generator),
        }

    def begin_epoch(self, epoch: EpochContext) -> None:
        loss = F.cross_entropy(epoch.predict(epoch.state.student), epoch.labels, reduction="none")
        self.weights.mul_(0.5).add_((-loss).exp())
        self.calls.append(("begin", epoch.number))

    def end_epoch(self, epoch: EpochContext) -> None:
        self.calls.append(("end", epoch.number))

    def tensors(self) -> dict[str, Tensor]:
        return {"weights": self.weights}

    def loss(self, state: TrainState, batch: Batch) -> tuple[Tensor, Tensor]:
        assert batch.positions is not None
        self.seen.append(batch)
        first, second = batch.views
        logits = state.student(torch.lerp(first, second[batch.draws["partner"]], 0.5 * batch.draws["mix"]))
        loss = F.cross_entropy(logits, batch.labels, reduction="none")
        return (self.weights[batch.positions] * loss).mean(), logits

    def __call__(self, state: TrainState, batch: Batch, rates: Rates) -> Metrics:
        metrics = super().__call__(state, batch, rates)
        return metrics | {"mean_weight": self.weights[batch.positions].mean()}


def make_step() -> CleanShare:
    return CleanShare(momentum=0.9, weight_decay=1e-3, teacher_bn="own")


def make(step: CleanShare | None = None, seed: int = 0) -> Training:
    return make_training(step or make_step(), network=make_network(seed))


# Between two epochs


@pytest.mark.parametrize("after", range(13))
def test_a_step_that_looks_at_predictions_goes_on_to_the_same_bits(after: int) -> None:
    whole = make()
    rows = list(whole.epochs())
    first, second = make_step(), make_step()
    saved = stopped_before(make(first), after)
    resumed = make(second, seed=9)
    resumed.load_state_dict(*saved)
    assert list(resumed.epochs()) == rows[after // 3 :]
    assert_same_state(resumed, whole)
    both = first.calls + second.calls
    assert both == [(what, epoch) for epoch in range(4) for what in ("begin", "end")]


def test_predictions_are_those_of_any_module_over_the_training_set_and_leave_no_trace() -> None:
    data, other = make_data(), make_network(3).eval()
    found: list[tuple[Tensor, Tensor, Tensor]] = []

    class Looks(FakeStep):
        def begin_epoch(self, epoch: EpochContext) -> None:
            assert epoch.state.student.module.training
            mine = epoch.predict(epoch.state.student)
            assert epoch.state.student.module.training
            found.append((mine, epoch.predict(other), epoch.labels))
            assert not other.training

    training = make_training(Looks(), data, epochs=1)
    before = {name: tensor.clone() for name, tensor in training.module("student").state_dict().items()}
    list(training.epochs())
    assert all(torch.equal(t, before[name]) for name, t in training.module("student").state_dict().items())
    ((mine, others, labels),) = found
    assert torch.equal(labels, data.train.labels)
    with torch.no_grad():
        images = data.images.batch(data.train.indices)
        torch.testing.assert_close(mine, make_network().eval()(images), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(others, other(images), rtol=1e-5, atol=1e-6)


def test_an_epoch_may_look_through_the_same_precision_as_training() -> None:
    training = make_training(FakeStep(), amp_dtype=torch.bfloat16)
    module = training.module("student").eval()
    expected = Network(module, torch.bfloat16)(make_data().images.batch(make_data().train.indices[:4]))
    torch.testing.assert_close(training._predict(module)[:4], expected.detach())


# Views and draws


def test_views_are_the_same_samples_augmented_apart() -> None:
    step, augmentation = make_step(), Augmentation(crop_padding=1, horizontal_flip=True)
    list(make_training(step, augmentation=Augmentation(), epochs=1).epochs())
    assert all(torch.equal(*batch.views) for batch in step.seen)
    step.seen.clear()
    list(make_training(step, augmentation=augmentation, epochs=1).epochs())
    assert all(batch.images is batch.views[0] for batch in step.seen)
    flat = [[{tuple(i.flatten().tolist()) for i in batch.views[v]} for batch in step.seen] for v in (0, 1)]
    assert all(len(one & two) < len(one) / 2 for one, two in zip(*flat, strict=True))


def test_the_first_view_is_the_one_of_a_step_with_a_single_view() -> None:
    one, two = FakeStep(), FakeStep()
    two.views = 3
    list(make_training(one, epochs=1).epochs()), list(make_training(two, epochs=1).epochs())
    for single, several in zip(one.batches, two.batches, strict=True):
        assert (len(single.views), len(several.views)) == (1, 3)
        assert torch.equal(single.images, several.images)
        assert not torch.equal(several.views[1], several.views[2])
        assert torch.equal(single.draws["pick_MB"], several.draws["pick_MB"])


def test_every_step_gets_the_draws_of_its_own_stream_under_their_names() -> None:
    step = make_step()
    list(make(step).epochs())
    assert all(batch.draws.keys() == {"mix", "partner"} for batch in step.seen)
    assert len({batch.draws["mix"].item() for batch in step.seen}) == 12
    # However many steps are drawn at a time.
    positions = torch.arange(24).view(3, 8)
    together = draw_inputs(step, Augmentation(1, True), positions, 4, seed=1, iteration=2)
    for at in range(3):
        alone = draw_inputs(step, Augmentation(1, True), positions[at : at + 1], 4 + at, seed=1, iteration=2)
        assert alone.keys() == together.keys()
        assert all(torch.equal(alone[name][0], together[name][at]) for name in alone)


def test_a_recorded_step_reads_views_and_draws_anew() -> None:
    runs = []
    for recorded in (False, True):
        network = make_network()
        network[4].p = 0.0  # dropout would draw again in the recording
        training = make_training(make_step(), network=network)
        if recorded:
            changed = [*training.state.tensors(), *training._step.tensors().values()]
            training._run_step = RecordedStep(training._step_on, changed, Recorder())
        list(training.epochs())
        runs.append(training)
    for one, two in zip(runs[0].state.tensors(), runs[1].state.tensors(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)
    for row, other in zip(runs[0].history, runs[1].history, strict=True):
        assert row["mean_weight"] == pytest.approx(other["mean_weight"], rel=1e-5)


# Metrics


def test_a_metric_of_a_steps_own_becomes_a_column() -> None:
    rows = list(make().epochs())
    shared = list(next(iter(make_training(FakeStep()).epochs())))
    at = shared.index("teacher_train_accuracy") + 1
    assert list(rows[0]) == [*shared[:at], "mean_weight", *shared[at:]]
    assert all(0 < (row["mean_weight"] or 0) < 2 for row in rows)


def test_the_columns_of_every_system_so_far() -> None:
    (row,) = make_training(FakeStep(), epochs=1).epochs()
    assert list(row) == [
        *("epoch", "lr", "meta_lr", "class_loss", "meta_loss", "student_train_accuracy", "teacher_train_accuracy"),
        *(f"{model}_{name}_accuracy" for model in ("student", "teacher") for name in ("validation", "test")),
    ]


def test_a_name_that_a_step_does_not_declare_is_refused() -> None:
    step = make_step()
    step.metrics = LossStep.metrics
    with pytest.raises(ValueError, match="a step returned mean_weight, expected names among class_loss, meta_loss"):
        list(make(step).epochs())


# Random layers


@pytest.mark.parametrize(("index", "expected"), [(None, 1), (0, 0), (2, 2)])
def test_random_layers_are_seeded_on_the_gpu_that_runs_them(
    index: int | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device without a number is the current one, here GPU 1; the others are left alone."""
    generators = tuple(torch.Generator().manual_seed(100 + gpu) for gpu in range(3))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "default_generators", generators)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda gpu: generators[gpu].get_state())
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, gpu: generators[gpu].set_state(state))
    device = torch.device("cuda") if index is None else torch.device("cuda", index)
    with layer_randomness(device, 7):
        inside = [generator.initial_seed() for generator in generators]
    assert inside == [7 if gpu == expected else 100 + gpu for gpu in range(3)]
    assert [generator.initial_seed() for generator in generators] == [100, 101, 102]
