"""Workers of sweeps, with stages of a moment: what is killed, refused, preempted, or done twice at once."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import stat
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from projects import ROOT, default_values, dvc, environment, git

from pipeline.paper import history
from pipeline.paper.sweep.executors import Local
from pipeline.paper.sweep.run import Where, prepared, work_off
from pipeline.paper.sweep.worker import Job, Place
from pipeline.params.load import changed

DVC_YAML = """
stages:
  shared:
    cmd: python stage.py shared
    deps: [stage.py]
    outs: [shared.txt]
  train:
    cmd: python stage.py train
    deps: [stage.py, shared.txt]
    params: [seed]
    outs: [out.txt]
    metrics: [result.json: {cache: false}]
"""

STAGE = """
import json, os, pathlib, signal, sys, time

stage, outside = sys.argv[1], pathlib.Path(os.environ["MLNT_CHECKPOINT_DIR"])
seed = next(line.split()[1] for line in open("params.yaml") if line.startswith("seed:"))
with open(outside / "ran", "a") as file:
    file.write(f"{stage} {seed if stage == 'train' else ''}\\n")
told = pathlib.Path(os.environ["MLNT_PROJECT_DIR"], "own/told.txt").read_text()
for number, what in enumerate(told.split()):
    mark = outside / f"{stage}-{number}"
    if not what.startswith(f"{stage}:") or mark.exists():
        continue
    if not what.endswith("always"):
        mark.touch()
    parents = [os.getppid()]
    while parents[-1] > 1:
        parents.append(int(open(f"/proc/{parents[-1]}/stat").read().rpartition(")")[2].split()[1]))
    worker = next(p for p in parents if "submitit.core._submit" in open(f"/proc/{p}/cmdline").read())
    below = parents[: parents.index(worker)]
    if "kill" in what:
        for pid in [worker, *(below if "node" in what else [])]:
            os.kill(pid, signal.SIGKILL)
        sys.exit(1 if "node" in what else 0) if "node" in what else None
    if "fail" in what:
        sys.exit("error: no such luck")
    if "wait" in what:
        signal.signal(signal.SIGINT, lambda *_: (outside / "saved").touch() or sys.exit(130))
        (outside / "waiting").touch()
        time.sleep(120)
pathlib.Path("shared.txt" if stage == "shared" else "out.txt").write_text(stage + seed)
if stage == "train":
    about = {"seed": seed, "gpus": os.environ["CUDA_VISIBLE_DEVICES"], "code": "first"}
    pathlib.Path("result.json").write_text(json.dumps(about))
"""


class Trial:
    """A repository with such stages, and sweeps in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.outside = folder.parent / "checkpoints"
        self.said: list[str] = []
        self.place: Place = prepared(Where())
        values = default_values()
        shared = Job("shared", values, ("shared",), ("shared",), result=False)
        after = frozenset({"shared"})
        self.jobs = [
            shared,
            *(Job(f"job-{n}", changed(values, {"seed": n}), ("train",), ("train",), after=after) for n in (1, 2)),
        ]

    def tell(self, *what: str) -> None:
        """What stages shall do, once each: `train:fail`, `shared:fail-always`, …"""
        (self.folder / "own/told.txt").write_text(" ".join(what), encoding="utf-8")

    def sweep(self, jobs: int = 1, gpus: tuple[str, ...] = (), which: slice = slice(2)) -> dict[str, str]:
        return work_off(self.jobs[which], Local(self.place, jobs, gpus, 1), self.place, self.said.append)

    @property
    def ran(self) -> list[str]:
        return (self.outside / "ran").read_text(encoding="utf-8").splitlines()

    def result(self, name: str) -> Any:
        return history.json.loads(git(self.folder, "show", f"{self.place.ref(name)}:result.json"))

    def left(self) -> list[Path]:
        return list(self.folder.parent.glob("scratch/*"))


@pytest.fixture
def trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trial:
    folder = tmp_path / "repository"
    for path in (folder / "own", tmp_path / "scratch", tmp_path / "checkpoints"):
        path.mkdir(parents=True)
    variables = environment(
        DVC_SITE_CACHE_DIR=str(tmp_path / "site-cache"),
        MLNT_CHECKPOINT_DIR=str(tmp_path / "checkpoints"),
        TMPDIR=str(tmp_path / "scratch"),
        PYTHONPATH=os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    )
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(folder)
    (folder / "dvc.yaml").write_text(DVC_YAML, encoding="utf-8")
    (folder / "stage.py").write_text(STAGE, encoding="utf-8")
    shutil.copy(ROOT / "params.yaml", folder)
    (folder / ".gitignore").write_text("/own/\n/*.txt\n", encoding="utf-8")
    git(folder, "init", "--quiet")
    assert dvc(folder, "init", "--quiet").returncode == 0
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "stages of a moment")
    found = Trial(folder)
    found.tell()
    return found


def test_shared_stages_run_once_and_each_job_has_a_gpu(trial: Trial) -> None:
    """What is changed in the workspace meanwhile concerns neither the workers nor the changes."""
    (trial.folder / "stage.py").write_text(STAGE.replace("first", "second"), encoding="utf-8")
    git(trial.folder, "commit", "--quiet", "--all", "--message", "other code")
    (trial.folder / "params.yaml").write_text("not committed\n", encoding="utf-8")
    assert trial.sweep(jobs=2, gpus=("3", "5"), which=slice(3)) == {}
    assert sorted(trial.ran) == ["shared ", "train 1", "train 2"]
    results = [trial.result(name) for name in ("job-1", "job-2")]
    assert {each["gpus"] for each in results} == {"3", "5"}
    assert [each["code"] for each in results] == ["first", "first"]
    assert (trial.folder / "params.yaml").read_text(encoding="utf-8") == "not committed\n"
    assert trial.left() == []


@pytest.mark.parametrize("what", ["train:kill-worker", "train:kill-node"])
def test_a_worker_or_a_node_that_dies_is_replaced(trial: Trial, what: str) -> None:
    """Where DVC outlives its worker, the next one waits for it, and finds its stage in the run cache."""
    trial.tell(what)
    assert trial.sweep() == {}
    assert trial.ran.count("train 1") == (1 if "worker" in what else 2)
    assert sum("once more" in line for line in trial.said) == 1
    assert trial.result("job-1")["seed"] == "1"
    assert trial.left() == []


def hook(trial: Trial, script: str) -> None:
    path = Path(trial.place.remote) / "hooks/pre-receive"
    path.write_text(f"#!{sys.executable}\n{script}", encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def test_a_worker_that_dies_between_its_result_and_the_push(trial: Trial) -> None:
    mark = trial.outside / "killed"
    hook(
        trial,
        f"import os, pathlib, psutil, sys\nmark = pathlib.Path({str(mark)!r})\nif mark.exists(): sys.exit()\n"
        "mark.touch()\nfor process in psutil.Process().parents():\n"
        "    if 'submitit.core._submit' in process.cmdline(): process.kill()\nsys.exit(1)\n",
    )
    assert trial.sweep() == {}
    assert mark.exists()
    assert trial.ran.count("train 1") == 1
    assert trial.result("job-1")["seed"] == "1"


def test_a_repository_that_refuses_results_is_named(trial: Trial) -> None:
    hook(trial, "import sys\nprint('no room', file=sys.stderr)\nsys.exit(1)\n")
    failed = trial.sweep()
    assert set(failed) == {"job-1"}
    assert "results.git: the result could not be pushed" in failed["job-1"]
    hook(trial, "")
    assert trial.sweep() == {}  # the same command goes on
    assert trial.ran.count("train 1") == 1


def test_where_a_shared_stage_fails_nothing_else_is_tried(trial: Trial) -> None:
    trial.tell("shared:fail-always")
    assert trial.sweep(which=slice(3)) == dict.fromkeys(("shared", "job-1", "job-2"), "error: no such luck")
    assert trial.ran == ["shared ", "shared "]
    trial.tell("train:fail")
    assert trial.sweep() == {}
    assert "job-1 failed: error: no such luck; once more" in trial.said


def wait_for(there: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 300
    while not there():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def workers(folder: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if "submitit.core._submit" in process.cmdline() and Path(process.cwd()) == folder:
                found.append(process)
        except psutil.Error:
            continue
    return found


def test_a_preempted_job_saves_is_put_back_and_goes_on(trial: Trial) -> None:
    trial.tell("train:wait")

    def preempt() -> None:
        wait_for((trial.outside / "waiting").exists)
        (worker,) = workers(trial.folder)
        worker.send_signal(signal.SIGUSR2)

    signals = threading.Thread(target=preempt)
    signals.start()
    assert trial.sweep() == {}
    signals.join()
    assert (trial.outside / "saved").exists()
    assert not any("failed" in line for line in trial.said)
    assert trial.ran.count("train 1") == 2
    assert trial.result("job-1")["seed"] == "1"
    assert trial.left() == []


def sweep_all(trial: Trial) -> None:
    assert trial.sweep(jobs=2, which=slice(3)) == {}


def test_two_sweeps_at_once_share_the_work(trial: Trial) -> None:
    second = multiprocessing.get_context("spawn").Process(target=sweep_all, args=(trial,))
    second.start()
    sweep_all(trial)
    second.join()
    assert second.exitcode == 0
    assert sorted(trial.ran) == ["shared ", "train 1", "train 2"]
    assert {trial.result(name)["seed"] for name in ("job-1", "job-2")} == {"1", "2"}
