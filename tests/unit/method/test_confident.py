from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mlnt.method.confident import LabelScores, confidence, issue_threshold, issue_thresholds, least_share, sure

LABELS = torch.tensor([0, 0, 0, 1, 1, 1, 1])
PROBS = torch.tensor(
    [
        [0.9, 0.1, 0.0],
        [0.7, 0.2, 0.1],
        [0.2, 0.8, 0.0],  # wrong
        [0.3, 0.6, 0.1],
        [0.1, 0.9, 0.0],
        [0.8, 0.15, 0.05],  # wrong
        [0.05, 0.15, 0.8],  # of a class that no label names
    ]
)
"""t = (1.8 / 3, 1.8 / 4, ∞)."""


def scores_of(probs: Tensor, labels: Tensor = LABELS) -> LabelScores:
    return LabelScores.of(probs, labels)


def test_the_scores_are_those_of_the_given_and_of_the_likeliest_label() -> None:
    scores = scores_of(PROBS)
    assert scores.predicted.tolist() == [0, 0, 1, 1, 1, 0, 2]
    assert scores.given.tolist() == pytest.approx([0.9, 0.7, 0.2, 0.6, 0.9, 0.15, 0.15])
    assert scores.highest.tolist() == pytest.approx([0.9, 0.7, 0.8, 0.6, 0.9, 0.8, 0.8])
    assert scores.agree.tolist() == [True, True, False, True, True, False, False]


def test_a_network_counts_as_sure_from_its_mean_on() -> None:
    scores = scores_of(PROBS)
    assert confidence(LABELS, scores, 3).tolist() == pytest.approx([0.6, 0.45, math.inf])
    assert sure(LABELS, scores, 3).tolist() == [True, True, True, True, True, True, False]


def test_as_many_are_listed_as_are_probably_wrong() -> None:
    """n̂ = 3 (1 − 2/3) + 4 (1 − 2/3) = 2.33: the second lowest of 0.15, 0.15, 0.2, … ."""
    scores = scores_of(PROBS)
    threshold = issue_threshold(LABELS, scores, 3)
    assert threshold == pytest.approx(0.15)
    assert (scores.given <= threshold).sum() == 2


def test_a_class_that_the_network_is_never_sure_of_counts_none() -> None:
    labels = torch.tensor([0, 0, 0, 1, 1])
    probs = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.1, 0.9], [0.8, 0.2], [0.7, 0.3]])
    # t = (0.63, 0.25): all are sure. n̂ = 3 · 1/3 + 2 · 1.
    assert issue_threshold(labels, scores_of(probs, labels), 2) == pytest.approx(0.3)
    probs[3:] = torch.tensor([[0.6, 0.4], [0.55, 0.45]])  # t_0 is not reached, so class 1 says nothing: n̂ = 1
    assert issue_threshold(labels, scores_of(probs, labels), 2) == pytest.approx(0.1)


def test_where_nothing_is_wrong_nothing_is_listed() -> None:
    scores = scores_of(PROBS, PROBS.argmax(dim=1))
    assert issue_threshold(PROBS.argmax(dim=1), scores, 3) == -1
    assert not (scores.given <= -1).any()


def test_as_likely_as_the_given_one_is_no_contradiction() -> None:
    """arg max names the first of equals: every label but class 0 would be wrong to a network that knows nothing."""
    labels = torch.tensor([0, 1, 2])
    scores = scores_of(torch.full((3, 3), 1 / 3), labels)
    assert issue_threshold(labels, scores, 3) == -1


def test_labels_that_the_network_agrees_with_are_listed_only_to_reach_a_share() -> None:
    """0.15 is the threshold; of the lowest probabilities 0.15, 0.15, 0.2, 0.6 the last is of such a label."""
    scores = scores_of(PROBS)
    own = issue_thresholds(LABELS, scores, 3)
    assert torch.equal(own == -1, scores.agree)
    assert (scores.given <= own).sum() == 2
    for at_least, listed in ((0.0, 2), (0.3, 2), (0.43, 3), (0.6, 4), (1.0, 7)):
        found = scores.given <= issue_thresholds(LABELS, scores, 3, at_least)
        assert found.sum() == listed
        assert listed == 7 or scores.given[found].max() < scores.given[~found].min()


def test_what_is_contradicted_stays_listed_where_lower_ones_make_up_the_share() -> None:
    """n̂ = 3.5, and the fourth lowest is 0.4; the three below have no likelier label."""
    undecided = [[0.34, 0.33, 0.33], [0.345, 0.33, 0.325], [0.35, 0.33, 0.32]]
    probs = torch.tensor([*undecided, *[[0.4, 0.6, 0.0]] * 2, *[[0.9, 0.1, 0.0]] * 2, [0.5, 0.5, 0.0]])
    labels = torch.tensor([0] * 7 + [1])
    scores = scores_of(probs, labels)
    for at_least, listed in ((0.0, [3, 4]), (0.375, [0, 1, 2, 3, 4])):
        found = scores.given <= issue_thresholds(labels, scores, 3, at_least)
        assert found.nonzero().flatten().tolist() == listed


def test_equals_of_the_last_are_listed_only_if_all_fit() -> None:
    """Probabilities of labels that were learnt by heart are 1.0 exactly, in float32."""
    probs = torch.tensor([[0.7, 0.3], *[[1.0, 0.0]] * 9])
    labels = torch.zeros(10, dtype=torch.int64)
    for at_least, listed in ((0.0, 0), (0.1, 1), (0.2, 1), (1.0, 10)):
        found = scores_of(probs, labels).given <= issue_thresholds(labels, scores_of(probs, labels), 2, at_least)
        assert found.sum() == listed


@pytest.mark.parametrize(("doubted", "count", "least"), [(0, 10, 0.0), (10, 10, 1.0), (5, 100, 0.0282), (0, 0, 0.0)])
def test_the_least_share_is_one_standard_error_below(doubted: int, count: int, least: float) -> None:
    assert least_share(torch.arange(count) < doubted) == pytest.approx(least, abs=1e-4)


@pytest.mark.parametrize("doubted", [1, 2])
def test_of_a_handful_of_labels_hardly_anything_follows(doubted: int) -> None:
    assert least_share(torch.arange(3) < doubted) < doubted / 3 - 0.27
