"""One job of a sweep: an experiment in a clone of its own, here or on a node of a cluster."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any

import psutil
from submitit.helpers import DelayedSubmission

from pipeline.base import console, files, locks, signals
from pipeline.base.git import run_git
from pipeline.params.presets import merged

STOP_SECONDS = 60
"""For a stage to save its checkpoint; SLURM gives 90 from the signal to the kill."""
PUSHES = 5
"""Attempts, 1, 2, 4, … seconds apart."""


@dataclass(frozen=True)
class Place:
    """Where the files of a sweep lie; all paths are absolute, and the same on every machine that works for it.

    Attributes:
        root: the project, a git and DVC repository.
        commit: that experiments start from.
        remote: git repository that results are pushed to.
        cache: DVC's.
        checkpoints: of training stages.
        scratch: folder for clones, on a local disk; None for the machine's own temporary folder.
    """

    root: Path
    commit: str
    remote: str
    cache: Path
    checkpoints: Path
    scratch: Path | None

    @property
    def own(self) -> Path:
        """What the sweep itself writes: logs, locks, and the repository of results."""
        return self.root / files.SWEEP

    def logs(self, name: str) -> Path:
        """The folder with the logs of a job."""
        return self.own / "jobs" / name

    def lock(self, name: str) -> Path:
        """A file that is locked as long as a process works on the job."""
        return self.own / "locks" / name

    def done(self, name: str) -> Path:
        """A file that is there when the job has ended well."""
        return self.logs(name) / "done"

    def ref(self, name: str) -> str:
        """Where DVC keeps an experiment in git."""
        return f"refs/exps/{self.commit[:2]}/{self.commit[2:]}/{name}"


@dataclass(frozen=True)
class Job:
    """What a clone is made for.

    Attributes:
        name: of the job, and of DVC's experiment.
        params: all of them, by section.
        stages: whose results are wanted.
        targets: DVC's, for these stages.
        result: whether it is an experiment; otherwise stages that several experiments share, which are run so that
            these find them in DVC's run cache.
        after: names of jobs that have to end before.
    """

    name: str
    params: Mapping[str, Any]
    stages: tuple[str, ...]
    targets: tuple[str, ...]
    result: bool = True
    after: frozenset[str] = frozenset()


@dataclass
class Worker:
    """A job, as submitit calls it. It exits with 0 when the result has been pushed; what failed stands in its log.

    A signal stops the training stage at a checkpoint. After submitit's own, which comes before the time limit and at a
    preemption, the job is put back into the queue, and goes on from there.
    """

    job: Job
    place: Place
    gpus: str | None = None
    _process: psutil.Popen | None = field(default=None, init=False)
    _told: bool = field(default=False, init=False)

    def __call__(self) -> None:
        for number in signals.SIGNALS:
            signal.signal(number, self._end)
        with self._alone() as (lock, waited):
            if waited and self.job.result and self._git("ls-remote", self.place.remote, self.place.ref(self.job.name)):
                console.say("another sweep has pushed this result meanwhile")
            else:
                with self._clone() as folder:
                    self._work(folder, lock)
            self.place.done(self.job.name).touch()

    def checkpoint(self) -> DelayedSubmission:
        """What submitit puts back into the queue; the stage has saved its checkpoint when this returns."""
        self._stop()
        return DelayedSubmission(replace(self))

    def _work(self, folder: Path, lock: int) -> None:
        prefix = self._git("rev-parse", "--show-prefix", cwd=self.place.root)
        here = folder / "clone" / prefix
        params = here / "params.yaml"
        text, _ = merged(params.read_text(encoding="utf-8"), self.job.params, "params.yaml")
        params.write_text(text, encoding="utf-8")
        what = ["exp", "run", "--name", self.job.name] if self.job.result else ["repro"]
        environment = self._environment(folder)
        # What `dvc config --local cache.dir` writes, which takes DVC a second.
        (here / ".dvc/config.local").write_text(f'[cache]\n    dir = "{self.place.cache}"\n', encoding="utf-8")
        self._run([*what, *self.job.targets], here, environment, lock)
        if self.job.result:
            self._push(here)

    def _environment(self, folder: Path) -> dict[str, str]:
        """The stages' `python` is this one, relative paths start at the project, checkpoints outlive the clone."""
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
        return {
            **os.environ,
            "PATH": path,
            "MLNT_CHECKPOINT_DIR": str(self.place.checkpoints),
            "MLNT_PROJECT_DIR": str(self.place.root),
            "DVC_SITE_CACHE_DIR": str(folder / "dvc"),
            **({} if self.gpus is None else {"CUDA_VISIBLE_DEVICES": self.gpus}),
        }

    def _run(self, arguments: list[str], folder: Path, environment: Mapping[str, str], lock: int) -> None:
        """Run DVC. It inherits the lock: should this process be killed, nobody works on the job beside it."""

        def spare() -> None:
            # SLURM sends submitit's signal to every process of a job, and it would end them.
            signal.signal(signal.SIGUSR2, signal.SIG_IGN)

        self._process = psutil.Popen(
            [sys.executable, "-m", "dvc", *arguments],
            cwd=folder,
            env=environment,
            start_new_session=True,
            pass_fds=[lock],
            preexec_fn=spare,
        )
        status = self._process.wait()
        self._process = None
        if status:
            console.say(f"dvc {arguments[0]}: exit status {status}")
            raise SystemExit(1)

    def _push(self, folder: Path) -> None:
        ref = self.place.ref(self.job.name)
        for attempt in range(PUSHES):
            done = run_git("push", "--quiet", "--force", self.place.remote, f"{ref}:{ref}", cwd=folder)
            if done.returncode == 0:
                return
            if attempt == PUSHES - 1 or "declined" in done.stderr:  # by a rule of the repository's
                self._fail(f"{self.place.remote}: the result could not be pushed: {_last(done.stderr)}")
            time.sleep(2**attempt)

    def _git(self, *arguments: str, cwd: Path | None = None) -> str:
        done = run_git(*arguments, cwd=cwd)
        if done.returncode:
            self._fail(f"git {arguments[0]}: {_last(done.stderr)}")
        return done.stdout.strip()

    def _fail(self, message: str) -> None:
        console.fail(message)
        raise SystemExit(1)

    @contextmanager
    def _alone(self) -> Iterator[tuple[int, bool]]:
        """Wait until nobody else works on the job; yields the lock's handle, and whether there was somebody."""
        path, waited = self.place.lock(self.job.name), False
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            with suppress(locks.NoLocksError):
                try:
                    locks.lock(file, wait=False)
                except BlockingIOError:
                    console.say("another process works on this job; waiting for it")
                    waited = True
                    locks.lock(file)
            self.place.done(self.job.name).unlink(missing_ok=True)
            yield file.fileno(), waited

    @contextmanager
    def _clone(self) -> Iterator[Path]:
        """A folder with a clone of the project at the sweep's commit; what a killed worker left of it is removed."""
        scratch = self.place.scratch or Path(tempfile.gettempdir())
        mark = hashlib.sha256(f"{self.place.root} {self.job.name}".encode()).hexdigest()[:16]
        for left in scratch.glob(f"mlnt-{mark}-*"):
            shutil.rmtree(left, ignore_errors=True)
        try:
            folder = Path(tempfile.mkdtemp(prefix=f"mlnt-{mark}-", dir=scratch))
        except OSError as error:
            self._fail(f"{scratch}: no clone could be made there: {error}; --scratch names another folder")
        try:
            top = self._git("rev-parse", "--show-toplevel", cwd=self.place.root)
            # Shared: the clone reads the objects of the project's repository, however many experiments lie there.
            self._git("clone", "--quiet", "--shared", "--no-checkout", top, str(folder / "clone"))
            self._git("checkout", "--quiet", "--detach", self.place.commit, cwd=folder / "clone")
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _end(self, number: int, _: FrameType | None) -> None:
        self._stop()
        raise SystemExit(128 + number)

    def _stop(self) -> None:
        """Let the stage save its checkpoint, and wait until it and DVC have ended: what a terminal's Ctrl-C does."""
        if (process := self._process) is None:
            return
        # SLURM sends a SIGTERM to every process of a job: DVC has ended of it then, and the stage is ending.
        told, self._told = self._told or not psutil.wait_procs([process], timeout=1)[1], True
        stop_group(process.pid, tell=not told)


def stop_group(group: int, *, tell: bool) -> None:
    """Wait until all processes of a group have ended in order; kill them after a minute.

    The children of the process that started it are not all: where that has ended before, the others are nobody's
    children, and may still be saving a checkpoint.

    Args:
        group: its number.
        tell: whether they get SIGINT.
    """
    with suppress(ProcessLookupError):
        members = [each for each in psutil.process_iter() if _group(each) == group]
        if tell:
            os.killpg(group, signal.SIGINT)
        psutil.wait_procs(members, timeout=STOP_SECONDS)
        os.killpg(group, signal.SIGKILL)


def _group(process: psutil.Process) -> int | None:
    try:
        return os.getpgid(process.pid)
    except OSError:  # it has ended
        return None


def _last(text: str) -> str:
    return (text.strip().splitlines() or ["?"])[-1]
