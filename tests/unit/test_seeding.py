from __future__ import annotations

import numpy as np
import pytest
import torch

from mlnt import seeding

ADDRESSES: list[tuple[int, tuple[str | int, ...]]] = [
    (0, ("order", 1, 0)),
    (1, ("order", 1, 0)),
    (0, ("order", 1, 1)),
    (0, ("order", 2, 0)),
    (0, ("noise",)),
    (0, ("order", 11, 0)),
    (0, ("order", 1, 10)),
    (0, ("order", 1)),
    (0, ("order",)),
]


def test_derived_seeds_are_fixed() -> None:
    # Results in the wild depend on these numbers: a change of the rule is a change of every result.
    assert seeding.derive(0, "noise") == 7958856190608717080
    assert seeding.derive(7, "order", 2, 30) == 4824180675190738301


def test_every_address_has_a_stream_of_its_own() -> None:
    seeds = {seeding.derive(seed, *names) for seed, names in ADDRESSES}
    assert len(seeds) == len(ADDRESSES)
    draws = {torch.rand(1, generator=seeding.generator(seed, *names)).item() for seed, names in ADDRESSES}
    assert len(draws) == len(ADDRESSES)
    draws = {seeding.numpy_generator(seed, *names).random() for seed, names in ADDRESSES}
    assert len(draws) == len(ADDRESSES)


@pytest.mark.parametrize(("seed", "names"), ADDRESSES)
def test_derived_seeds_fit_into_63_bits(seed: int, names: tuple[str | int, ...]) -> None:
    assert 0 <= seeding.derive(seed, *names) < 2**63


def test_equal_addresses_give_equal_streams() -> None:
    one, two = (seeding.generator(3, "augmentation", 1, 5) for _ in range(2))
    assert torch.equal(torch.rand(10, generator=one), torch.rand(10, generator=two))
    three, four = (seeding.numpy_generator(3, "noise") for _ in range(2))
    assert np.array_equal(three.random(10), four.random(10))


def test_global_generators_are_left_alone() -> None:
    before, before_numpy = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    torch.rand(3, generator=seeding.generator(0, "x"))
    seeding.numpy_generator(0, "x").random(3)
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], before_numpy)  # noqa: NPY002
