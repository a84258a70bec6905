from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import precision_score, recall_score, roc_auc_score
from torch import Tensor, nn

from mlnt.method.mentor import filter_by_margin, filter_quality, filter_samples, given_label_probability, merged_target
from mlnt.method.teacher import update_average_, update_buffers_
from mlnt.training.state import TrainState


def network(seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
        module(torch.randn(8, 3))
    return module


# Teacher


def test_teacher_starts_as_a_copy_without_gradients() -> None:
    student = network(0)
    teacher = TrainState(student).teacher.module
    for mine, other in zip(teacher.state_dict().values(), student.state_dict().values(), strict=True):
        assert torch.equal(mine, other)
        assert mine.data_ptr() != other.data_ptr()
    assert not any(p.requires_grad for p in teacher.parameters())
    assert all(p.requires_grad for p in student.parameters())


@pytest.mark.parametrize("decay", [0.1, 0.5, 0.99, 0.999])
def test_average_is_that_of_equation_3(decay: float) -> None:
    average, value = torch.tensor([1.0, -2.0], dtype=torch.float64), torch.tensor([3.0, 5.0], dtype=torch.float64)
    expected = decay * average + (1 - decay) * value
    update_average_([average], [value], decay)
    torch.testing.assert_close(average, expected, rtol=1e-14, atol=0)
    assert value.tolist() == [3.0, 5.0]


def random_pair() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1000, generator=generator), 100 * torch.randn(1000, generator=generator)


def test_decay_1_keeps_and_decay_0_copies_to_the_bit() -> None:
    average, value = random_pair()
    before = average.clone()
    update_average_([average], [value], 1.0)
    assert torch.equal(average, before)
    update_average_([average], [value], 0.0)
    assert torch.equal(average, value)


def test_buffers_follow_by_the_same_average_and_counters_stay() -> None:
    student, teacher = network(0), network(1)
    teacher[1].num_batches_tracked.fill_(7)
    means = [m.running_mean.clone() for m in (teacher[1], student[1])]
    variances = [m.running_var.clone() for m in (teacher[1], student[1])]
    parameters = [p.clone() for p in teacher.parameters()]
    update_buffers_(teacher, student, 0.75)
    torch.testing.assert_close(teacher[1].running_mean, 0.75 * means[0] + 0.25 * means[1])
    torch.testing.assert_close(teacher[1].running_var, 0.75 * variances[0] + 0.25 * variances[1])
    assert teacher[1].num_batches_tracked == 7
    assert torch.equal(student[1].running_mean, means[1])
    assert all(torch.equal(p, before) for p, before in zip(teacher.parameters(), parameters, strict=True))


def test_network_without_buffers_has_none_to_update() -> None:
    student, teacher = nn.Linear(2, 2), nn.Linear(2, 2)
    before = teacher.weight.clone()
    update_buffers_(teacher, student, 0.5)
    assert torch.equal(teacher.weight, before)


# Mentor


PROBS = torch.tensor([[0.7, 0.2, 0.1], [0.3, 0.3, 0.4], [0.0, 0.0, 1.0], [0.5, 0.25, 0.25]])
LABELS = torch.tensor([0, 1, 0, 2])


def test_probability_of_the_given_label() -> None:
    torch.testing.assert_close(given_label_probability(PROBS, LABELS), torch.tensor([0.7, 0.3, 0.0, 0.25]))


@pytest.mark.parametrize(
    ("threshold", "kept"),
    [
        (-0.1, [True, True, True, True]),
        (0.0, [True, True, False, True]),  # strictly more than τ
        (0.25, [True, True, False, False]),
        (0.5, [True, False, False, False]),
        (1.0, [False, False, False, False]),
    ],
)
def test_filter_keeps_what_exceeds_the_threshold(threshold: float, kept: list[bool]) -> None:
    assert filter_samples(PROBS, LABELS, threshold).tolist() == kept


def test_the_filter_by_margin_by_hand() -> None:
    """Where the mentor agrees, its label is 8, 4 and 2 times as likely as the second one: M = log 4."""
    probs = torch.tensor([[8, 1, 1], [4, 1, 1], [2, 1, 1], [4, 1, 2], [4, 1, 2], [5, 1, 5]])
    labels = torch.tensor([0, 0, 0, 1, 2, 1])  # the last three: another one is 4, 2 and 5 times as likely
    kept = [True, True, True, False, True, False]
    assert filter_by_margin(probs / probs.sum(dim=1, keepdim=True), labels).tolist() == kept


def test_of_look_alikes_the_filter_by_margin_expects_less() -> None:
    """M = log 8; class 2 is usually told from class 1 by a factor of 2 alone, from class 0 by one of 16."""
    probs = torch.tensor([*[[16, 1, 2]] * 3, *[[1, 8, 16]] * 2, [1, 4, 8], [4, 1, 8]])
    labels = torch.tensor([0, 0, 0, 2, 2, 1, 0])  # the last two: class 2 is 2 times as likely as class 1, as class 0
    kept = [True, True, True, True, True, False, True]
    assert filter_by_margin(probs / probs.sum(dim=1, keepdim=True), labels).tolist() == kept


@pytest.mark.parametrize("scale", [1e-30, 0.0])
def test_the_filter_by_margin_where_a_network_is_as_sure_as_can_be(scale: float) -> None:
    probs = torch.tensor([[1.0, scale, 0.0], [1.0, scale, 0.0], [0.5, 0.5, 0.0], [0.6, 0.4, 0.0]])
    labels = torch.tensor([0, 2, 1, 1])  # agrees, contradicts, undecided, contradicts by little
    assert filter_by_margin(probs[[0, 0, 1, 2, 3]], labels[[0, 0, 1, 2, 3]]).tolist() == [True, True, False, True, True]


@pytest.mark.parametrize(
    ("at_most", "kept"),
    [
        (1.0, [True, True, True, False, True, False]),
        (0.7, [True, True, True, False, True, False]),
        (0.5, [True, True, True, False, False, False]),
        (0.3, [True, True, False, False, False, False]),
        (0.0, [True, False, False, False, False, False]),  # the firmest one stays
    ],
)
def test_the_filter_by_margin_keeps_the_firmest_of_those_that_a_mentor_has_learnt(
    at_most: float, kept: list[bool]
) -> None:
    probs = torch.tensor([[8, 1, 1], [4, 1, 1], [2, 1, 1], [4, 1, 2], [4, 1, 2], [5, 1, 5]])
    labels = torch.tensor([0, 0, 0, 1, 2, 1])
    assert filter_by_margin(probs / probs.sum(dim=1, keepdim=True), labels, at_most).tolist() == kept


def test_a_share_brings_no_look_alike_back_that_the_rule_leaves_out() -> None:
    """The sixth is left out by the margin of its pair, though by its own margin it is above the last two."""
    probs = torch.tensor([*[[16, 1, 2]] * 3, *[[1, 8, 16]] * 2, [1, 4, 8], [4, 1, 8], [3.9, 1, 8]])
    probs, labels = probs / probs.sum(dim=1, keepdim=True), torch.tensor([0, 0, 0, 2, 2, 1, 0, 0])
    usual = filter_by_margin(probs, labels)
    assert usual.tolist() == [True, True, True, True, True, False, True, True]
    assert filter_by_margin(probs, labels, 0.8).tolist() == [True, True, True, True, True, False, True, False]


def test_where_the_mentor_agrees_with_nothing_the_filter_by_margin_keeps_all() -> None:
    assert filter_by_margin(PROBS[:3], torch.tensor([1, 0, 1])).all()


def test_merged_target_ends_at_mentor_and_teacher_to_the_bit() -> None:
    teacher, mentor = (x.reshape(100, 10).softmax(1) for x in random_pair())
    assert torch.equal(merged_target(teacher, mentor, 0.0), mentor)
    assert torch.equal(merged_target(teacher, mentor, 1.0), teacher)


@pytest.mark.parametrize("weight", [0.1, 0.25, 0.5, 0.9])
def test_merged_target_is_that_of_equation_12(weight: float) -> None:
    teacher, mentor = (x.reshape(100, 10).double().softmax(1) for x in random_pair())
    merged = merged_target(teacher, mentor, weight)
    torch.testing.assert_close(merged, weight * teacher + (1 - weight) * mentor, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(merged.sum(1), torch.ones(100, dtype=torch.float64))


def test_filter_quality_by_hand() -> None:
    # Scores of the given labels; wrong: 0.1 (removed), 0.6 (kept); correct: 0.9, 0.6, 0.8 (kept), 0.2 (removed).
    scores = np.array([0.1, 0.6, 0.9, 0.6, 0.8, 0.2])
    wrong = np.array([True, True, False, False, False, False])
    quality = filter_quality(scores, scores > 0.3, wrong)
    assert quality.purity == 3 / 4
    assert quality.precision == 1 / 2
    assert quality.recall == 1 / 2
    assert quality.auc == pytest.approx((4 + 2.5) / 8)  # 0.6 beats 0.9 and 0.8, ties with 0.6, loses to 0.2


def test_filter_quality_equals_scikit_learn() -> None:
    generator = np.random.default_rng(0)
    wrong = generator.random(300) < 0.4
    scores = np.round(np.clip(generator.normal(0.6 - 0.2 * wrong, 0.2), 0, 1), 1)  # rounded: with ties
    kept = scores > 0.4
    quality = filter_quality(scores, kept, wrong)
    assert quality.purity == pytest.approx(precision_score(~wrong, kept))
    assert quality.precision == pytest.approx(precision_score(wrong, ~kept))
    assert quality.recall == pytest.approx(recall_score(wrong, ~kept))
    assert quality.auc == pytest.approx(roc_auc_score(wrong, 1 - scores))


@pytest.mark.parametrize(
    ("kept", "wrong", "undefined"),
    [
        ([True, True], [True, False], {"precision"}),
        ([False, False], [True, False], {"purity"}),
        ([True, False], [False, False], {"recall", "auc"}),
        ([True, False], [True, True], {"auc"}),
    ],
)
def test_shares_of_nothing_are_nan(kept: list[bool], wrong: list[bool], undefined: set[str]) -> None:
    quality = filter_quality(np.array([0.9, 0.1]), np.array(kept), np.array(wrong))
    assert {name for name, value in quality._asdict().items() if math.isnan(value)} == undefined
