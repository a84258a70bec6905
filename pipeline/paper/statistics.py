"""From finished experiments to the numbers of a table: which count for a cell, means, standard errors, tests."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, NamedTuple

from pipeline.paper.grid import Cell, Sweep, Values, values_of
from pipeline.paper.history import Finished, HistoryRows, divergences, plain
from pipeline.systems.registry import SYSTEMS


class Row(NamedTuple):
    """One line of a table of systems."""

    title: str
    stage: str
    model: str
    paper: str


ROWS = tuple(
    Row(title, system.stage, model, paper)
    for system in SYSTEMS
    if system.in_tables
    for model, title, paper in system.models
)
CROSS_ENTROPY = ROWS[0]


@dataclass(frozen=True)
class Runs:
    """The experiments that count for a cell, by seed, and the runs that diverged: seed → stage → message."""

    by_seed: Mapping[int, Finished]
    diverged: Mapping[int, Mapping[str, str]]

    def outdated(self, stage: str | None = None) -> list[int]:
        """The seeds whose results, or whose result of one stage, were made by other code than today's."""
        return [
            seed
            for seed, run in sorted(self.by_seed.items())
            if any(run.outdated(each) for each in run.histories if stage in (None, each))
        ]

    def accuracies(self, stage: str, model: str, choice: str, measure: str = "test") -> dict[int, float]:
        """Seed → accuracy in percent: at the epoch that is best on validation, or the last one."""
        return {
            seed: 100 * value
            for seed, run in sorted(self.by_seed.items())
            if (value := accuracy(run.histories.get(stage, []), model, choice, measure)) is not None
        }


def accuracy(history: HistoryRows, model: str, choice: str, measure: str) -> float | None:
    """The accuracy in a history (plots/<stage>.csv), from 0 to 1; None where there is no row or no such column."""
    if not history or not history[-1].get(f"{model}_{measure}_accuracy"):
        return None
    row = history[-1]
    if choice == "best":  # `max` gives the first of equals, as the training loop does
        row = max(history, key=lambda each: float(each[f"{model}_validation_accuracy"]))
    return float(row[f"{model}_{measure}_accuracy"])


def runs_of(sweep: Sweep, cell: Cell, experiments: Sequence[Finished], base: Values, preset: Values, name: str) -> Runs:
    """The experiments of a cell, whatever their seeds.

    If two share a seed, one that has all stages counts before one that has not, one of today's code before one of
    other code, and then the newer one.
    """

    @cache
    def wanted(seed: int) -> dict[str, Any]:
        return plain(values_of(base, preset, name, cell, seed))

    def rank(run: Finished) -> tuple[bool, bool, int]:
        return complete(sweep, run), not any(map(run.outdated, run.histories)), run.time

    by_seed: dict[int, Finished] = {}
    for run in experiments:
        if (seed := run.seed) is None:
            continue
        own = {stage: run.histories[stage] for stage in sweep.stages if run.belongs(stage, wanted(seed))}
        if own:
            found = replace(run, histories=own)
            by_seed[seed] = max(found, by_seed.get(seed, found), key=rank)
    diverged: dict[int, dict[str, str]] = {}
    for note in divergences():
        seed = note.params["seed"]
        if note.stage in sweep.stages and not has_all(sweep, by_seed.get(seed)) and note.belongs(wanted(seed)):
            diverged.setdefault(seed, {})[note.stage] = note.message
    return Runs(by_seed, diverged)


def has_all(sweep: Sweep, run: Finished | None) -> bool:
    """Whether there is a run, with all stages of the sweep."""
    return run is not None and complete(sweep, run)


def complete(sweep: Sweep, run: Finished) -> bool:
    return set(sweep.stages) <= set(run.histories)


class Mean(NamedTuple):
    """One number of a table: mean and standard error over n seeds, in percent; None for n < 2."""

    mean: float
    error: float | None
    n: int


def mean_of(values: Iterable[float]) -> Mean | None:
    """None of no values."""
    found = list(values)
    if not found:
        return None
    return Mean(statistics.mean(found), standard_error(found) if len(found) > 1 else None, len(found))


def standard_error(values: Sequence[float]) -> float:
    """The standard error of the mean of two or more values; NaN for one."""
    return statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else math.nan


def p_value(left: Mapping[int, float], right: Mapping[int, float]) -> float | None:
    """Two-sided paired t-test over the seeds that both have; None for fewer than three, or without any variation.

    Accuracies come from files with six digits: differences that agree to 0.001 points are the same.
    """
    from scipy.stats import ttest_rel

    seeds = sorted(set(left) & set(right))
    found = [left[seed] - right[seed] for seed in seeds]
    if len(found) < 3 or max(found) - min(found) < 1e-3:
        return None
    return float(ttest_rel([left[s] for s in seeds], [right[s] for s in seeds]).pvalue)


def holm(p_values: Mapping[str, float | None], level: float = 0.05) -> set[str]:
    """Names whose p stays below `level` under Holm's correction for the number of tests."""
    known = sorted((p, name) for name, p in p_values.items() if p is not None)
    passed: set[str] = set()
    for i, (p, name) in enumerate(known):
        if p > level / (len(known) - i):
            break
        passed.add(name)
    return passed


Columns = Mapping[str, Mapping[Row, Mapping[int, float]]]


def beside_cross_entropy(columns: Columns) -> dict[tuple[str, str], str]:
    """(column, row) → "better" or "worse" than Cross Entropy in the same column; Holm's correction within a column."""
    found: dict[tuple[str, str], str] = {}
    for label, rows in columns.items():
        others = {row.title: values for row, values in rows.items() if row != CROSS_ENTROPY}
        verdicts = _compared(others, rows.get(CROSS_ENTROPY, {}))
        found |= {(label, title): verdict for title, verdict in verdicts.items()}
    return found


def beside_first_of_noise(columns: Columns) -> dict[tuple[str, str], str]:
    """(column, row) → "better" or "worse" than the first column of the same noise, for columns "noise, value"; Holm's
    correction within a row and noise."""
    found: dict[tuple[str, str], str] = {}
    groups: dict[str, list[str]] = {}
    for label in columns:
        groups.setdefault(label.partition(",")[0], []).append(label)
    for first, *others in groups.values():
        for row, reference in columns[first].items():
            candidates = {label: columns[label][row] for label in others if row in columns[label]}
            found |= {(label, row.title): verdict for label, verdict in _compared(candidates, reference).items()}
    return found


def _compared(candidates: Mapping[str, Mapping[int, float]], reference: Mapping[int, float]) -> dict[str, str]:
    passed = holm({name: p_value(values, reference) for name, values in candidates.items()})
    gains = {name: differences(candidates[name], reference) for name in passed}
    return {name: "better" if gain is not None and gain.mean > 0 else "worse" for name, gain in gains.items()}


def differences(left: Mapping[int, float], right: Mapping[int, float]) -> Mean | None:
    """The mean of left − right over the seeds that both have, with its standard error."""
    return mean_of(left[seed] - right[seed] for seed in sorted(set(left) & set(right)))


def best_row(column: Mapping[Row, Mapping[int, float]]) -> Row | None:
    """The row with the highest mean, if it is better than the runner-up among other systems (paired test, p < 0.05)."""
    means = {row: statistics.mean(values.values()) for row, values in column.items()}
    if len(means) < 2:
        return None
    best, *others = sorted(means, key=lambda row: -means[row])
    rival = next((row for row in others if row.stage != best.stage), None)
    if rival is None:
        return None
    gain, p = differences(column[best], column[rival]), p_value(column[best], column[rival])
    return best if gain is not None and gain.mean > 0 and p is not None and p < 0.05 else None
