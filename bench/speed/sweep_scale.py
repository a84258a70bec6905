"""How sweeps scale: many experiments with trivial stages, through the workers of `mlnt sweep`.

    python bench/speed/sweep_scale.py --experiments 1000 --jobs 16

Prints experiments a minute, failures, seconds of an experiment as their number grows, what the cache and the repository
of results weigh, and how long the sweep's own questions take.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean
from typing import Any

from pipeline.base import files
from pipeline.paper import history
from pipeline.paper.sweep import remote
from pipeline.paper.sweep.executors import Local
from pipeline.paper.sweep.run import Where, prepared, work_off
from pipeline.paper.sweep.worker import Job, Place
from pipeline.params.load import changed, read_yaml

ROOT = Path(__file__).resolve().parents[2]
LATE = "error: the time was over"
DVC_YAML = """
stages:
  download:
    cmd: head -c 100000 /dev/zero > download.bin
    outs: [download.bin]
  train:
    cmd: mkdir -p records && head -c 20000 /dev/urandom > model.bin && cp params.yaml records/train.json
    deps: [download.bin]
    params: [seed]
    outs: [model.bin]
    metrics: [records/train.json: {cache: false}]
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiments", type=int, default=1000)
    parser.add_argument("--jobs", type=int, default=16)
    parser.add_argument("--minutes", type=float, help="start no more experiments after this long")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary).resolve() / "repository"
        folder.mkdir()
        os.chdir(folder)
        os.environ["TMPDIR"] = str(folder.parent)
        tempfile.tempdir = None
        make_repository()
        values: dict[str, Any] = read_yaml(Path("params.yaml"))
        place = prepared(Where())
        shared = Job("shared", values, ("download",), ("download",), result=False)
        todo = [
            Job(
                f"bench-{seed:05}", changed(values, {"seed": seed}), ("train",), ("train",), after=frozenset({"shared"})
            )
            for seed in range(options.experiments)
        ]
        begun = time.monotonic()
        executor = Timed(place, options.jobs, options.minutes)
        print(f"{options.experiments} experiments, {options.jobs} workers, load {os.getloadavg()[0]:.1f}", flush=True)
        lost = work_off([shared, *todo], executor, place, say)
        minutes = (time.monotonic() - begun) / 60
        tell([job.name for job in todo], place, minutes, lost)


def say(text: str) -> None:
    if " failed: " in text and LATE not in text:
        print(text, flush=True)


class Timed(Local):
    """Stops starting jobs after some minutes: a machine that others use too can be slower than expected."""

    def __init__(self, place: Place, jobs: int, minutes: float | None) -> None:
        super().__init__(place, jobs, [], 0)
        self._end = None if minutes is None else time.monotonic() + 60 * minutes

    def start(self, job: Job) -> None:
        if self._end is not None and time.monotonic() > self._end:
            self._place.logs(job.name).mkdir(parents=True, exist_ok=True)
            (self._place.logs(job.name) / "late.out").write_text(f"{LATE}\n", encoding="utf-8")
        else:
            super().start(job)


def make_repository() -> None:
    Path("dvc.yaml").write_text(DVC_YAML, encoding="utf-8")
    Path("params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    Path(".gitignore").write_text("/*.bin\n", encoding="utf-8")
    for command in (
        ["git", "init", "--quiet", "--initial-branch", "main"],
        ["git", "config", "user.email", "bench@localhost"],
        ["git", "config", "user.name", "bench"],
        [sys.executable, "-m", "dvc", "init", "--quiet"],
        ["git", "add", "--all"],
        ["git", "commit", "--quiet", "--message", "trivial stages"],
    ):
        subprocess.run(command, check=True)  # noqa: S603


def tell(names: list[str], place: Place, minutes: float, lost: dict[str, str]) -> None:
    times = []  # (begun, seconds) of those that have a result
    for name in names:
        if place.done(name).exists():
            begun = min(path.stat().st_mtime for path in place.logs(name).glob("*_submitted.pkl"))
            times.append((begun, place.done(name).stat().st_mtime - begun))
    times.sort()
    print(f"{len(times)} finished in {minutes:.1f} min: {len(times) / minutes:.1f} a minute")
    for reason in sorted(set(lost.values())):
        print(f"{list(lost.values()).count(reason)} not finished: {reason}")
    size = max(1, len(times) // 10)
    for first in range(0, len(times), size):
        part = [seconds for _, seconds in times[first : first + size]]
        print(f"experiments {first + 1:5} to {first + len(part):5}: {mean(part):6.1f} s each")
    for label, path in (
        ("DVC's cache", place.cache),
        ("results.git", Path(place.remote)),
        (".git", place.root / ".git"),
        ("logs", place.own / "jobs"),
    ):
        found = [each for each in path.rglob("*") if each.is_file()]
        print(f"{label}: {sum(each.stat().st_size for each in found) / files.MIB:.1f} MiB, {len(found)} files")
    for label, call in (
        ("fetch of nothing new", lambda: remote.fetch(place.remote)),
        ("one git ls-remote", lambda: history.git("ls-remote", place.remote, place.ref(names[0]))),
        ("all experiments read (history.finished)", history.finished),
    ):
        begun = time.monotonic()
        call()
        print(f"{label}: {time.monotonic() - begun:.2f} s")


if __name__ == "__main__":
    main()
