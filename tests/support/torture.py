"""Kill every stage at random moments, let it go on, compare with a run that nobody disturbed.

`make torture` runs it over all stages and prints a table; tests/e2e/test_dvc.py runs a short one.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from projects import OUTPUTS, STAGES, TINY, copy_project, digests, dvc, environment, written_by

from pipeline.base.errors import UserError
from pipeline.params.load import read_yaml

PARAMS = {**TINY, "train.epochs": 24, "train.lr_drop_epochs": [16], "run.checkpoint_every": "7 steps"}
PATIENCE_S = 120


@dataclass
class Attack:
    """One disturbance of one run of a stage.

    Attributes:
        kind: one of KINDS.
        seconds: after the stage's process started.
        hit: whether the process was still there.
        said: what the disturbed run, and a second one beside it, printed.
        damaged: files of the stage that were there afterwards and not as they should be.
    """

    kind: str
    seconds: float
    hit: bool = False
    said: str = ""
    damaged: list[str] = field(default_factory=list)


@dataclass
class Ordeal:
    """What happened to a stage.

    Attributes:
        last: the run after the last disturbance, and the `dvc repro` that follows.
        cut_locks: how often one of DVC's records, which it writes in place, was left cut off.
        same_bits: whether every output and dvc.lock are as if nothing had happened.
    """

    stage: str
    attacks: list[Attack]
    last: subprocess.CompletedProcess[str]
    cut_locks: int
    same_bits: bool
    seconds: float

    @property
    def gone_on(self) -> list[int]:
        """The steps that its runs went on from."""
        text = "\n".join([*(attack.said for attack in self.attacks), self.last.stdout + self.last.stderr])
        return [int(step) for step in re.findall(r"going on after step (\d+)", text)]


class Run:
    """`dvc repro` of one stage, whatever its outputs are."""

    def __init__(self, folder: Path, stage: str) -> None:
        self.folder = folder
        self.stage = stage
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115 (`wait` closes it)
        variables = environment(DVC_SITE_CACHE_DIR=str(folder.parent / "site-cache"))
        # A session of its own: what a terminal's Ctrl-C reaches.
        self.dvc = psutil.Popen(
            command(stage), cwd=folder, env=variables, stdout=self.log, stderr=self.log, start_new_session=True
        )

    def process(self) -> psutil.Process | None:
        """The stage's own process, as soon as it is there; None where DVC ended without one."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline and self.dvc.is_running() and self.dvc.status() != psutil.STATUS_ZOMBIE:
            for child in self._below():
                if arguments_of(child)[1:3] == ["-m", "pipeline"]:
                    return child
            time.sleep(0.01)
        return None

    def _below(self) -> list[psutil.Process]:
        try:
            return self.dvc.children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def signal_all(self, number: int) -> None:
        for process in [*self._below(), self.dvc]:
            signal_to(process, number)

    def wait(self) -> str:
        """Until it has ended; what it said."""
        self.dvc.wait(PATIENCE_S)
        with self.log as log:
            log.seek(0)
            return log.read()


def command(stage: str) -> list[str]:
    return [sys.executable, "-m", "dvc", "repro", "--force", "--no-run-cache", "--single-item", stage]


def arguments_of(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def signal_to(process: psutil.Process, number: int) -> None:
    with suppress(psutil.NoSuchProcess):
        process.send_signal(number)


def wait_for(process: psutil.Process) -> None:
    with suppress(psutil.NoSuchProcess):
        process.wait(PATIENCE_S)


def kill_all(run: Run, process: psutil.Process) -> str:
    """As when the machine goes down."""
    run.signal_all(signal.SIGKILL)
    wait_for(process)
    return run.wait()


def kill_stage(run: Run, process: psutil.Process) -> str:
    """As the kernel does where memory runs out."""
    signal_to(process, signal.SIGKILL)
    return run.wait()


def kill_dvc(run: Run, process: psutil.Process) -> str:
    """The stage lives on; the same command is given beside it, and once more after it has ended."""
    signal_to(run.dvc, signal.SIGKILL)
    said = run.wait()
    second = Run(run.folder, run.stage).wait()
    wait_for(process)
    return said + second


def interrupt(run: Run, process: psutil.Process) -> str:
    """Ctrl-C reaches DVC and the stage."""
    run.signal_all(signal.SIGINT)
    wait_for(process)
    return run.wait()


def terminate(run: Run, process: psutil.Process) -> str:
    """As when the machine is shut down in order."""
    run.signal_all(signal.SIGTERM)
    wait_for(process)
    return run.wait()


def second_run(run: Run, process: psutil.Process) -> str:
    """The same command beside it: nothing but a message."""
    del process
    second = Run(run.folder, run.stage).wait()
    return run.wait() + second


def no_space(run: Run, process: psutil.Process) -> str:
    """From now on the stage can write no file of more than 3,000 bytes."""
    with suppress(psutil.NoSuchProcess):
        process.rlimit(psutil.RLIMIT_FSIZE, (3000, resource.RLIM_INFINITY))
    return run.wait()


KINDS: dict[str, Callable[[Run, psutil.Process], str]] = {
    "kill -9 of all": kill_all,
    "kill -9 of the stage": kill_stage,
    "kill -9 of DVC": kill_dvc,
    "Ctrl-C": interrupt,
    "SIGTERM": terminate,
    "second run": second_run,
    "no space": no_space,
}


def kinds(generator: random.Random) -> Iterator[str]:
    """All of them in random order, again and again."""
    while True:
        yield from generator.sample(list(KINDS), len(KINDS))


def torture(folder: Path, stages: Sequence[str], kills: int, seed: int) -> Iterator[Ordeal]:
    """Disturb each of the stages of a finished run; `kills` are spread evenly."""
    generator = random.Random(seed)  # noqa: S311 (no secrets)
    chosen = kinds(generator)
    expected, lock = digests(folder, *OUTPUTS), read_lock(folder)
    histories = {path.stem: path.read_text(encoding="utf-8") for path in (folder / "plots").glob("*.csv")}
    for number, stage in enumerate(stages):
        start = time.monotonic()
        length = duration(folder, stage)
        attacks: list[Attack] = []
        cut_locks = 0
        for _ in range(kills // len(stages) + (number < kills % len(stages))):
            # Past its end too: DVC takes over there.
            attack = Attack(next(chosen), generator.uniform(0, 1.1 * length))
            attacks.append(attack)
            cut_locks += mend_records(folder)
            with no_process_left(folder):
                disturbed = Run(folder, stage)
                process = disturbed.process()
                assert process is not None, disturbed.wait()
                time.sleep(attack.seconds)
                with suppress(psutil.NoSuchProcess):
                    attack.hit = process.status() != psutil.STATUS_ZOMBIE
                attack.said = KINDS[attack.kind](disturbed, process)
            begun = begun_history(folder, stage, histories.get(stage, ""))
            attack.damaged = [
                name
                for name, digest in written(folder, stage).items()
                if digest != expected.get(name) and name not in begun
            ]
        cut_locks += mend_records(folder)
        last = dvc(folder, *command(stage)[3:])
        # A lock file that was cut off between two entries has lost stages: they come back from the run cache.
        everything = dvc(folder, "repro")
        cut_locks += "is cached - skipping run" in everything.stdout
        found = digests(folder, *OUTPUTS)
        left = [path.as_posix() for path in folder.glob("checkpoints/*/*/*") if path.name != "lock"]
        same = last.returncode == everything.returncode == 0 and (found, read_lock(folder), left) == (
            expected,
            lock,
            [],
        )
        last.stdout += everything.stdout + everything.stderr
        yield Ordeal(stage, attacks, last, cut_locks, same, time.monotonic() - start)


def read_lock(folder: Path) -> Any:
    """What dvc.lock says, whatever the order of its stages; None where it is not there or cannot be read."""
    try:
        return read_yaml(folder / "dvc.lock")
    except UserError:
        return None


def mend_records(folder: Path) -> bool:
    """Do what docs/robustness.md says, where a kill has cut off dvc.lock or .dvc/tmp/rwlock in the middle of an entry.

    DVC can read neither then, and makes another where there is none. Returns whether one of them was cut off.
    """
    lock = read_lock(folder)
    whole = isinstance(lock, dict) and isinstance(lock.get("stages"), dict) and all(lock["stages"].values())
    if not whole:
        (folder / "dvc.lock").unlink(missing_ok=True)
    users = folder / ".dvc/tmp/rwlock"
    try:
        json.loads(users.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return not whole
    except json.JSONDecodeError:
        users.unlink()
        return True
    return not whole


def written(folder: Path, stage: str) -> dict[str, str]:
    """What of the stage's outputs is there, by digest; files that are not yet at their place do not count."""
    there = [name for name in written_by(stage) if (folder / name).exists()]
    found = digests(folder, *there) if there else {}
    return {name: digest for name, digest in found.items() if not name.endswith(".tmp")}


def begun_history(folder: Path, stage: str, finished: str) -> set[str]:
    """The history of a stage that trains, where it is the first rows of the finished one: it grows meanwhile."""
    path = folder / f"plots/{stage}.csv"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return {f"plots/{stage}.csv"} if text.endswith("\n") and finished.startswith(text) else set()


def duration(folder: Path, stage: str) -> float:
    """Seconds that the stage's process lives."""
    undisturbed = Run(folder, stage)
    process = undisturbed.process()
    assert process is not None, undisturbed.wait()
    start = time.monotonic()
    wait_for(process)
    seconds = time.monotonic() - start
    undisturbed.wait()
    return seconds


@contextmanager
def no_process_left(folder: Path) -> Iterator[None]:
    yield
    deadline = time.monotonic() + PATIENCE_S
    while any(arguments_of(p)[1:3] == ["-m", "pipeline"] and _runs_in(p, folder) for p in psutil.process_iter()):
        assert time.monotonic() < deadline, "a stage is still running"
        time.sleep(0.05)


def _runs_in(process: psutil.Process, folder: Path) -> bool:
    try:
        return Path(process.cwd()) == folder
    except psutil.Error:
        return False


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stages", nargs="+", default=list(STAGES), choices=list(STAGES))
    options = parser.parse_args()
    failed = 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(os.path.realpath(temporary)) / "project"
        copy_project(folder, PARAMS)
        done = dvc(folder, "repro")
        assert done.returncode == 0, done.stdout + done.stderr
        print(
            f"{'stage':9} {'disturbed':>9} {'hit':>4} {'half-written':>12} {'went on after step':28} same bits  seconds"
        )
        everything: list[Attack] = []
        ordeals: list[Ordeal] = []
        for ordeal in torture(folder, options.stages, options.kills, options.seed):
            damaged = sum(len(attack.damaged) for attack in ordeal.attacks)
            hit = sum(attack.hit for attack in ordeal.attacks)
            steps = " ".join(map(str, ordeal.gone_on)) or "-"
            print(
                f"{ordeal.stage:9} {len(ordeal.attacks):9} {hit:4} {damaged:12} {steps:28} "
                f"{'yes' if ordeal.same_bits else 'NO':9} {ordeal.seconds:8.0f}",
                flush=True,
            )
            everything += ordeal.attacks
            ordeals.append(ordeal)
            if damaged or not ordeal.same_bits:
                failed += 1
                for attack in ordeal.attacks:
                    print(f"--- {attack.kind} after {attack.seconds:.1f} s: {attack.damaged}\n{attack.said}")
                print("--- last\n" + ordeal.last.stdout + ordeal.last.stderr)
        print(f"DVC's records cut off: {sum(ordeal.cut_locks for ordeal in ordeals)} times")
        counted = {kind: sum(attack.kind == kind for attack in everything) for kind in KINDS}
        print(", ".join(f"{count} × {kind}" for kind, count in counted.items()))
        traces = [attack for attack in everything if "Traceback" in attack.said]
        print(f"{len(everything)} disturbances, {len(traces)} with a traceback")
        print(f"{failed} stages with other bits or half a file")
        for attack in traces:
            print(f"--- {attack.kind}\n{attack.said}")
    return 1 if failed or traces else 0


if __name__ == "__main__":
    sys.exit(main())
