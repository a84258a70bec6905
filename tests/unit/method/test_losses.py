from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mlnt.method.losses import (
    KLReduction,
    classification_gradient,
    classification_loss,
    consistency_gradient,
    consistency_loss,
)

MASKS = {
    "unfiltered": None,
    "all": torch.ones(6, dtype=torch.bool),
    "some": torch.tensor([True, False, True, True, False, False]),
    "one": torch.arange(6) == 4,
    "none": torch.zeros(6, dtype=torch.bool),
}
LABELS = torch.tensor([0, 1, 2, 3, 1, 1])
REDUCTIONS: list[KLReduction] = ["batchmean", "mean"]


def random_logits(seed: int) -> Tensor:
    return 3 * torch.randn(6, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_classification_loss_by_hand() -> None:
    # p = (3/4, 1/4) and (1/2, 1/2), labels 0 and 1.
    logits = torch.tensor([[math.log(3), 0.0], [0.0, 0.0]], dtype=torch.float64)
    labels = torch.tensor([0, 1])
    expected = (math.log(4 / 3) + math.log(2)) / 2
    assert classification_loss(logits, labels).item() == pytest.approx(expected, rel=1e-14)
    only_first = torch.tensor([True, False])
    assert classification_loss(logits, labels, only_first).item() == pytest.approx(math.log(4 / 3), rel=1e-14)


@pytest.mark.parametrize("mask", ["all", "some", "one"])
def test_masked_loss_is_the_mean_over_the_kept_samples(mask: str) -> None:
    kept = MASKS[mask]
    expected = F.cross_entropy(random_logits(0)[kept], LABELS[kept])
    torch.testing.assert_close(classification_loss(random_logits(0), LABELS, kept), expected, rtol=1e-14, atol=0)


def test_loss_without_kept_samples_is_zero_with_zero_gradient() -> None:
    logits = random_logits(0).requires_grad_()
    loss = classification_loss(logits, LABELS, MASKS["none"])
    assert loss == 0
    assert torch.equal(torch.autograd.grad(loss, logits)[0], torch.zeros_like(logits))


def test_a_removed_sample_whose_loss_overflows_leaves_loss_and_gradient_as_they_are() -> None:
    logits = random_logits(0).float()
    kept = MASKS["some"]
    expected = classification_loss(logits, LABELS, kept)
    removed = torch.full((4,), 3e38)
    removed[LABELS[1]] = -3e38
    logits[1] = removed
    assert F.cross_entropy(logits, LABELS, reduction="none")[1].isinf()
    logits.requires_grad_()
    loss = classification_loss(logits, LABELS, kept)
    assert torch.equal(loss, expected)
    gradient = torch.autograd.grad(loss, logits)[0]
    assert gradient.isfinite().all()
    assert torch.equal(gradient[1], torch.zeros(4))


def test_classification_gradient_equals_autograd() -> None:
    logits = random_logits(0).requires_grad_()
    expected = torch.autograd.grad(classification_loss(logits, LABELS), logits)[0]
    probs = logits.detach().softmax(1)
    before = probs.clone()
    torch.testing.assert_close(classification_gradient(probs, LABELS), expected, rtol=1e-12, atol=1e-15)
    assert torch.equal(probs, before)


def test_removed_samples_have_no_gradient() -> None:
    logits = random_logits(0).requires_grad_()
    gradient = torch.autograd.grad(classification_loss(logits, LABELS, MASKS["some"]), logits)[0]
    assert torch.equal(gradient.abs().sum(1) > 0, MASKS["some"])


def test_classification_gradient_keeps_the_precision_of_the_probabilities() -> None:
    for dtype in (torch.float32, torch.float64):
        assert classification_gradient(random_logits(0).to(dtype).softmax(1), LABELS).dtype == dtype


@pytest.mark.parametrize(("reduction", "factor"), [("batchmean", 1.0), ("mean", 0.5)])
def test_consistency_loss_by_hand(reduction: KLReduction, factor: float) -> None:
    # D_KL((1/2, 1/2) ‖ (3/4, 1/4)) = ½ ln(2/3) + ½ ln 2 = ½ ln(4/3), and an equal pair.
    target = torch.tensor([[0.5, 0.5], [0.5, 0.5]], dtype=torch.float64)
    logits = torch.tensor([[math.log(3), 0.0], [0.0, 0.0]], dtype=torch.float64)
    expected = factor * 0.5 * math.log(4 / 3) / 2
    assert consistency_loss(target, logits, reduction).item() == pytest.approx(expected, rel=1e-14)


def test_consistency_loss_is_from_the_target_to_the_network() -> None:
    target, logits = random_logits(1).softmax(1), random_logits(2)
    expected = (target * (target / logits.softmax(1)).log()).sum(1).mean()
    torch.testing.assert_close(consistency_loss(target, logits), expected, rtol=1e-12, atol=0)
    # The divergence is not symmetric, so its direction shows.
    assert not torch.isclose(consistency_loss(logits.softmax(1), target.log()), expected)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_consistency_gradient_equals_autograd(reduction: KLReduction) -> None:
    target, logits = random_logits(1).softmax(1), random_logits(2).requires_grad_()
    expected = torch.autograd.grad(consistency_loss(target, logits, reduction), logits)[0]
    actual = consistency_gradient(target, logits.detach(), reduction)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-15)


def test_consistency_loss_takes_targets_with_zeros() -> None:
    target = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    logits = torch.zeros(1, 2, dtype=torch.float64)
    assert consistency_loss(target, logits).item() == pytest.approx(math.log(2), rel=1e-14)
