"""Sweeps under DVC's queue, in a copy of this project: finished, stopped, killed."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from projects import edit_params, environment, git, run
from sweeps import sweep, with_short_preset


@pytest.fixture
def with_preset(tmp_path: Path) -> Path:
    return with_short_preset(tmp_path / "repository")


def test_a_sweep_runs_what_is_missing_and_tables_show_it(with_preset: Path) -> None:
    planned = sweep(with_preset, "--dry-run")
    assert planned.returncode == 0, planned.stderr
    assert "2 experiments: 0 finished, 0 queued, 2 to queue" in planned.stderr
    first = sweep(with_preset, "--jobs", "2")
    assert first.returncode == 0, first.stderr
    assert "sweep figure3: 2 of 2 finished" in first.stderr
    assert git(with_preset, "status", "--porcelain") == ""
    again = sweep(with_preset)
    assert "2 experiments: 2 finished, 0 queued, 0 to queue" in again.stderr
    tables = run(with_preset, sys.executable, "-m", "pipeline", "tables", "--preset", "short")
    assert tables.returncode == 0, tables.stderr
    assert "figure3: 2 experiments" in tables.stderr
    assert "table4: not run" in tables.stderr
    rows = (with_preset / "reports/short/figure3.csv").read_text(encoding="utf-8").splitlines()
    assert [row.split(",")[3] for row in rows[1:]] == ["2"] * (len(rows) - 1)
    assert (with_preset / "reports/short/figure3.svg").read_text(encoding="utf-8").startswith("<svg")


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
            if "pipeline" in process.cmdline() and Path(process.cwd()).is_relative_to(folder / ".dvc/tmp/exps"):
                found.append(process)
        except psutil.Error:
            continue
    return found


def start_sweep(folder: Path, stage: str) -> subprocess.Popen[bytes]:
    """A sweep of long stages, once such a stage trains."""
    command = [sys.executable, "-m", "pipeline", "sweep", "figure3", "--preset", "short", "--seeds", "1"]
    variables = environment(DVC_SITE_CACHE_DIR=str(folder.parent / "site-cache"))
    log = folder.parent / "sweep.log"
    with log.open("w") as file:
        process = subprocess.Popen(command, cwd=folder, env=variables, stdout=file, stderr=file)
    deadline = time.monotonic() + 300
    while not any(stage in p.cmdline() for p in running_stages(folder)):
        assert time.monotonic() < deadline, "no stage has started"
        assert process.poll() is None, log.read_text()
        time.sleep(0.2)
    return process


def test_a_sweep_that_is_stopped_or_killed_goes_on(with_preset: Path) -> None:
    """A signal ends everything in order; after kill -9 of all of it, what DVC still calls running is queued anew."""
    preset = with_preset / "presets/short.yaml"
    preset.write_text("# Long enough to be stopped\ntrain:\n  epochs: 40\n", encoding="utf-8")
    git(with_preset, "commit", "--quiet", "--all", "--message", "longer")

    stopped = start_sweep(with_preset, "meta-train")
    stopped.send_signal(signal.SIGINT)
    assert stopped.wait(timeout=200) == 130
    assert running_stages(with_preset) == []
    assert git(with_preset, "status", "--porcelain") == ""

    killed = start_sweep(with_preset, "meta-train")
    for process in psutil.process_iter():
        try:
            mine = str(with_preset.parent) in process.environ().get("DVC_SITE_CACHE_DIR", "")
        except psutil.Error:
            continue
        if mine:
            process.kill()
    killed.wait(timeout=30)
    assert running_stages(with_preset) == []

    last = run(
        with_preset,
        *(sys.executable, "-m", "pipeline", "sweep", "figure3", "--preset", "short", "--seeds", "1"),
        timeout=600,
        DVC_SITE_CACHE_DIR=str(with_preset.parent / "site-cache"),
    )
    assert last.returncode == 0, last.stderr
    assert "sweep figure3: 1 of 1 finished" in last.stderr
