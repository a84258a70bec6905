from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor

from mlnt.method.confident import LabelScores, issue_threshold, issue_thresholds


@st.composite
def predictions(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Probabilities [N, C] and given labels [N]."""
    size, num_classes = draw(st.integers(1, 20)), draw(st.integers(2, 5))
    logits = draw(arrays(np.float32, (size, num_classes), elements=st.floats(-4, 4, width=32)))
    labels = draw(arrays(np.int64, size, elements=st.integers(0, num_classes - 1)))
    return torch.from_numpy(logits).softmax(1), torch.from_numpy(labels)


def found(probs: Tensor, labels: Tensor) -> float:
    return issue_threshold(labels, LabelScores.of(probs, labels), probs.shape[1])


@given(predictions())
def test_the_threshold_is_what_its_definition_says(case: tuple[Tensor, Tensor]) -> None:
    probs, labels = case[0].double().numpy(), case[1].numpy()
    sizes = np.bincount(labels, minlength=probs.shape[1])
    own = probs[np.arange(len(labels)), labels]
    mean = [own[labels == c].mean() if sizes[c] else np.inf for c in range(len(sizes))]
    surest, top = probs.argmax(axis=1), probs.max(axis=1)
    sure = top >= np.array(mean)[surest]
    right = own == top
    wrong = 0.0
    for c in np.unique(labels[sure]):
        of_class = sure & (labels == c)
        wrong += sizes[c] * (1 - right[of_class].sum() / of_class.sum())
    threshold = found(*case)
    if round(wrong) == 0:
        assert threshold == -1
    else:
        assert threshold == np.sort(own)[round(wrong) - 1]
        assert (own <= threshold).sum() >= round(wrong)


@given(predictions(), st.randoms(use_true_random=False))
def test_the_order_of_samples_does_not_matter(case: tuple[Tensor, Tensor], random: object) -> None:
    order = list(range(len(case[1])))
    random.shuffle(order)  # type: ignore[attr-defined]
    assert found(case[0][order], case[1][order]) == found(*case)


@given(predictions())
def test_labels_that_the_network_would_give_are_never_wrong(case: tuple[Tensor, Tensor]) -> None:
    assert found(case[0], case[0].argmax(dim=1)) == -1


@given(predictions())
def test_a_network_that_knows_nothing_doubts_nothing(case: tuple[Tensor, Tensor]) -> None:
    """A head before its first step, for instance: all classes are equally likely."""
    classes = case[0].shape[1]
    assert found(torch.full_like(case[0], 1 / classes), case[1]) == -1


@given(predictions(), st.floats(0, 1))
def test_a_share_adds_the_lowest_and_takes_nothing_away(case: tuple[Tensor, Tensor], at_least: float) -> None:
    probs, labels = case
    scores = LabelScores.of(probs, labels)
    own, found = (scores.given <= issue_thresholds(labels, scores, probs.shape[1], each) for each in (0.0, at_least))
    assert not (own & ~found).any()
    added, left = scores.given[found & ~own], scores.given[~found]
    if len(added) and len(left):
        assert added.max() < left.min()
    if len(scores.given.unique()) == len(labels):
        assert found.sum() >= round(at_least * len(labels))
