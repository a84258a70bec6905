"""The steps that the benchmark compares do the same: else their times would mean nothing."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from rivals import PlainStep, ReleasedStep, Settings, by_hand, by_torchopt
from torch import Tensor

from mlnt.method import neighbors
from mlnt.method.step import MLNTStep
from mlnt.networks import create_model, pre_logit_features
from mlnt.seeding import generator
from mlnt.training.state import Batch, Rates, TrainState

SETTINGS = Settings(num_synthetic=3, num_neighbors=4)
RATES = Rates(lr=0.1, meta_lr=0.3, ema_decay=0.9, teacher_weight=0.0)


def fresh() -> tuple[TrainState, Batch]:
    draw = torch.Generator().manual_seed(3)
    student = create_model("preact_resnet_tiny", num_classes=5, in_chans=1, seed=1).double()
    state = TrainState(student)
    images = torch.randn(16, 1, 8, 8, generator=draw, dtype=torch.float64)
    # The released code takes the features from a forward pass; here of the teacher.
    features = pre_logit_features(copy.deepcopy(state.teacher.module), images).detach()
    labels = torch.randint(5, (16,), generator=draw)
    return state, Batch(images, labels, features=features, draws=package("first").draw(16, generator(0, "labels")))


def package(order: Any) -> MLNTStep:
    s = SETTINGS
    return MLNTStep(
        s.num_synthetic,
        s.replace_fraction,
        s.num_neighbors,
        s.inner_lr,
        s.momentum,
        s.weight_decay,
        order=order,
        update="joint",
    )


def weights_after(step: Any) -> Tensor:
    state, batch = fresh()
    step(state, batch, RATES)
    return torch.cat([p.detach().flatten() for p in [*state.student.parameters, *state.teacher.parameters]])


@pytest.mark.parametrize("inner_update", [by_hand, by_torchopt])
def test_the_plain_loop_is_the_joint_step(inner_update: Any) -> None:
    expected = weights_after(package("first"))
    torch.testing.assert_close(weights_after(PlainStep(SETTINGS, inner_update)), expected, rtol=1e-10, atol=1e-12)
    assert not torch.equal(expected, torch.cat([p.flatten() for p in fresh_weights()]))


def fresh_weights() -> list[Tensor]:
    state, _ = fresh()
    return [*state.student.parameters, *state.teacher.parameters]


@pytest.mark.parametrize("order", ["first", "second"])
def test_the_released_step_is_the_joint_step_with_its_own_labels(order: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its labels come from another order of random numbers: give it the package's."""
    _, batch = fresh()
    assert batch.features is not None
    nearest = neighbors.nearest_neighbors(batch.features, SETTINGS.num_neighbors)
    drawn = iter(neighbors.synthetic_labels(batch.labels, nearest, neighbors.Draws(**batch.draws)))
    step = ReleasedStep(SETTINGS, order)
    monkeypatch.setattr(step, "_synthetic", lambda labels, features: next(drawn))
    expected = weights_after(package(order))
    torch.testing.assert_close(weights_after(step), expected, rtol=1e-10, atol=1e-12)


def test_the_released_labels_come_from_neighbours() -> None:
    _, batch = fresh()
    assert batch.features is not None
    new = ReleasedStep(SETTINGS, "first")._synthetic(batch.labels, batch.features)
    nearest = neighbors.nearest_neighbors(batch.features, SETTINGS.num_neighbors)
    changed = (new != batch.labels).nonzero().flatten()
    assert 0 < len(changed) <= 8
    assert all(new[i] in batch.labels[nearest[i]] for i in changed)
