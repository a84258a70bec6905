"""Sweeps in a copy of this project: finished, stopped, killed; and their results in another clone."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from projects import TINY, dvc, edit_params, environment, git, run
from sweeps import FIGURE3, sweep, variables, with_short_preset


@pytest.fixture
def with_preset(tmp_path: Path) -> Path:
    return with_short_preset(tmp_path / "repository")


@dataclass(frozen=True)
class Swept:
    """A repository with a git and a DVC remote after a sweep that has pushed to them, and what was said."""

    folder: Path
    planned: str
    done: str


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Swept:
    folder = with_short_preset(tmp_path_factory.mktemp("swept") / "repository")
    results = folder.parent / "results.git"
    git(folder, "init", "--quiet", "--bare", "--initial-branch", "main", str(results))
    git(folder, "remote", "add", "results", str(results))
    assert dvc(folder, "remote", "add", "--default", "storage", str(folder.parent / "storage")).returncode == 0
    git(folder, "commit", "--quiet", "--all", "--message", "a DVC remote")
    git(folder, "push", "--quiet", "results", "HEAD:main")
    planned = sweep(folder, "--dry-run")
    assert planned.returncode == 0, planned.stderr
    done = sweep(folder, "--jobs", "2", "--git-remote", "results")
    assert done.returncode == 0, done.stderr
    assert not (folder / ".dvc/tmp/sweep/results.git").exists()
    return Swept(folder, planned.stderr, done.stderr)


def test_a_sweep_runs_what_is_missing_and_tables_show_it(swept: Swept) -> None:
    assert "2 experiments: 0 finished, 2 to run" in swept.planned
    assert "sweep figure3: 2 of 2 finished" in swept.done
    assert git(swept.folder, "status", "--porcelain") == ""
    again = sweep(swept.folder)
    assert "2 experiments: 2 finished, 0 to run" in again.stderr
    assert list((swept.folder.parent / "scratch").iterdir()) == []
    tables = run(swept.folder, sys.executable, "-m", "pipeline", "tables", "--preset", "short")
    assert tables.returncode == 0, tables.stderr
    assert "figure3: 2 experiments" in tables.stderr
    assert "table4: not run" in tables.stderr
    rows = (swept.folder / "reports/short/figure3.csv").read_text(encoding="utf-8").splitlines()
    assert [row.split(",")[3] for row in rows[1:]] == ["2"] * (len(rows) - 1)
    assert (swept.folder / "reports/short/figure3.svg").read_text(encoding="utf-8").startswith("<svg")


def test_a_sweep_on_a_dirty_tree_is_refused(with_preset: Path) -> None:
    edit_params(with_preset / "params.yaml", {"mlnt.M": 3})
    result = sweep(with_preset)
    assert result.returncode == 2
    assert "changes that are not committed (params.yaml)" in result.stderr
    assert "Traceback" not in result.stderr


def running_stages(folder: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("MLNT_PROJECT_DIR") == str(folder) and "pipeline" in process.cmdline():
                found.append(process)
        except psutil.Error:
            continue
    return found


def logs(folder: Path) -> str:
    return "".join(path.read_text(encoding="utf-8") for path in folder.glob(".dvc/tmp/sweep/jobs/*/*.out"))


def kill_all(folder: Path) -> None:
    """Returns when no stage runs: what is killed may go on for a moment on a busy machine."""
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("TMPDIR") == str(folder.parent / "scratch"):
                process.kill()
    deadline = time.monotonic() + 120
    while running_stages(folder):
        assert time.monotonic() < deadline
        time.sleep(0.1)


@contextmanager
def started(folder: Path, there: Callable[[], bool]) -> Iterator[subprocess.Popen[bytes]]:
    """A sweep of long stages, once it is so far; afterwards nothing of it runs."""
    log = folder.parent / "sweep.log"
    with log.open("w") as file:
        command, settings = [*FIGURE3, "--seeds", "1"], environment(**variables(folder))
        process = subprocess.Popen(command, cwd=folder, env=settings, stdout=file, stderr=file)
    deadline = time.monotonic() + 300
    try:
        while not there():
            assert time.monotonic() < deadline, logs(folder)
            assert process.poll() is None, log.read_text()
            time.sleep(0.2)
        yield process
    finally:
        kill_all(folder)
        process.wait()


def test_a_sweep_that_is_stopped_or_killed_goes_on(with_preset: Path) -> None:
    """A signal ends everything in order; after that, and after kill -9 of all of it, the same command goes on."""
    preset = with_preset / "presets/short.yaml"
    preset.write_text("# Long enough to be stopped\ntrain:\n  epochs: 100\n", encoding="utf-8")
    git(with_preset, "commit", "--quiet", "--all", "--message", "longer")

    checkpoints = "checkpoints/meta1/*/state.safetensors"
    with started(with_preset, lambda: any(with_preset.glob(checkpoints))) as stopped:
        stopped.send_signal(signal.SIGINT)
        assert stopped.wait(timeout=200) == 130
        assert running_stages(with_preset) == []
    assert git(with_preset, "status", "--porcelain") == ""

    with started(with_preset, lambda: "meta1: going on after step" in logs(with_preset)) as killed:
        kill_all(with_preset)
        killed.wait(timeout=120)
    assert running_stages(with_preset) == []

    last = sweep(with_preset, "--seeds", "1")
    assert last.returncode == 0, last.stderr
    assert "sweep figure3: 1 of 1 finished" in last.stderr
    assert logs(with_preset).count("meta1: going on after step") == 2
    assert list((with_preset.parent / "scratch").iterdir()) == []


def test_another_clone_shows_what_a_sweep_has_pushed(swept: Swept) -> None:
    """Tables and records from the git remote alone, models from the DVC remote."""
    folder, clone = swept.folder, swept.folder.parent / "laptop"
    pushed = dvc(folder, "exp", "push", "--all-commits", "results")
    assert pushed.returncode == 0, pushed.stderr

    git(folder.parent, "clone", "--quiet", str(folder.parent / "results.git"), str(clone))
    pulled = dvc(clone, "exp", "pull", "--all-commits", "--no-cache", "origin")
    assert pulled.returncode == 0, pulled.stderr
    planned = sweep(clone, "--dry-run")
    assert "2 experiments: 2 finished, 0 to run" in planned.stderr
    assert "other code" not in planned.stderr
    for each in (clone, folder):
        tables = run(each, sys.executable, "-m", "pipeline", "tables", "--preset", "short")
        assert tables.returncode == 0, tables.stderr
    rows, expected = ((each / "reports/short/figure3.csv").read_text(encoding="utf-8") for each in (clone, folder))
    assert rows == expected
    name, _ = git(clone, "for-each-ref", "--format=%(refname:lstrip=4)", "refs/exps").split()
    assert dvc(clone, "exp", "branch", name, "found").returncode == 0
    git(clone, "switch", "--quiet", "found")
    record = json.loads((clone / "records/meta1.json").read_text(encoding="utf-8"))[0]
    assert record["params"]["mlnt.M"] == TINY["mlnt.M"]
    assert dvc(clone, "pull", "meta1").returncode == 0
    assert (clone / "models/meta1/model.json").exists()
