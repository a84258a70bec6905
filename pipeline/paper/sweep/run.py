"""`mlnt sweep`: run the experiments of a table or figure that are still missing."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.base import console, files
from pipeline.base.errors import RunError, UserError
from pipeline.paper import history
from pipeline.paper.grid import read_bases, source_of, sweep_named
from pipeline.paper.sweep import remote
from pipeline.paper.sweep.executors import Executor, Local, Slurm, gpus_here, last_error, minutes, settings
from pipeline.paper.sweep.jobs import jobs
from pipeline.paper.sweep.plan import Part, Plan, make_plan, only, seconds, show
from pipeline.paper.sweep.worker import Job, Place

TRIES = 2


@dataclass(frozen=True)
class Where:
    """How the jobs run: options of the command.

    Attributes:
        executor: local or slurm.
        jobs: experiments at a time; None for 1 here, 100 in SLURM.
        git_remote: where results go; None for a repository of the sweep's own.
        scratch: folder for clones; None for the temporary folder of the machine that a job runs on.
        partition, time, slurm: sbatch's.
    """

    executor: str = "local"
    jobs: int | None = None
    gpus_per_job: int = 1
    git_remote: str | None = None
    scratch: Path | None = None
    partition: str | None = None
    time: str = "4:00:00"
    slurm: Sequence[str] = ()

    def open(self, place: Place) -> Executor:
        """
        Raises:
            UserError: options that do not fit the executor or this machine.
        """
        if self.executor == "local":
            if self.partition or self.slurm:
                raise UserError("--partition, --slurm: found with --executor local, expected slurm")
            return Local(place, self.at_a_time, gpus_here(), self.gpus_per_job)
        options = {
            "time": minutes(self.time),
            "additional_parameters": settings(self.slurm),
            **({"partition": self.partition} if self.partition else {}),
            **({"gpus_per_node": self.gpus_per_job} if self.gpus_per_job else {}),
        }
        return Slurm(place, self.at_a_time, options)

    @property
    def at_a_time(self) -> int:
        return self.jobs or {"local": 1, "slurm": 100}[self.executor]


def run(
    name: str,
    seeds: int,
    preset: str,
    where: Where,
    dry_run: bool = False,
    cells: Sequence[str] = (),
    outdated: bool = False,
    part: Part | None = None,
    also: Sequence[str] = (),
) -> None:
    """Plan, say what there is to do, do it.

    Args:
        cells: labels of the columns to run; none for all.
        outdated: run again what was made by other code than today's.
        part: only this share of the experiments.
        also: stages of systems that are trained beside those of the table.

    Raises:
        UserError: unknown names, or a working tree with changes that are not committed.
        RunError: experiments failed.
    """
    sweep = only(sweep_named(name, also), name, cells)
    base, chosen = read_bases(preset)
    if sweep.source not in (None, source_of(base, chosen)):
        raise UserError(f"sweep: {name} is on {sweep.source}, found --preset {preset}, expected one of that data set")

    def plan() -> Plan:
        return make_plan(sweep, seeds, base, chosen, preset, history.finished(), outdated, part)

    place = None
    if not dry_run:
        history.require_clean()
        place = prepared(where)
    first = plan()
    show(first, preset, seconds(first.open, sweep.stages), max(1, min(where.at_a_time, len(first.open))))
    if place is None or not first.open:
        return
    executor = where.open(place)
    console.say(f"logs are in {files.SWEEP}/jobs; Ctrl-C stops, the same command continues")
    try:
        failed = work_off(jobs(name, first.missing, sweep.stages), executor, place, console.say)
    except (KeyboardInterrupt, SystemExit):
        console.say(executor.stop())
        raise
    last = plan()
    console.say(f"sweep {name}: {last.done} of {last.total} finished, {last.diverged} diverged; see `mlnt tables`")
    if last.open:
        for reason, count in Counter(failed.values()).most_common():
            console.say(f"{count} failed: {reason}")
        raise RunError(
            f"{len(last.open)} experiments are missing; {files.SWEEP}/jobs/NAME has all that they printed; the same "
            "command runs them again"
        )


def prepared(where: Where) -> Place:
    """Everything that workers rely on, looked at before they start; finished experiments are fetched.

    Raises:
        UserError: the repository for results cannot be used.
        RunError: DVC's cache cannot be written.
    """
    commit = history.git("rev-parse", "HEAD").strip()
    results = remote.opened(where.git_remote, commit)
    remote.fetch(results)
    scratch = where.scratch.resolve() if where.scratch else None
    return Place(Path.cwd(), commit, results, remote.cache(), files.checkpoints().resolve(), scratch)


def work_off(todo: Sequence[Job], executor: Executor, place: Place, say: Callable[[str], None]) -> dict[str, str]:
    """Run all jobs, those that others wait for first, and wait until they have ended; returns name → why it failed.

    A job has succeeded when its result is there, however it ended. One without is tried once more: what it has finished
    comes from DVC's run cache and from its checkpoint.
    """
    left = {job.name: job for job in todo}
    running: dict[str, Job] = {}
    tries: Counter[str] = Counter()
    failed: dict[str, str] = {}
    done, said, begun = 0, "", time.monotonic()
    while left or running:
        going = executor.going([*running, *left])
        ended = [job for name, job in running.items() if name not in going]
        if ended:
            try:
                remote.fetch(place.remote)
            except RunError as error:  # the network's, for instance: jobs go on, and are asked for once more
                say(f"{error}; trying again")
                time.sleep(executor.poll_seconds[1])
                continue
            notes = history.divergences()
            left = {name: job for name, job in left.items() if not diverges(job, notes)}
        for job in ended:
            del running[job.name]
            if is_done(job, place):
                done += job.result
            elif not diverges(job, notes):
                reason, again = last_error(place, job.name), tries[job.name] < TRIES
                say(f"{job.name} failed: {reason}" + ("; once more" if again else ""))
                if again:
                    left[job.name] = job
                else:
                    failed[job.name] = reason
        for name, job in list(left.items()):
            if lost := job.after & failed.keys():
                failed[name] = failed[min(lost)]
                del left[name]
            elif name in going:  # another sweep, or an earlier one, has started it
                running[name] = left.pop(name)
            elif executor.free and not job.after & (left.keys() | running.keys()):
                tries[name] += 1
                executor.start(job)
                running[name] = left.pop(name)
        counts = {"running": len(running), "waiting": len(left), "finished": done, "failed": len(failed)}
        now = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
        if now != said:
            say(now)
            said = now
        if left or running:
            least, most = executor.poll_seconds
            time.sleep(min(max((time.monotonic() - begun) / 10, least), most))
    return failed


def diverges(job: Job, notes: Sequence[history.Divergence]) -> bool:
    """Whether training has noted that a stage of the job diverges with today's code."""
    of_stages = [note for note in notes if note.stage in job.stages]
    return bool(of_stages) and any(note.belongs(history.plain(dict(job.params))) for note in of_stages)


def is_done(job: Job, place: Place) -> bool:
    """Whether its result is in this repository; of stages that others share, whether it has ended well."""
    if not job.result:
        return place.done(job.name).exists()
    return bool(history.git("for-each-ref", place.ref(job.name)).strip())
