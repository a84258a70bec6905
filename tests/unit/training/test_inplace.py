from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mlnt.training.foreach import add_scaled_, lerp_


def lists() -> tuple[list[Tensor], list[Tensor]]:
    draw = torch.Generator().manual_seed(0)
    make = lambda: [torch.randn(shape, generator=draw, dtype=torch.float64) for shape in ((3,), (2, 4), ())]  # noqa: E731
    return make(), make()


@pytest.mark.parametrize("as_tensor", [False, True])
@pytest.mark.parametrize("factor", [0.0, -0.3, 2.0])
def test_add_scaled(factor: float, as_tensor: bool) -> None:
    targets, values = lists()
    expected = [t + factor * v for t, v in zip(targets, values, strict=True)]
    add_scaled_(targets, values, torch.tensor(factor, dtype=torch.float64) if as_tensor else factor)
    torch.testing.assert_close(targets, expected, rtol=1e-14, atol=1e-15)
    assert all(torch.equal(v, same) for v, same in zip(values, lists()[1], strict=True))


@pytest.mark.parametrize("as_tensor", [False, True])
@pytest.mark.parametrize("weight", [0.0, 0.3, 0.9, 1.0])
def test_lerp(weight: float, as_tensor: bool) -> None:
    targets, values = lists()
    expected = [(1 - weight) * t + weight * v for t, v in zip(targets, values, strict=True)]
    lerp_(targets, values, torch.tensor(weight, dtype=torch.float64) if as_tensor else weight)
    torch.testing.assert_close(targets, expected, rtol=1e-14, atol=1e-15)
    if weight == 0.0:
        assert all(torch.equal(t, same) for t, same in zip(targets, lists()[0], strict=True))
    if weight == 1.0 and not as_tensor:
        assert all(torch.equal(t, v) for t, v in zip(targets, values, strict=True))
