"""A step by several processes is the step by one, to the order of a sum, and the same bits in each of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from projects import environment
from ranks import CASES, COUNTS, ERRING, SIZES, items, predictions, steps
from test_step import assert_close, assert_same_bits

from mlnt.training.distributed import ALONE

HERE = Path(__file__).parent

Found = list[dict[Any, Any]]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """What each of three processes has computed."""
    folder = tmp_path_factory.mktemp("ranks")
    paths = f"{HERE}:{HERE.parent}/support:{HERE.parents[1]}"
    running = [
        subprocess.Popen(
            [sys.executable, HERE / "ranks.py", folder, str(rank)],
            env=environment(PYTHONPATH=paths, GLOO_SOCKET_IFNAME="lo"),
        )
        for rank in range(max(SIZES))
    ]
    try:
        assert [process.wait(300) for process in running] == [0] * len(running)
    finally:
        for process in running:
            process.kill()
            process.wait()
    return [torch.load(folder / f"{rank}.pt") for rank in range(len(running))]


@pytest.mark.parametrize("case", range(len(CASES)), ids=[str(case) for case in CASES])
def test_a_step_by_several_ranks_is_the_step_by_one(case: int, found: Found) -> None:
    alone = steps(*CASES[case], ALONE)
    assert_same_bits(found[0][1, case], alone)
    for size in SIZES:
        for rank in range(size):
            assert_close(found[rank][size, case], alone, rtol=1e-12)
            assert_same_bits(found[rank][size, case], found[0][size, case])


def test_ranks_that_compute_other_bits_stay_together(found: Found) -> None:
    for size in SIZES:
        for rank in range(size):
            assert_same_bits(found[rank][size, ERRING], found[0][size, ERRING])
            assert_close(found[rank][size, ERRING], found[0][1, ERRING], rtol=1e-12)


def test_all_ranks_get_what_each_has_made_in_order_and_to_the_bit(found: Found) -> None:
    for size in SIZES:
        for rank in range(size):
            for count in COUNTS:
                theirs, expected = found[rank][size, "items", count], items(count)
                assert [each.numpy().tobytes() for each in theirs] == [each.numpy().tobytes() for each in expected]


def test_predictions_by_several_ranks_have_the_bits_of_one(found: Found) -> None:
    alone = predictions(ALONE)
    for size in SIZES:
        for rank in range(size):
            assert_same_bits(found[rank][size, "predictions"], alone)
