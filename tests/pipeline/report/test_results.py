"""The paper's numbers beside our own."""

from __future__ import annotations

import pytest

from pipeline.report.results import paper_column


@pytest.mark.parametrize(
    ("source", "kind", "rate", "method", "expected"),
    [
        ("cifar10", "symmetric", 0.5, "MLNT-teacher (3rd iter.)", "90.65 ± 0.09"),
        ("digits", "symmetric", 0.5, "Cross Entropy (reproduced)", "84.62 ± 0.08"),
        ("cifar10", "asymmetric", 0.4, "MLNT-student (1st iter.)", "88.7 ± 0.13"),
        ("cifar10", "none", 0.7, "MLNT-teacher (3rd iter.)", "93.52 ± 0.08"),
        ("clothing1m", "none", 0.0, "MLNT-student (3rd iter.)", "73.44"),
    ],
)
def test_the_papers_column_is_that_of_the_data_and_the_noise(
    source: str, kind: str, rate: float, method: str, expected: str
) -> None:
    assert paper_column(source, kind, rate)[method] == expected


@pytest.mark.parametrize(("kind", "rate"), [("symmetric", 0.45), ("asymmetric", 0.9), ("pairflip", 0.3)])
def test_what_the_paper_did_not_run_has_no_column(kind: str, rate: float) -> None:
    assert paper_column("cifar10", kind, rate) == {}


@pytest.mark.parametrize("source", ["cifar100", "cifar100-coarse"])
def test_the_paper_has_no_cifar100(source: str) -> None:
    assert paper_column(source, "symmetric", 0.5) == {}
