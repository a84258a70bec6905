from __future__ import annotations

import math
from dataclasses import replace

import pytest

from mlnt.method.schedules import Schedule, ramp_up

SCHEDULE = Schedule(
    lr=0.2,
    lr_drop_steps=(80, 100),
    lr_drop_factor=0.1,
    meta_lr=0.4,
    meta_lr_ramp="linear",
    meta_lr_ramp_steps=20,
    meta_lr_decays=False,
    ema_decay_start=0.99,
    ema_decay_start_steps=20,
    ema_decay=0.999,
    teacher_weight=0.5,
    teacher_weight_ramp="linear",
    num_steps=121,
)


@pytest.mark.parametrize(("step", "u"), [(0, 0.0), (5, 0.25), (19, 0.95), (20, 1.0), (500, 1.0)])
def test_linear_ramp(step: int, u: float) -> None:
    assert ramp_up(step, 20, "linear") == u


@pytest.mark.parametrize(("step", "value"), [(0, math.exp(-5)), (10, math.exp(-1.25)), (20, 1.0), (21, 1.0)])
def test_sigmoid_ramp_is_that_of_the_released_code(step: int, value: float) -> None:
    assert ramp_up(step, 20, "sigmoid") == pytest.approx(value, rel=1e-15)


@pytest.mark.parametrize("shape", ["linear", "sigmoid"])
def test_no_ramp_is_1_from_the_start(shape: str) -> None:
    assert ramp_up(0, 0, shape) == 1.0


@pytest.mark.parametrize(("step", "lr"), [(0, 0.2), (79, 0.2), (80, 0.02), (99, 0.02), (100, 0.002), (120, 0.002)])
def test_lr_drops_at_the_named_steps(step: int, lr: float) -> None:
    assert SCHEDULE.at(step).lr == pytest.approx(lr, rel=1e-12)


@pytest.mark.parametrize(("step", "meta_lr"), [(0, 0.0), (1, 0.02), (10, 0.2), (20, 0.4), (120, 0.4)])
def test_meta_lr_ramps_up_and_stays(step: int, meta_lr: float) -> None:
    assert SCHEDULE.at(step).meta_lr == pytest.approx(meta_lr, rel=1e-12)


def test_meta_lr_can_decay_with_lr() -> None:
    decays = replace(SCHEDULE, meta_lr_decays=True)
    assert [decays.at(step).meta_lr for step in (79, 80, 100)] == pytest.approx([0.4, 0.04, 0.004], rel=1e-12)
    ratios = {round(decays.at(step).meta_lr / decays.at(step).lr, 9) for step in range(20, 121)}
    assert ratios == {2.0}


def test_sigmoid_meta_lr() -> None:
    sigmoid = replace(SCHEDULE, meta_lr_ramp="sigmoid")
    assert sigmoid.at(0).meta_lr == pytest.approx(0.4 * math.exp(-5))
    assert sigmoid.at(20).meta_lr == 0.4


@pytest.mark.parametrize(("step", "ema_decay"), [(0, 0.99), (19, 0.99), (20, 0.999), (120, 0.999)])
def test_ema_decay_changes_once(step: int, ema_decay: float) -> None:
    assert SCHEDULE.at(step).ema_decay == ema_decay


@pytest.mark.parametrize(("step", "weight"), [(0, 0.0), (30, 0.125), (60, 0.25), (120, 0.5)])
def test_teacher_weight_goes_from_0_to_its_value_at_the_last_step(step: int, weight: float) -> None:
    assert SCHEDULE.at(step).teacher_weight == pytest.approx(weight, rel=1e-12)


@pytest.mark.parametrize("step", [0, 60, 120])
def test_teacher_weight_can_be_constant(step: int) -> None:
    assert replace(SCHEDULE, teacher_weight_ramp="constant").at(step).teacher_weight == 0.5


def test_rates_depend_on_the_step_alone() -> None:
    # An iteration starts again at step 0 with what it started with before, in whatever order steps were asked for.
    first = [SCHEDULE.at(step) for step in range(121)]
    assert [SCHEDULE.at(step) for step in reversed(range(121))] == first[::-1]
    assert first[0] != first[-1]
