"""`mlnt sweep`: queue the experiments of a table or figure that are still missing, and work the queue off."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from pipeline import console, estimate, experiments, params, presets
from pipeline.comparison import complete, runs_of
from pipeline.errors import RunError, UserError
from pipeline.experiments import Finished, identity
from pipeline.sweeps import PARAMS, SWEEPS, Cell, Sweep, Values, values_of


@dataclass(frozen=True)
class Plan:
    """What a sweep has to do. `missing` are the cells with the parameters of each seed that is not there yet."""

    sweep: Sweep
    total: int
    done: int
    waiting: int
    diverged: int
    missing: Sequence[tuple[Cell, Sequence[Values]]]

    @property
    def to_queue(self) -> int:
        return sum(len(values) for _, values in self.missing)


def run(name: str, seeds: int, preset: str, jobs: int, dry_run: bool) -> None:
    """Plan, say what there is to do, queue it, work it off.

    Raises:
        UserError: unknown names, or a working tree with changes that are not committed.
        RunError: DVC's queue could not be used, or experiments failed.
    """
    if name not in SWEEPS:
        raise UserError(f"sweep: found {name!r}; expected one of {', '.join(SWEEPS)}")
    if not dry_run:
        experiments.require_clean()
    base, chosen = read_bases(preset)
    plan = make_plan(SWEEPS[name], seeds, base, chosen, preset, experiments.finished(), experiments.queued())
    show(plan, preset, estimate.seconds([v for _, values in plan.missing for v in values], plan.sweep.stages), jobs)
    if dry_run or not plan.to_queue + plan.waiting:
        return
    for number, (cell, values) in enumerate(plan.missing, 1):
        experiments.queue(base, values, plan.sweep.stages)
        console.say(f"queued {number} of {len(plan.missing)}: {cell.label}, {len(values)} seeds")
    console.say("the queue is DVC's: `dvc queue status` shows it; Ctrl-C stops it, the same command goes on")
    ended = experiments.work_off(jobs, _say_changes())
    console.say(f"sweep {name}: {ended['Success']} experiments finished; `mlnt tables` makes the tables")
    if ended["Failed"]:
        raise RunError(
            f"{ended['Failed']} experiments failed; `dvc queue status` names them, `dvc queue logs NAME` says why; "
            "the same command queues them again"
        )


def read_bases(preset: str) -> tuple[Values, Values]:
    """params.yaml, and the preset's values, as plain Python."""
    known = presets.available()
    if preset not in known:
        raise UserError(f"--preset: found {preset!r}, expected one of {', '.join(known)}")
    return params.read_yaml(PARAMS), params.read_yaml(presets.FOLDER / f"{preset}.yaml")


def make_plan(
    sweep: Sweep,
    seeds: int,
    base: Values,
    preset: Values,
    name: str,
    finished: Sequence[Finished],
    queued: Sequence[Values],
) -> Plan:
    """Compare what the sweep wants with what is finished, queued, or known to diverge."""
    waiting_for = {identity(values, sweep.stages) for values in queued}
    missing: list[tuple[Cell, list[Values]]] = []
    done = waiting = diverged = 0
    for cell in sweep.cells:
        runs = runs_of(sweep, cell, finished, base, preset, name, experiments.checkpoint_folder())
        left: list[Values] = []
        for seed in range(seeds):
            values = values_of(base, preset, name, cell, seed)
            params.check(values, PARAMS)
            if seed in runs.by_seed and complete(sweep, runs.by_seed[seed]):
                done += 1
            elif seed in runs.diverged:
                diverged += 1
            elif identity(values, sweep.stages) in waiting_for:
                waiting += 1
            else:
                left.append(values)
        if left:
            missing.append((cell, left))
    return Plan(sweep, len(sweep.cells) * seeds, done, waiting, diverged, missing)


def show(plan: Plan, preset: str, seconds: float | None, jobs: int) -> None:
    table = Table(title=f"{plan.sweep.title}; preset {preset}")
    table.add_column("cell")
    table.add_column("to queue", justify="right")
    missing: Mapping[str, int] = {cell.label: len(values) for cell, values in plan.missing}
    for cell in plan.sweep.cells:
        table.add_row(cell.label, str(missing.get(cell.label, 0) or ""))
    Console(highlight=False).print(table)
    words = [f"{plan.total} experiments: {plan.done} finished", f"{plan.waiting} queued", f"{plan.to_queue} to queue"]
    if plan.diverged:
        words.append(f"{plan.diverged} diverged (not repeated)")
    console.say(", ".join(words))
    if not plan.to_queue:
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


def _say_changes() -> Callable[[Counter[str]], None]:
    last: Counter[str] = Counter()

    def on_state(now: Counter[str]) -> None:
        nonlocal last
        if now != last:
            last = now
            console.say(", ".join(f"{count} {state.lower()}" for state, count in sorted(now.items()) if count))

    return on_state
