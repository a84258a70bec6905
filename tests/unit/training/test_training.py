from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix
from torch import Tensor, nn
from trainings import (
    BATCH_SIZE,
    NUM_CLASSES,
    SCHEDULE,
    FakeStep,
    assert_same_state,
    make_data,
    make_network,
    make_step,
    make_training,
    stopped_before,
)

from mlnt.baselines.forward import ForwardStep
from mlnt.images.batches import Augmentation, MemoryImages
from mlnt.images.statistics import InputStatistics
from mlnt.training.data import LabeledSet, TrainingData
from mlnt.training.evaluation import accuracy, confusion, predict_logits
from mlnt.training.loop import MODELS, Best, DivergedError, Training, steps_per_epoch
from mlnt.training.passes import Network
from mlnt.training.state import EpochContext, StepFunction, TrainState

# Resuming


@pytest.mark.parametrize("teacher_bn", ["own", "ema"])
@pytest.mark.parametrize("ahead", [2, 256])
@pytest.mark.parametrize("after", range(13))
def test_training_stopped_at_any_step_ends_with_the_bits_of_an_uninterrupted_one(
    after: int, ahead: int, teacher_bn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = make_training(make_step(teacher_bn=teacher_bn))
    rows = list(whole.epochs())
    monkeypatch.setattr("mlnt.training.loop.STEPS_AHEAD", ahead)
    saved = stopped_before(make_training(make_step(teacher_bn=teacher_bn)), after)

    resumed = make_training(make_step(teacher_bn=teacher_bn), network=make_network(seed=9))
    resumed.load_state_dict(*saved)
    steps: list[int] = []
    assert list(resumed.epochs(steps.append)) == rows[after // 3 :]
    assert steps == list(range(after, 12))
    assert_same_state(resumed, whole)
    assert resumed.history == rows
    assert resumed.mentor() == whole.mentor()


@pytest.mark.parametrize("every", [1, 2, 5])  # within an epoch of 3 steps, and across its end
@pytest.mark.parametrize("after", range(13))
def test_evaluation_every_so_many_steps_changes_nothing_of_a_stop(after: int, every: int) -> None:
    whole = make_training(evaluate_every=every)
    rows = list(whole.epochs())
    saved = stopped_before(make_training(evaluate_every=every), after)

    resumed = make_training(evaluate_every=every, network=make_network(seed=9))
    resumed.load_state_dict(*saved)
    steps: list[int] = []
    assert list(resumed.epochs(steps.append)) == (rows[after // every :] if after < 12 else [])
    assert steps == list(range(after, 12))
    assert_same_state(resumed, whole)


def test_a_checkpoint_of_a_diverged_epoch_cannot_be_taken() -> None:
    training = make_training(FakeStep(class_losses={4: math.nan}))
    with pytest.raises(DivergedError, match="nan at step 4"):
        stopped_before(training, 5)


def test_training_changes_everything_that_is_compared_above() -> None:
    fresh, trained = make_training(), make_training()
    list(trained.epochs())
    before, after = fresh.state_dict()[0], trained.state_dict()[0]
    del before["metrics"], after["metrics"]  # empty at the end of an epoch
    unchanged = [name for name in before if torch.equal(before[name], after[name])]
    assert unchanged == []
    assert {name.split("/")[0] for name in after} == {"momentum", "student", "teacher"}


def test_finished_training_runs_no_more_epochs() -> None:
    training = make_training(epochs=1)
    assert len(list(training.epochs())) == 1
    assert list(training.epochs()) == []


# Randomness


def test_training_neither_reads_nor_moves_the_global_generator() -> None:
    runs = []
    for seed in (1, 2):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            before = torch.get_rng_state()
            training = make_training(epochs=2)
            list(training.epochs())
            assert torch.equal(torch.get_rng_state(), before)
            runs.append(training)
    assert_same_state(*runs)


@pytest.mark.parametrize("change", [{"seed": 2}, {"iteration": 3}], ids=str)
def test_another_seed_or_iteration_draws_another_order_and_augmentation(change: dict[str, int]) -> None:
    # Images and labels are compared apart: the order shows in the labels, the augmentation in single images.
    one, two = FakeStep(), FakeStep()
    list(make_training(one, epochs=1, seed=1, iteration=2).epochs())
    list(make_training(two, epochs=1, **({"iteration": 2} | change)).epochs())
    assert not torch.equal(one.batches[0].features, two.batches[0].features)
    flat = [{tuple(image.flatten().tolist()) for b in step.batches for image in b.images} for step in (one, two)]
    assert len(flat[0] & flat[1]) < len(flat[0]) / 2
    draws = [step.batches[0].draws for step in (one, two)]
    assert not torch.equal(draws[0]["pick_MB"], draws[1]["pick_MB"])


def test_streams_do_not_depend_on_each_other() -> None:
    # Neither the number of synthetic mini-batches nor the augmentation moves the order or the labels drawn.
    plain, greedy = FakeStep(), FakeStep(num_synthetic=50)
    list(make_training(plain).epochs())
    list(make_training(greedy, augmentation=Augmentation()).epochs())
    for one, two in zip(plain.batches, greedy.batches, strict=True):
        assert torch.equal(one.labels, two.labels)
        assert torch.equal(one.features, two.features)


def test_every_step_draws_its_own_synthetic_labels_and_augmentation() -> None:
    step = FakeStep()
    list(make_training(step).epochs())
    draws = {tuple(batch.draws["pick_MB"].flatten().tolist()) for batch in step.batches}
    assert len(draws) == len(step.batches) == 12


def test_random_layers_draw_anew_in_every_step_and_for_every_address() -> None:
    draws: list[float] = []
    step = FakeStep(lambda *_: draws.append(torch.rand(1).item()))
    for address in ({}, {"seed": 2}, {"iteration": 3}):
        step.batches.clear()
        list(make_training(step, **address).epochs())
    assert len(set(draws)) == len(draws) == 36


# Batches


def numbered_data(size: int = 27) -> TrainingData:
    """Image i has the value i everywhere."""
    data = make_data(size)
    images = torch.arange(size + 10, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 8, 8)
    store = MemoryImages(images, InputStatistics(torch.zeros(()), torch.tensor(1 / 255)), torch.device("cpu"))
    return replace(data, images=store, kept=data.train.labels == 0)


def test_images_labels_features_and_mask_of_a_batch_belong_together() -> None:
    data, step = numbered_data(), FakeStep()
    list(make_training(step, data, augmentation=Augmentation()).epochs())
    position = {int(row): i for i, row in enumerate(data.train.indices)}
    for batch in step.batches:
        at = torch.tensor([position[round(float(image[0, 0, 0]))] for image in batch.images])
        assert torch.equal(batch.labels, data.train.labels[at])
        assert torch.equal(batch.features, data.features[at])
        assert torch.equal(batch.kept, data.kept[at])
        assert batch.any_kept == bool(batch.kept.any())


def test_every_epoch_takes_full_batches_of_different_samples_in_a_new_order() -> None:
    data, step = numbered_data(), FakeStep()
    training = make_training(step, data, augmentation=Augmentation())
    assert training.steps_per_epoch == 3  # 27 samples: three are left over
    list(training.epochs())
    rows = torch.stack([batch.images[:, 0, 0, 0].round().long() for batch in step.batches])
    assert rows.shape == (12, BATCH_SIZE)
    epochs = [rows[3 * e : 3 * e + 3].flatten().tolist() for e in range(4)]
    trained = set(data.train.indices.tolist())
    assert all(len(set(epoch)) == 24 and set(epoch) <= trained for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert len(set().union(*epochs)) == 27  # what is dropped once comes up another time


def test_any_kept_is_false_where_nothing_of_a_batch_is_kept() -> None:
    data, step = numbered_data(), FakeStep()
    kept = torch.zeros(27, dtype=torch.bool)
    kept[0] = True
    list(make_training(step, replace(data, kept=kept), epochs=1).epochs())
    assert [batch.any_kept for batch in step.batches] == [bool(batch.kept.any()) for batch in step.batches]
    assert sum(batch.any_kept for batch in step.batches) <= 1


def test_without_filter_and_features_batches_have_none() -> None:
    step = FakeStep(needs_features=False)
    list(make_training(step, epochs=1).epochs())
    for batch in step.batches:
        assert (batch.kept, batch.any_kept, batch.features, batch.draws) == (None, True, None, {})


@pytest.mark.parametrize(("size", "batch_size", "steps"), [(8, 8, 1), (15, 8, 1), (16, 8, 2), (27, 8, 3)])
def test_steps_per_epoch(size: int, batch_size: int, steps: int) -> None:
    assert steps_per_epoch(size, batch_size) == steps


def test_fewer_samples_than_a_batch_are_named() -> None:
    with pytest.raises(ValueError, match="need at least one batch of 8 training samples, got 7"):
        make_training(data=make_data(size=7))


def test_steps_hear_the_rates_of_their_number() -> None:
    step = FakeStep()
    heard: list[int] = []
    list(make_training(step).epochs(heard.append))
    assert heard == list(range(12))
    assert step.rates == [SCHEDULE.at(i) for i in range(12)]


# Parameters that take no part in the forward pass, as some networks of timm have them


class WithUnused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.ones(3))  # first, so that an order of gradients that slips would show
        self.network = make_network()

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)


def steps_of_every_kind() -> list[StepFunction]:
    switches = [(order, update) for order in ("first", "second") for update in ("sequential", "joint")]
    forward = ForwardStep(0.9, 1e-3, "own", transition_matrix=torch.eye(NUM_CLASSES))
    return [forward, *(make_step(order=order, update=update) for order, update in switches)]


@pytest.mark.parametrize("step", steps_of_every_kind(), ids=["loss", "first", "first joint", "second", "second joint"])
def test_a_network_with_an_unused_parameter_trains_like_the_one_without(step: StepFunction) -> None:
    plain, padded = make_training(step), make_training(step, network=WithUnused())
    list(plain.epochs()), list(padded.epochs())
    assert plain.history == padded.history
    expected, actual = plain.module("student").state_dict(), padded.module("student").state_dict()
    assert [name for name in expected if not torch.equal(expected[name], actual[f"network.{name}"])] == []
    assert (actual["unused"] > 0.9).all()  # weight decay alone


# History


def test_row_of_history_by_hand() -> None:
    step = FakeStep(class_losses={3: 2.0, 4: 3.0, 5: 7.0}, meta_losses={4: 0.25, 5: 0.75})
    training = make_training(step, epochs=2)
    first, second = training.epochs()
    assert first["meta_loss"] is None
    assert second["epoch"] == 2
    assert second["class_loss"] == 4.0
    assert second["meta_loss"] == 0.5  # of the steps that had a meta update
    assert second["student_train_accuracy"] == 6 / 24
    assert second["teacher_train_accuracy"] is None
    assert second["lr"] == SCHEDULE.at(5).lr
    assert second["meta_lr"] == SCHEDULE.at(5).meta_lr > 0
    names = {f"{model}_{name}_accuracy" for model in MODELS for name in ("validation", "test")}
    assert names <= second.keys()
    assert training.history == [first, second]


@pytest.mark.parametrize(
    ("every", "epochs"),
    [
        (1, [1 / 3, 2 / 3, 1, 4 / 3, 5 / 3, 2]),
        (2, [2 / 3, 4 / 3, 2]),
        (3, [1, 2]),
        (4, [4 / 3, 2]),
        (6, [2]),
        (100, [2]),
    ],
)
def test_a_row_comes_every_so_many_steps_and_after_the_last(every: int, epochs: list[float]) -> None:
    training = make_training(epochs=2, evaluate_every=every)
    rows = list(training.epochs())
    assert [row["epoch"] for row in rows] == epochs
    assert [str(row["epoch"]) for row in rows if row["epoch"] in (1, 2)] == [str(e) for e in epochs if e in (1, 2)]
    assert training.history == rows


def test_a_row_inside_an_epoch_is_of_the_steps_since_the_row_before() -> None:
    losses = {0: 1.0, 1: 3.0, 2: 5.0, 3: 7.0, 4: 11.0, 5: 13.0}
    rows = list(make_training(FakeStep(class_losses=losses), epochs=2, evaluate_every=4).epochs())
    assert [row["class_loss"] for row in rows] == [4.0, 12.0]
    assert [row["lr"] for row in rows] == [SCHEDULE.at(step).lr for step in (3, 5)]
    assert list(rows[0]) == list(next(make_training(FakeStep(), epochs=1).epochs()))


def test_when_to_evaluate_changes_no_weights() -> None:
    often, seldom = make_training(evaluate_every=1), make_training(evaluate_every=100)
    list(often.epochs()), list(seldom.epochs())
    for name in MODELS:
        one, two = (training.module(name).state_dict() for training in (often, seldom))
        assert [key for key in one if not torch.equal(one[key], two[key])] == []


@dataclass
class CountingStep(FakeStep):
    """Remembers what it is told of epochs, and after how many steps."""

    told: list[tuple[str, int, int]] = field(default_factory=list)

    def begin_epoch(self, epoch: EpochContext) -> None:
        self.told.append(("begin", epoch.number, len(self.batches)))

    def end_epoch(self, epoch: EpochContext) -> None:
        self.told.append(("end", epoch.number, len(self.batches)))


@pytest.mark.parametrize("every", [1, 2, 3, 5, 6])
def test_epochs_begin_and_end_where_they_do_whenever_is_evaluated(every: int) -> None:
    step = CountingStep()
    list(make_training(step, epochs=2, evaluate_every=every).epochs())
    assert step.told == [("begin", 0, 0), ("end", 0, 3), ("begin", 1, 3), ("end", 1, 6)]


class OneAtATime(MemoryImages):
    """Like images in files: a new fetch ends the one before."""

    fetches = 0

    def fetch(self, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        self.fetches += 1
        current = self.fetches
        for fetched in super().fetch(batches):
            assert current == self.fetches
            yield fetched


def test_an_evaluation_inside_an_epoch_ends_no_fetch_that_goes_on() -> None:
    data, statistics = make_data(), InputStatistics(torch.tensor(0.5), torch.tensor(0.25))
    store = OneAtATime(data.images._images, statistics, torch.device("cpu"))
    expected = list(make_training(evaluate_every=2).epochs())
    assert list(make_training(data=replace(data, images=store), evaluate_every=2).epochs()) == expected


def test_the_best_weights_may_be_those_of_the_middle_of_an_epoch() -> None:
    training = biased_training([0, 0], [0, 0])
    training._step.action = lambda state, call: predict_(state.student.module, [0, 3, 1, 2, 0, 0][call])
    training.evaluate_every = 2
    rows = list(training.epochs())
    assert [row["student_validation_accuracy"] for row in rows] == [0.4, 0.3, 0.1]
    assert (training.best["student"].epoch, training.best["student"].accuracy) == (2 / 3, 0.4)
    assert training.best["student"].weights["1.bias"].argmax() == 3


def test_steps_without_synthetic_labels_report_no_meta_lr() -> None:
    (row,) = make_training(FakeStep(needs_features=False), epochs=1).epochs()
    assert row["meta_lr"] == 0.0


def test_accuracies_are_those_of_the_networks_in_eval_mode() -> None:
    data = make_data()
    training = make_training(make_step(), data, epochs=2)
    *_, row = training.epochs()
    for name in MODELS:
        module = training.module(name)
        assert module.training
        module.eval()
        for set_name, labeled in data.evaluation.items():
            with torch.no_grad():
                predicted = module(data.images.batch(labeled.indices)).argmax(1)
            assert row[f"{name}_{set_name}_accuracy"] == (predicted == labeled.labels).double().mean().item()


# Divergence


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("step", [0, 4, 11])
def test_diverged_class_loss_names_the_first_step(step: int, loss: float) -> None:
    fake = FakeStep(class_losses={step: loss, step + 1: math.nan})
    with pytest.raises(DivergedError, match=f"the loss was {loss} at step {step}$"):
        list(make_training(fake).epochs())
    assert len(fake.batches) <= 3 * (step // 3 + 1)  # no epoch after that one


def test_diverged_meta_loss_names_the_step() -> None:
    with pytest.raises(DivergedError, match=r"the loss was inf at step 4$"):
        list(make_training(FakeStep(meta_losses={4: math.inf})).epochs())


def test_large_learning_rate_diverges_with_the_step_in_the_message() -> None:
    training = make_training(make_step(num_synthetic=0))
    training._schedule = replace(SCHEDULE, lr=1e30)
    with pytest.raises(DivergedError, match=r"the loss was (nan|inf) at step [1-3]$"):
        list(training.epochs())


@pytest.mark.parametrize("update", ["sequential", "joint"])
def test_meta_update_that_is_not_a_number_is_named_in_its_own_step(update: str) -> None:
    # In a joint update the class loss of that step, taken before it, is still finite.
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, NUM_CLASSES))
    training = make_training(make_step(inner_lr=3e38, update=update), network=network)
    training._schedule = replace(SCHEDULE, meta_lr_ramp_steps=0)
    with pytest.raises(DivergedError, match=r"at step 0$"):
        list(training.epochs())


# Best models


def predict_(module: nn.Module, label: int) -> None:
    """Make the network answer `label` to everything."""
    with torch.no_grad():
        module[1].weight.zero_()
        module[1].bias.copy_(torch.eye(NUM_CLASSES)[label])


def biased_training(student: list[int], teacher: list[int]) -> Training:
    """After epoch e the networks answer `student[e]`, `teacher[e]`; label c has c + 1 of the ten samples."""

    def action(state: TrainState, call: int) -> None:
        predict_(state.student.module, student[call // 3])
        predict_(state.teacher.module, teacher[call // 3])

    data = make_data()
    labels = torch.tensor([0, 1, 1, 2, 2, 2, 3, 3, 3, 3])
    rows = data.evaluation["validation"].indices
    # `test` would choose another epoch: it must not.
    evaluation = {"test": LabeledSet(rows, 3 - labels), "validation": LabeledSet(rows, labels)}
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, NUM_CLASSES))
    return make_training(FakeStep(action), replace(data, evaluation=evaluation), network, epochs=len(student))


@pytest.mark.parametrize(
    ("answers", "epoch", "best"),
    [([0, 1, 2, 3], 4, 0.4), ([3, 2, 1, 0], 1, 0.4), ([1, 2, 0, 2], 2, 0.3), ([1, 1, 1], 1, 0.2)],
)
def test_best_is_the_earliest_epoch_of_the_highest_validation_accuracy(
    answers: list[int], epoch: int, best: float
) -> None:
    training = biased_training(answers, answers)
    rows = list(training.epochs())
    assert [row["student_validation_accuracy"] for row in rows] == [(c + 1) / 10 for c in answers]
    for name in MODELS:
        assert (training.best[name].epoch, training.best[name].accuracy) == (epoch, best)
        # The weights are those of that epoch, whatever the network became afterwards.
        assert training.best[name].weights["1.bias"].argmax() == answers[epoch - 1]


def test_student_and_teacher_have_their_own_best() -> None:
    training = biased_training([0, 3, 1], [2, 0, 1])
    list(training.epochs())
    assert [training.best[name].epoch for name in MODELS] == [2, 1]


@pytest.mark.parametrize(("student", "teacher", "mentor"), [(2, 3, "teacher"), (2, 2, "teacher"), (3, 2, "student")])
def test_mentor_is_the_better_model_and_the_teacher_of_equals(student: int, teacher: int, mentor: str) -> None:
    training = biased_training([student, 0], [teacher, 0])
    list(training.epochs())
    assert training.mentor() == mentor


def test_nothing_is_best_before_the_first_epoch() -> None:
    assert make_training().best == {name: Best(-1.0, -1, {}) for name in MODELS}


# Evaluation


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("batch_size", [3, 10, 100])
def test_predictions_are_those_in_eval_mode_whatever_the_batch_size(batch_size: int, training: bool) -> None:
    data, module = make_data(), make_network().train(training)
    module(torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(0)))
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    rows = data.evaluation["test"].indices
    (logits,) = predict_logits([Network(module)], data.images, rows, batch_size)
    assert not logits.requires_grad
    assert module.training == training
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    with torch.no_grad():
        torch.testing.assert_close(logits, module.eval()(data.images.batch(rows)), rtol=1e-5, atol=1e-6)


def test_several_networks_predict_as_each_alone_from_images_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    data, rows = make_data(), torch.arange(7)
    networks = [Network(make_network(seed)) for seed in (0, 1)]
    alone = [predict_logits([network], data.images, rows, 3)[0] for network in networks]
    read: list[Tensor] = []
    batch = data.images.batch
    monkeypatch.setattr(data.images, "batch", lambda fetched: (read.append(fetched), batch(fetched))[1])
    together = predict_logits(networks, data.images, rows, 3)
    assert torch.equal(torch.cat(read), rows)
    assert not torch.equal(*together)
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


def test_mode_is_restored_after_an_error() -> None:
    module = nn.Sequential(nn.Linear(3, 2)).train()
    with pytest.raises(RuntimeError, match="shapes"):
        predict_logits([Network(module)], make_data().images, torch.arange(2), 2)
    assert module.training


def random_predictions() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(50, 4, generator=generator), torch.randint(3, (50,), generator=generator)


def test_accuracy_and_confusion_equal_scikit_learn() -> None:
    logits, labels = random_predictions()
    predicted = logits.argmax(1).numpy()
    result = confusion(logits, labels)
    assert np.array_equal(result.counts, confusion_matrix(labels.numpy(), predicted, labels=range(4)))
    assert accuracy(logits, labels) == (predicted == labels.numpy()).mean() == result.counts.trace() / 50


def test_per_class_accuracy_is_none_for_a_class_without_samples() -> None:
    logits = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    assert confusion(logits, torch.tensor([0, 0, 2, 2])).per_class_accuracy == [0.5, None, 1.0]
