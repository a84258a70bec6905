"""Where the jobs of a sweep run: processes of this machine, or SLURM."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Protocol

import psutil
import submitit

from pipeline.base import locks
from pipeline.base.errors import RunError, UserError
from pipeline.paper.sweep.worker import STOP_SECONDS, Job, Place, Worker

FOREVER_MIN = 60 * 24 * 365
TIMEOUTS = 1000
"""How often a job may reach its time limit: each time it goes on from its checkpoint."""


class Executor(Protocol):
    """Runs jobs; `poll_seconds` are the shortest and longest time between two questions for them."""

    poll_seconds: tuple[float, float]

    @property
    def free(self) -> bool:
        """Whether one more may start."""
        ...

    def start(self, job: Job) -> None:
        """Let it run."""
        ...

    def going(self, names: Sequence[str]) -> set[str]:
        """Those of these jobs that wait or run, whoever has started them."""
        ...

    def stop(self) -> str:
        """End in order what ends with the sweep; returns what a person should know."""
        ...


class Local:
    """Processes of this machine, each with GPUs of its own as far as there are enough."""

    poll_seconds = (0.5, 0.5)

    def __init__(self, place: Place, jobs: int, gpus: Sequence[str], gpus_per_job: int) -> None:
        if gpus and gpus_per_job > len(gpus):
            raise UserError(f"--gpus-per-job: found {gpus_per_job}, expected at most the {len(gpus)} of this machine")
        self._place = place
        self._gpus = [slot_gpus(slot, gpus, gpus_per_job) for slot in range(jobs)]
        self._slots: list[tuple[str, submitit.Job[None]] | None] = [None] * jobs

    @property
    def free(self) -> bool:
        return None in self._slots

    def start(self, job: Job) -> None:
        slot = self._slots.index(None)
        executor = submitit.LocalExecutor(self._place.logs(job.name))
        executor.update_parameters(timeout_min=FOREVER_MIN, stderr_to_stdout=True)
        with _deaf():
            started = executor.submit(Worker(job, self._place, self._gpus[slot]))
        self._slots[slot] = (job.name, started)

    def going(self, names: Sequence[str]) -> set[str]:
        self._slots = [None if slot is None or slot[1].done() else slot for slot in self._slots]
        own = {slot[0] for slot in self._slots if slot is not None}
        return own | {name for name in names if name not in own and self._is_locked(name)}

    def _is_locked(self, name: str) -> bool:
        """Whether a worker of another sweep, or one that has outlived its own, works on the job."""
        try:
            with self._place.lock(name).open("r") as file:
                locks.lock(file, wait=False)
        except BlockingIOError:
            return True
        except OSError:  # there is none, or there are no locks
            return False
        return False

    def stop(self) -> str:
        processes = []
        for slot in self._slots:
            with suppress(psutil.NoSuchProcess):
                if slot is not None and not slot[1].done():
                    # submitit's controller hands SIGTERM on; its own `cancel` gives a worker one second.
                    processes.append(psutil.Process(int(slot[1].job_id)))
                    processes[-1].terminate()
        _, alive = psutil.wait_procs(processes, timeout=STOP_SECONDS + 20)
        for process in alive:
            process.kill()
        return "stopped; the same command goes on"


class Slurm:
    """Jobs of a SLURM cluster, which the nodes and this machine share a file system with.

    They outlive the sweep. What SLURM preempts or stops at its time limit, it runs again.
    """

    poll_seconds = (2.0, 30.0)

    def __init__(self, place: Place, jobs: int, settings: Mapping[str, Any]) -> None:
        if shutil.which("sbatch") is None:
            raise UserError("--executor: found slurm, but there is no sbatch here; expected a login node, or local")
        self._jobs = jobs
        self._place = place
        self._settings = dict(settings)
        self._known: set[str] = set()

    @property
    def free(self) -> bool:
        return len(self._known) < self._jobs

    def start(self, job: Job) -> None:
        executor = submitit.SlurmExecutor(self._place.logs(job.name), max_num_timeout=TIMEOUTS)
        executor.update_parameters(**self._settings, job_name=job.name, stderr_to_stdout=True)
        try:
            executor.submit(Worker(job, self._place))
        except submitit.core.utils.FailedJobError as error:
            raise UserError(f"sbatch: {str(error).strip().splitlines()[0]}") from None
        self._known.add(job.name)

    def going(self, names: Sequence[str]) -> set[str]:
        done = subprocess.run(
            ["squeue", "--me", "--noheader", "--format", "%j"],  # noqa: S607
            capture_output=True,
            text=True,
            check=False,
        )
        # While SLURM gives no answer, nothing has ended.
        if done.returncode == 0:
            self._known = set(done.stdout.split()) & set(names)
        return self._known

    def stop(self) -> str:
        return "jobs in SLURM's queue stay there, and push their results; `scancel --me --name NAME` ends one"


def gpus_here() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    if (told := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name for name in told.split(",") if name]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


def slot_gpus(slot: int, gpus: Sequence[str], per_job: int) -> str:
    """CUDA_VISIBLE_DEVICES of the jobs in a slot: the next `per_job`, and from the first again where they end."""
    if not gpus:
        return ""
    return ",".join(gpus[(slot * per_job + number) % len(gpus)] for number in range(per_job))


def minutes(text: str) -> int:
    """A time limit as SLURM writes it: M, M:S, H:M:S, D-H, D-H:M, D-H:M:S.

    Raises:
        UserError: another text, or less than three minutes, of which two are for stopping.
    """
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text)
    if match is None:
        raise UserError(f"--time: found {text!r}, expected minutes, or a time such as 4:00:00 or 1-12:00:00")
    days, *rest = match.groups()
    numbers = [int(each) for each in rest if each is not None]
    if days is not None:
        hours, mins = (*numbers, 0)[:2]
        total = (int(days) * 24 + hours) * 60 + mins
    elif len(numbers) == 3:
        total = numbers[0] * 60 + numbers[1]
    else:
        total = numbers[0]
    if total < 3:
        raise UserError(f"--time: found {text!r}, expected at least 3 minutes: 90 s of it are for stopping in order")
    return total


def settings(pairs: Sequence[str]) -> dict[str, str]:
    """`--slurm KEY=VALUE` as sbatch's options.

    Raises:
        UserError: no such pair.
    """
    for pair in pairs:
        if not re.fullmatch(r"[a-z][a-z-]*=.+", pair):
            raise UserError(f"--slurm: found {pair!r}, expected an option of sbatch, such as account=vision")
    return dict(pair.split("=", 1) for pair in pairs)


@contextmanager
def _deaf() -> Iterator[None]:
    """Processes that are started here ignore a terminal's Ctrl-C: the sweep tells them when to stop, and waits."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def last_error(place: Place, name: str) -> str:
    """Why a job ended without a result: the last error in its newest log."""
    logs = sorted(place.logs(name).glob("*.out"), key=lambda path: path.stat().st_mtime)
    if not logs:
        return f"no log gives a reason; expected one in {place.logs(name)}"
    try:
        lines = logs[-1].read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise RunError(f"{logs[-1]}: could not be read: {error}") from error
    errors = [line for line in lines if line.lower().startswith(("error", "slurmstepd: error", "srun: error"))]
    own = [line for line in errors if line.startswith("error: ")]  # DVC's own only name the command
    return (own or errors or [line for line in lines if line.strip()] or [f"{logs[-1]} is empty"])[-1]
