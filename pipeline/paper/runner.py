"""`mlnt sweep`: queue the experiments of a table or figure that are still missing, and work the queue off."""

from __future__ import annotations

import json
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace

from rich.console import Console
from rich.table import Table

from pipeline import console
from pipeline.errors import RunError, UserError
from pipeline.paper import history, queue
from pipeline.paper.grid import PARAMS, SWEEPS, Cell, Sweep, Values, source_of, values_of
from pipeline.paper.history import Finished, identity, params_at
from pipeline.paper.statistics import has_all, runs_of
from pipeline.params import presets
from pipeline.params.load import check, read_yaml
from pipeline.stages import download
from pipeline.systems.registry import BY_STAGE
from pipeline.training import estimate
from pipeline.training.device import prepare


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
    waiting: Sequence[Values]
    diverged: int
    missing: Sequence[tuple[Cell, Sequence[Values]]]
    older: int

    @property
    def to_queue(self) -> int:
        return sum(len(values) for _, values in self.missing)

    @property
    def open(self) -> list[Values]:
        """The parameters of all experiments that have to run, whether queued already or not."""
        return [*self.waiting, *(values for _, each in self.missing for values in each)]


def run(
    name: str, seeds: int, preset: str, jobs: int, dry_run: bool, cells: Sequence[str] = (), outdated: bool = False
) -> None:
    """Plan, say what there is to do, queue it, work it off.

    Args:
        cells: labels of the columns to run; none for all.
        outdated: run again what was made by other code than today's.

    Raises:
        UserError: unknown names, or a working tree with changes that are not committed.
        RunError: DVC's queue could not be used, or experiments failed.
    """
    if name not in SWEEPS:
        raise UserError(f"sweep: found {name!r}; expected one of {', '.join(SWEEPS)}")
    sweep = only(SWEEPS[name], name, cells)
    base, chosen = read_bases(preset)
    if sweep.source not in (None, source_of(base, chosen)):
        raise UserError(f"sweep: {name} is on {sweep.source}, found --preset {preset}, expected one of that data set")
    if not dry_run:
        history.require_clean()
        queue.recover()

    def plan() -> Plan:
        queued = queue.waiting(queue.status())
        return make_plan(sweep, seeds, base, chosen, preset, history.finished(), queued, outdated)

    first = plan()
    show(first, preset, seconds(first.open, sweep.stages), max(1, min(jobs, len(first.open))))
    if dry_run or not first.open:
        return
    queue_missing(first, base)
    before = queue.status()
    if (others := len(before.having(*queue.OPEN)) - len(first.open)) > 0:
        console.say(f"{others} other experiments are in the queue and will run too")
    console.say("the queue is DVC's: `dvc queue status` shows it; Ctrl-C stops it, the same command continues")
    queue.work_off(jobs, console.say)
    last = plan()
    lost = without_result(last, before)
    if again := cut(last, lost):
        say_why(lost)
        # Finished stages come from the run cache. Tasks that a person removed from the queue are not put back.
        console.say(f"{again.to_queue} of {last.total} experiments ended without a result; queueing them once more")
        queue_missing(again, base)
        queue.work_off(jobs, console.say)
        last = plan()
    console.say(f"sweep {name}: {last.done} of {last.total} finished, {last.diverged} diverged; see `mlnt tables`")
    if last.open:
        say_why(without_result(last, before))
        raise RunError(
            f"{len(last.open)} experiments are missing; `dvc queue status` names those that failed, `dvc queue logs "
            "NAME` shows all that they printed; the same command queues them again"
        )


def queue_missing(plan: Plan, base: Values) -> None:
    for number, (cell, values) in enumerate(plan.missing, 1):
        queue.add(base, values, plan.sweep.stages)
        console.say(f"queued {number} of {len(plan.missing)}: {cell.label}, {len(values)} seeds")


def without_result(plan: Plan, before: queue.Queue) -> dict[str, queue.Task]:
    """Identity → task of the plan's experiments that ended since `before`, and are still open."""
    ended = set(queue.status().having("Success", "Failed")) - set(before.tasks)
    params = params_at([task.revision for task in ended])
    tasks = {_identity(params.get(task.revision, {}), plan.sweep.stages): task for task in ended}
    wanted = [identity(values, plan.sweep.stages) for values in plan.open]
    return {each: tasks[each] for each in wanted if each in tasks}


def cut(plan: Plan, wanted: Container[str]) -> Plan | None:
    """The plan with only those missing experiments whose identity is in `wanted`; None if there are none."""
    chosen = [(cell, [v for v in each if identity(v, plan.sweep.stages) in wanted]) for cell, each in plan.missing]
    left = [(cell, values) for cell, values in chosen if values]
    return replace(plan, missing=left) if left else None


def say_why(lost: Mapping[str, queue.Task]) -> None:
    for message in sorted({queue.reason(task) for task in lost.values()}):
        console.say(f"failed: {message}")


def only(sweep: Sweep, name: str, cells: Sequence[str]) -> Sweep:
    """The sweep with only the cells of these labels; no labels keep all.

    Raises:
        UserError: it has no such cell.
    """
    labels = [cell.label for cell in sweep.cells]
    if unknown := [cell for cell in cells if cell not in labels]:
        raise UserError(f"--cell: found {unknown[0]!r}, expected one of those of {name}: {'; '.join(labels)}")
    return replace(sweep, cells=tuple(cell for cell in sweep.cells if not cells or cell.label in cells))


def read_bases(preset: str) -> tuple[Values, Values]:
    """params.yaml, and the preset's values, as plain Python.

    Raises:
        UserError: no such preset, or one that is no mapping of sections.
    """
    return read_yaml(PARAMS), presets.read(preset)


def make_plan(
    sweep: Sweep,
    seeds: int,
    base: Values,
    preset: Values,
    name: str,
    finished: Sequence[Finished],
    queued: Sequence[Values],
    outdated: bool = False,
) -> Plan:
    """Compare what the sweep wants with what is finished, queued, or known to diverge with today's code.

    Args:
        outdated: whether results of other code count as missing.
    """
    waiting_for = {_identity(values, sweep.stages) for values in queued}
    missing: list[tuple[Cell, list[Values]]] = []
    waiting: list[Values] = []
    done = diverged = older = 0
    for cell in sweep.cells:
        runs = runs_of(sweep, cell, finished, base, preset, name)
        old = set(runs.outdated())
        older += len(old & set(range(seeds)))
        left: list[Values] = []
        for seed in range(seeds):
            values = values_of(base, preset, name, cell, seed)
            if has_all(sweep, runs.by_seed.get(seed)) and not (outdated and seed in old):
                done += 1
            elif seed in runs.diverged:
                diverged += 1
            elif identity(values, sweep.stages) in waiting_for:
                waiting.append(values)
            else:
                left.append(values)
        if left:
            missing.append((cell, left))
    return Plan(sweep, len(sweep.cells) * seeds, done, waiting, diverged, missing, older)


def _identity(params: Values, stages: Sequence[str]) -> str | None:
    """The identity; None for parameters that this version of the package does not accept."""
    try:
        return identity(params, stages)
    except UserError:
        return None


def seconds(runs: Sequence[Values], stages: Sequence[str]) -> float | None:
    """Of one worker, for all runs; None where the size of the data is not known beforehand."""
    systems = [BY_STAGE[stage] for stage in stages]
    known: dict[str, float] = {}
    total = 0.0
    for values in runs:
        # Neither seed nor noise changes the time: each kind of run is timed once.
        kind = json.dumps({name: value for name, value in values.items() if name not in ("seed", "noise", "filter")})
        if kind not in known:
            params = check(values, PARAMS)
            if (found := download.sizes(params)) is None:
                return None
            measured = estimate.measure(params, found, systems, prepare(params.compute))
            known[kind] = measured.run(systems, 2, evaluated=False)
        total += known[kind]
    return total


def show(plan: Plan, preset: str, seconds: float | None, jobs: int) -> None:
    table = Table()
    table.add_column("cell")
    table.add_column("to queue", justify="right")
    missing: Mapping[str, int] = {cell.label: len(values) for cell, values in plan.missing}
    for cell in plan.sweep.cells:
        table.add_row(cell.label, str(missing.get(cell.label, 0) or ""))
    screen = Console(highlight=False)
    screen.print(f"{plan.sweep.title}; preset {preset}")  # a title would be cut to the table's width
    screen.print(table)
    words = [f"{plan.total} experiments: {plan.done} finished"]
    words += [f"{len(plan.waiting)} queued", f"{plan.to_queue} to queue"]
    if plan.diverged:
        words.append(f"{plan.diverged} diverged (not repeated with this code)")
    if plan.older:
        words.append(f"{plan.older} made by other code (--outdated runs them again)")
    console.say(", ".join(words))
    if not plan.open:
        return
    if seconds is None:
        console.say("no estimate of the time: the size of these data is not known beforehand")
    else:
        console.say(
            f"about {_hours(seconds / jobs)} with {jobs} at a time, by timing this network here just now; less where "
            "stages come from the run cache, more where the jobs share cores"
        )


def _hours(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes / 60:.1f} h"
