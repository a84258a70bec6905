from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor

from mlnt.method.losses import (
    KLReduction,
    classification_gradient,
    classification_loss,
    consistency_gradient,
    consistency_loss,
)

REDUCTIONS: list[KLReduction] = ["batchmean", "mean"]


def logits(rows: int, classes: int) -> st.SearchStrategy[Tensor]:
    return arrays(np.float64, (rows, classes), elements=st.floats(-30, 30)).map(torch.from_numpy)


shapes = st.tuples(st.integers(1, 6), st.integers(2, 5))
pairs = shapes.flatmap(lambda shape: st.tuples(logits(*shape), logits(*shape)))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@given(pair=pairs)
def test_j_is_not_negative(reduction: KLReduction, pair: tuple[Tensor, Tensor]) -> None:
    target, other = pair
    assert consistency_loss(target.softmax(1), other, reduction) >= -1e-14


@pytest.mark.parametrize("reduction", REDUCTIONS)
@given(pair=pairs, shift=st.floats(-5, 5))
def test_j_is_0_for_equal_predictions_whatever_their_logits(
    reduction: KLReduction, pair: tuple[Tensor, Tensor], shift: float
) -> None:
    probs = pair[0].softmax(1)
    assert abs(consistency_loss(probs, pair[0] + shift, reduction)) < 1e-13
    assert consistency_gradient(probs, pair[0] + shift, reduction).abs().max() < 1e-14


@pytest.mark.parametrize("reduction", REDUCTIONS)
@given(pair=pairs)
def test_j_is_0_for_equal_predictions_only(reduction: KLReduction, pair: tuple[Tensor, Tensor]) -> None:
    target, other = pair[0].softmax(1), pair[1]
    difference = (target - other.softmax(1)).abs().sum(1)
    assume(difference.max() > 1e-5)
    # Pinsker's inequality: D_KL ≥ ‖p − q‖₁² / 2.
    bound = (difference**2).sum() / 2 / (target.numel() if reduction == "mean" else len(target))
    assert consistency_loss(target, other, reduction) >= bound * (1 - 1e-6) - 1e-14 > 0


@pytest.mark.parametrize("reduction", REDUCTIONS)
@given(pair=pairs)
def test_consistency_gradient_equals_autograd(reduction: KLReduction, pair: tuple[Tensor, Tensor]) -> None:
    target, other = pair[0].softmax(1), pair[1].clone().requires_grad_()
    expected = torch.autograd.grad(consistency_loss(target, other, reduction), other)[0]
    actual = consistency_gradient(target, other.detach(), reduction)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-14)


@given(st.tuples(st.integers(3, 6), st.integers(2, 5)).flatmap(lambda shape: logits(*shape)), st.data())
def test_classification_gradient_equals_autograd(scores: Tensor, data: st.DataObject) -> None:
    rows, classes = scores.shape
    labels = torch.tensor(data.draw(st.lists(st.integers(0, classes - 1), min_size=rows, max_size=rows)))
    scores.requires_grad_()
    loss = classification_loss(scores, labels)
    assert loss >= 0
    expected = torch.autograd.grad(loss, scores)[0]
    actual = classification_gradient(scores.detach().softmax(1), labels)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-14)
