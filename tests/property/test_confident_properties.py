from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor

from mlnt.method.confident import LabelScores, issue_threshold, pruned_by_noise_rate


@st.composite
def predictions(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Probabilities [N, C] and given labels [N]."""
    size, num_classes = draw(st.integers(1, 20)), draw(st.integers(2, 5))
    logits = draw(arrays(np.float32, (size, num_classes), elements=st.floats(-4, 4, width=32)))
    labels = draw(arrays(np.int64, size, elements=st.integers(0, num_classes - 1)))
    return torch.from_numpy(logits).softmax(1), torch.from_numpy(labels)


def found(probs: Tensor, labels: Tensor) -> tuple[Tensor, float]:
    scores, classes = LabelScores.of(probs, labels), probs.shape[1]
    return pruned_by_noise_rate(probs, labels), issue_threshold(labels, scores, classes)


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
    _, threshold = found(*case)
    if round(wrong) == 0:
        assert threshold == -1
    else:
        assert threshold == np.sort(own)[round(wrong) - 1]
        assert (own <= threshold).sum() >= round(wrong)


@given(predictions())
def test_pruned_is_what_its_definition_says(case: tuple[Tensor, Tensor]) -> None:
    probs, labels = case[0].numpy(), case[1].numpy()
    classes = range(probs.shape[1])
    mean = {c: probs[labels == c, c].astype(np.float64).mean() if (labels == c).any() else np.inf for c in classes}
    expected = np.zeros(len(labels), bool)
    for i in np.unique(labels):
        rows = np.flatnonzero(labels == i)
        counts = np.zeros(len(classes))
        for row in probs[rows]:
            if certain := [c for c in classes if row[c] >= mean[c]]:
                counts[max(certain, key=lambda c: row[c])] += 1
        counts[i] = max(counts[i], 1)
        for j in classes:
            number = round(len(rows) * counts[j] / counts.sum())
            if j != i and number:
                margins = probs[rows, j] - probs[rows, i]
                expected[rows[margins >= np.sort(margins)[-number]]] = True
    expected &= probs[np.arange(len(labels)), labels] < probs.max(axis=1)
    marked, _ = found(*case)
    assert marked.tolist() == expected.tolist()


@given(predictions(), st.randoms(use_true_random=False))
def test_the_order_of_samples_does_not_matter(case: tuple[Tensor, Tensor], random: object) -> None:
    order = list(range(len(case[1])))
    random.shuffle(order)  # type: ignore[attr-defined]
    marked, threshold = found(*case)
    other, same = found(case[0][order], case[1][order])
    assert torch.equal(other, marked[order])
    assert same == threshold


@given(predictions())
def test_labels_that_the_network_would_give_are_never_wrong(case: tuple[Tensor, Tensor]) -> None:
    probs = case[0]
    marked, threshold = found(probs, probs.argmax(dim=1))
    assert not marked.any()
    assert threshold == -1


@given(predictions())
def test_a_network_that_knows_nothing_doubts_nothing(case: tuple[Tensor, Tensor]) -> None:
    """A head before its first step, for instance: all classes are equally likely."""
    classes = case[0].shape[1]
    marked, threshold = found(torch.full_like(case[0], 1 / classes), case[1])
    assert not marked.any()
    assert threshold == -1
