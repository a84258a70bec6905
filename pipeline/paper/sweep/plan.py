"""What a sweep has to do: the experiments of a table or figure that are not there yet."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from pipeline.base import console
from pipeline.base.errors import UserError
from pipeline.before_training import estimate
from pipeline.paper.grid import PARAMS, Cell, Sweep, Values, values_of
from pipeline.paper.history import Finished
from pipeline.paper.statistics import has_all, runs_of
from pipeline.params.load import check
from pipeline.stages import download
from pipeline.systems.registry import BY_STAGE
from pipeline.training.device import prepare


class Part(NamedTuple):
    """A share of a sweep's experiments: every `of`-th one, from `number` on, counted from 0."""

    number: int
    of: int

    @classmethod
    def parse(cls, text: str) -> Part:
        """`3/8`.

        Raises:
            UserError: another text.
        """
        number, _, of = text.partition("/")
        if not (number.isdecimal() and of.isdecimal() and int(number) < int(of)):
            raise UserError(f"--part: found {text!r}, expected I/N with I from 0 to N - 1, such as 0/8")
        return cls(int(number), int(of))


@dataclass(frozen=True)
class Plan:
    """What a sweep has to do.

    Attributes:
        missing: the cells with the parameters of each seed that is not there yet.
        older: results that were made by other code than today's.
    """

    sweep: Sweep
    total: int
    done: int
    diverged: int
    missing: Sequence[tuple[Cell, Sequence[Values]]]
    older: int

    @property
    def open(self) -> list[Values]:
        """The parameters of all experiments that have to run."""
        return [values for _, each in self.missing for values in each]


def only(sweep: Sweep, name: str, cells: Sequence[str]) -> Sweep:
    """The sweep with only the cells of these labels; no labels keep all.

    Raises:
        UserError: it has no such cell.
    """
    labels = [cell.label for cell in sweep.cells]
    if unknown := [cell for cell in cells if cell not in labels]:
        raise UserError(f"--cell: found {unknown[0]!r}, expected one of those of {name}: {'; '.join(labels)}")
    return replace(sweep, cells=tuple(cell for cell in sweep.cells if not cells or cell.label in cells))


def make_plan(
    sweep: Sweep,
    seeds: int,
    base: Values,
    preset: Values,
    name: str,
    finished: Sequence[Finished],
    outdated: bool = False,
    part: Part | None = None,
) -> Plan:
    """Compare what the sweep wants with what is finished, or known to diverge with today's code.

    Args:
        outdated: whether results of other code count as missing.
        part: the share of the experiments that counts; None for all.
    """
    missing: list[tuple[Cell, list[Values]]] = []
    number = total = done = diverged = older = 0
    for cell in sweep.cells:
        runs = runs_of(sweep, cell, finished, base, preset, name)
        old = set(runs.outdated())
        left: list[Values] = []
        for seed in range(seeds):
            number += 1
            if part is not None and (number - 1) % part.of != part.number:
                continue
            total += 1
            older += seed in old
            if has_all(sweep, runs.by_seed.get(seed)) and not (outdated and seed in old):
                done += 1
            elif seed in runs.diverged:
                diverged += 1
            else:
                left.append(values_of(base, preset, name, cell, seed))
        if left:
            missing.append((cell, left))
    return Plan(sweep, total, done, diverged, missing, older)


def seconds(runs: Sequence[Values], stages: Sequence[str]) -> float | None:
    """Of one worker, for all runs; None where it cannot be measured here: the size of the data is not known before they
    are fetched, or what is needed is on the machines that the jobs will run on."""
    systems = [BY_STAGE[stage] for stage in stages]
    known: dict[str, float] = {}
    total = 0.0
    for values in runs:
        # Neither seed nor noise changes the time: each kind of run is timed once.
        kind = json.dumps({name: value for name, value in values.items() if name not in ("seed", "noise", "filter")})
        if kind not in known:
            params = check(values, PARAMS)
            if (found := download.sizes(params)) is None:
                console.say("no estimate of the time: the size of these data is not known beforehand")
                return None
            try:
                measured = estimate.measure(params, found, systems, prepare(params.compute))
            except (UserError, RuntimeError, ValueError) as error:
                console.say(f"no estimate of the time: {error}")
                return None
            known[kind] = measured.run(systems, 2, evaluated=False)
        total += known[kind]
    return total


def show(plan: Plan, preset: str, seconds: float | None, jobs: int) -> None:
    table = Table()
    table.add_column("cell")
    table.add_column("to run", justify="right")
    missing: Mapping[str, int] = {cell.label: len(values) for cell, values in plan.missing}
    for cell in plan.sweep.cells:
        table.add_row(cell.label, str(missing.get(cell.label, 0) or ""))
    screen = Console(highlight=False)
    screen.print(f"{plan.sweep.title}; preset {preset}")  # a title would be cut to the table's width
    screen.print(table)
    words = [f"{plan.total} experiments: {plan.done} finished, {len(plan.open)} to run"]
    if plan.diverged:
        words.append(f"{plan.diverged} diverged (not repeated with this code)")
    if plan.older:
        words.append(f"{plan.older} made by other code (--outdated runs them again)")
    console.say(", ".join(words))
    if not plan.open:
        return
    if seconds is not None:
        console.say(
            f"about {console.duration(seconds / jobs)} with {jobs} at a time, by timing this network here just now; "
            "less where stages come from the run cache, more where the jobs share cores"
        )
