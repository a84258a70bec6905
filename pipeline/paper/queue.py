"""DVC's queue: putting experiments into it, working it off, and leaving it in order after a stop or a crash."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from pipeline import files
from pipeline.errors import RunError, UserError
from pipeline.paper.grid import Values
from pipeline.paper.history import params_at, require_clean
from pipeline.params.load import leaves
from pipeline.systems.registry import GROUPS

DVC = [sys.executable, "-m", "dvc"]
EXPERIMENTS = Path(".dvc/tmp/exps")
CELERY = EXPERIMENTS / "celery"
POLL_SECONDS = (5, 45)  # at least, at most: asking DVC costs some seconds of a core
STOP_SECONDS = 60
ROW = re.compile(r"^([0-9a-f]{7,40})\s+(\S*)\s+.*?(Queued|Running|Success|Failed)\s*$")
OPEN = ("Queued", "Running")


@dataclass(frozen=True)
class Task:
    """A row of `dvc queue status`: an experiment by the head of its revision, and Queued, Running, Success, Failed."""

    revision: str
    state: str


@dataclass(frozen=True)
class Queue:
    """What `dvc queue status` says. `workers` is true where a worker answers DVC, or its process runs in this folder.

    DVC alone is not enough: it waits a second for answers. A worker that was told to end gives none, and still finishes
    its experiment; on a busy machine others answer too late.
    """

    tasks: tuple[Task, ...]
    workers: bool

    def having(self, *states: str) -> list[Task]:
        return [task for task in self.tasks if task.state in states]


def status() -> Queue:
    """Ask DVC for its queue.

    Raises:
        RunError: DVC cannot read its queue, for instance after git has deleted the commits of old tasks.
    """
    try:
        text = _dvc("queue", "status")
    except RunError as error:
        raise RunError(f"{error}; `dvc queue remove --success --failed` takes ended tasks off the list") from error
    rows = [match for line in text.splitlines() if (match := ROW.match(line))]
    here = _processes("queue-worker", lambda folder: folder.is_relative_to(Path.cwd()))
    workers = "Worker status: 0 active, 0 idle" not in text or next(here, None) is not None
    return Queue(tuple(Task(row[1], row[3]) for row in rows), workers)


def waiting(queue: Queue) -> list[Values]:
    """The parameters of queued and running tasks; without workers, what DVC lists as running was killed."""
    open_states = OPEN if queue.workers else ("Queued",)
    return list(params_at([task.revision for task in queue.having(*open_states)]).values())


def reason(task: Task) -> str:
    """Why a task ended without a result: the last error in its log, or, where DVC failed, in those of its workers."""
    lines: list[str] = []
    if task.state == "Failed":
        with suppress(RunError):  # it has no log if nothing of it ran
            lines = _dvc("queue", "logs", task.revision).splitlines()
    errors = [line for line in lines if line.lower().startswith("error")]
    own = [line for line in errors if line.startswith("error: ")]  # DVC's own only name the command
    logs = sorted(CELERY.glob("*.out"), key=lambda path: path.stat().st_mtime)
    of_workers = [line for path in logs for line in path.read_text(encoding="utf-8", errors="replace").splitlines()]
    failed = [line for line in of_workers if "raised unexpected" in line or "Failed to collect" in line]
    return (own or errors or failed or [f"no log gives a reason; the logs of DVC's workers are in {CELERY}"])[-1]


def add(base: Values, values: Sequence[Values], stages: Sequence[str]) -> None:
    """Queue experiments that differ in their seed alone, to run `stages` and what those need.

    Raises:
        UserError: the working tree has changes, or a mapping differs, which `--set-param` cannot replace.
    """
    require_clean()
    changed = {k: v for k, v in leaves(values[0]).items() if leaves(base).get(k, ...) != v and k != "seed"}
    for key, value in changed.items():
        if isinstance(value, Mapping):
            raise UserError(
                f"{key}: the preset has {dict(value)}, params.yaml another mapping; expected the same, since DVC can "
                "only add to one: `mlnt preset NAME` and commit, or empty it"
            )
    seeds = ",".join(str(v["seed"]) for v in values)
    settings = [f"seed={seeds}", *(f"{key}={hydra(value)}" for key, value in changed.items())]
    arguments = [part for setting in settings for part in ("--set-param", setting)]
    with _undisturbed():
        _dvc("exp", "run", "--queue", *arguments, *targets(stages))


def targets(stages: Iterable[str]) -> list[str]:
    """DVC's targets for these stages: the last one of each chain, and the wanted ones of each group beside them."""
    chosen = set(stages)
    found: list[str] = []
    for chain in (("pretrain", "meta1", "meta2", "meta3"), ("control2", "control3")):
        if wanted := [stage for stage in chain if stage in chosen]:
            found.append(wanted[-1])
    for group in GROUPS.values():
        stages, target = [each.stage for each in group.systems], f"{group.dvc_yaml}:{group.stage}"
        found += [target] if chosen.issuperset(stages) else [f"{target}@{stage}" for stage in stages if stage in chosen]
    return found


def work_off(jobs: int, on_change: Callable[[str], None]) -> None:
    """Run all queued experiments, `jobs` at a time, and wait until they have ended.

    The workers are DVC's: if this process dies, they continue. If they die, new ones are started once.
    A signal stops them; their checkpoints are kept, and queued experiments stay queued.

    Raises:
        RunError: the workers died twice.
    """
    lonely, restarted, said = 0, False, ""
    begun, started = time.monotonic(), 1
    try:
        recover()
        before = status()
        folders = set(_experiment_folders())
        _start(started)
        # Looked at twice: DVC reads its lists one by one, and a task that a worker takes meanwhile is in none of them.
        while (queue := status()).having(*OPEN) or (queue := status()).having(*OPEN):
            lonely = 0 if queue.workers else lonely + 1
            if lonely == 2:
                if restarted:
                    raise RunError("DVC's workers end without working the queue off; `dvc queue status` shows it")
                recover()
                _start(started)
                lonely, restarted = 0, True
            if started < jobs and _first_stages_are_cached(queue, before, folders):
                _start(started := jobs)
            counts = {state: len(queue.having(state)) for state in ("Queued", "Running", "Success", "Failed")}
            now = ", ".join(f"{count} {state.lower()}" for state, count in counts.items() if count)
            if now != said:
                on_change(now)
                said = now
            least, most = POLL_SECONDS
            time.sleep(min(max((time.monotonic() - begun) / 3, least), most))
    except (KeyboardInterrupt, SystemExit):
        with _undisturbed():
            stop()
        raise


def _experiment_folders() -> Iterator[Path]:
    return EXPERIMENTS.glob("tmp*")


def _first_stages_are_cached(queue: Queue, before: Queue, folders: Container[Path]) -> bool:
    """Whether an experiment has ended since `before`, or finished its noise stage, in a folder not among `folders`.

    All of them begin with the same `download`. DVC reads and writes the run cache of a stage without a lock: two
    experiments that come to it within the same moment can make each other fail.
    """
    ended = set(queue.having("Success", "Failed")) - set(before.tasks)
    new = (folder for folder in _experiment_folders() if folder not in folders)
    return bool(ended) or any((folder / "data/labels.h5").exists() for folder in new)


def stop() -> None:
    """End the workers: no new experiment, and the training processes of the running ones stop at a checkpoint."""
    _dvc("queue", "stop")
    deadline, told = time.monotonic() + STOP_SECONDS, set[int]()
    while True:
        # In a loop, since DVC may be between two stages. Each process once: a second signal ends it without checkpoint.
        told |= _interrupt(told)
        if not status().workers or time.monotonic() > deadline:
            break
    recover()


def recover() -> None:
    """Remove tasks that DVC lists as running although no worker runs them, as after a crash."""
    queue = status()
    if queue.workers:
        return
    _interrupt(set())  # stages whose workers were killed: DVC would not collect their outputs
    if lost := queue.having("Running"):
        _dvc("queue", "kill", *(task.revision for task in lost))


def _interrupt(told: Collection[int]) -> set[int]:
    """Send SIGINT to the stages that run in this repository's experiments, except `told`; return their process ids."""
    here = EXPERIMENTS.resolve()
    found = set()
    for process in _processes("pipeline", lambda folder: folder.is_relative_to(here)):
        if process.pid not in told:
            with suppress(psutil.Error):
                process.send_signal(signal.SIGINT)
            found.add(process.pid)
    return found


def _processes(word: str, runs_in: Callable[[Path], bool]) -> Iterator[psutil.Process]:
    """Processes with this word on their command line, in a folder that `runs_in` accepts."""
    for process in psutil.process_iter():
        try:
            if word in process.cmdline() and runs_in(Path(process.cwd())):
                yield process
        except psutil.Error:
            continue


def _start(jobs: int) -> None:
    """Start workers, with their output in a file: through a pipe, `dvc queue start` would wait until they end."""
    here = Path(sys.executable).parent  # whose `python` the stages' commands shall find
    environment = {
        **os.environ,
        "MLNT_CHECKPOINT_DIR": str(files.checkpoints().resolve()),
        "PATH": f"{here}{os.pathsep}{os.environ.get('PATH', '')}",
    }
    log = Path(".dvc/tmp/sweep.log")
    with log.open("w") as file, _undisturbed():
        command = [*DVC, "queue", "start", "--jobs", str(jobs)]
        done = subprocess.run(  # noqa: S603
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            env=environment,
            start_new_session=True,  # out of a terminal's Ctrl-C
            check=False,
        )
    if done.returncode:
        raise RunError(f"dvc queue start: {log.read_text().strip()}")


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Signals wait until the end of the block: DVC interrupted while it queues leaves the repository on a detached
    HEAD, with the experiment's parameters in params.yaml. Not by a signal mask, which workers would inherit."""
    received: list[int] = []
    stops = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda got, _: received.append(got)) for number in stops}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if received:
            os.kill(os.getpid(), received[0])


def _dvc(*arguments: str) -> str:
    done = subprocess.run(  # noqa: S603
        [*DVC, *arguments],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        check=False,
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["?"]
        told = next((line for line in lines if line.startswith("ERROR")), lines[-1])
        raise RunError(f"dvc {' '.join(arguments[:2])}: {told}")
    return done.stdout


def hydra(value: Any) -> str:
    """A value in the grammar of `--set-param`."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return "'" + value.replace("'", "\\'") + "'"
    if isinstance(value, list):
        return "[" + ",".join(hydra(item) for item in value) + "]"
    return str(value)
