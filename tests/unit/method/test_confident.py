from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from mlnt.method.confident import LabelScores, confidence, issue_threshold, pruned_by_noise_rate

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


def test_what_is_pruned_by_hand() -> None:
    """J = (2 1 0; 1 2 0), the last sample counts for nothing: n̂_01 = 3 · 1/3, n̂_10 = 4 · 1/3, one label each."""
    assert confidence(LABELS, scores_of(PROBS), 3).tolist() == pytest.approx([0.6, 0.45, math.inf])
    assert pruned_by_noise_rate(PROBS, LABELS).tolist() == [False, False, True, False, False, True, False]


def test_below_its_mean_a_network_is_not_sure() -> None:
    probs = PROBS.clone()
    probs[5] = torch.tensor([0.55, 0.2, 0.25])  # another label is likelier, but not as likely as class 0 usually is
    assert pruned_by_noise_rate(probs, LABELS).tolist() == [False, False, True, False, False, False, False]
    labels = torch.tensor([0, 1, 1])
    probs = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.1, 0.9]])  # t_0 itself is enough
    assert pruned_by_noise_rate(probs, labels).tolist() == [False, True, False]


def test_cleanlab_prunes_nearly_the_same() -> None:
    from cleanlab.filter import find_label_issues

    generator = np.random.default_rng(0)
    true, logits = generator.integers(0, 10, 1500), generator.normal(0, 2, (1500, 10))
    logits[np.arange(1500), true] += 3
    labels = np.where(generator.random(1500) < 0.4, generator.integers(0, 10, 1500), true)
    probs = torch.from_numpy(logits).softmax(dim=1)
    pruned = pruned_by_noise_rate(probs, torch.from_numpy(labels)).numpy()
    theirs = find_label_issues(labels, probs.numpy(), filter_by="prune_by_noise_rate", n_jobs=1)
    assert theirs.sum() > 700
    assert (pruned != theirs).sum() < 10


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
    assert not pruned_by_noise_rate(torch.full((3, 3), 1 / 3), labels).any()
    assert issue_threshold(labels, scores, 3) == -1
    labels = torch.tensor([1, 1, 1, 1, 0])
    probs = torch.tensor([[0.4, 0.4, 0.2], *[[0.0, 1.0, 0.0]] * 3, [0.3, 0.35, 0.35]])  # t = (0.3, 0.85, ∞)
    assert not pruned_by_noise_rate(probs, labels)[0]
