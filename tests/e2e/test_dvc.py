"""The pipeline under DVC, in a copy of this project: what runs, what does not, what comes back from the cache."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from projects import ROOT, STAGES, TINY, digests, edit_params, environment, run, written_by

META = {"meta1", "meta2", "meta3"}
CONTROL = {"control2", "control3"}
END = {"evaluate", "report"}


def dvc(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run(folder, sys.executable, "-m", "dvc", *arguments, DVC_SITE_CACHE_DIR=str(folder.parent / "site-cache"))


def git(folder: Path, *arguments: str) -> str:
    result = run(folder, "git", *arguments)
    assert result.returncode == 0, result.stderr
    return result.stdout


def mentioned(result: subprocess.CompletedProcess[str], how: str) -> list[str]:
    """The stages of the lines that say this, such as "Running stage '{}'"."""
    return [stage for line in result.stdout.splitlines() for stage in STAGES if how.format(stage) in line]


def ran(result: subprocess.CompletedProcess[str]) -> list[str]:
    return mentioned(result, "Running stage '{}'")


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A committed copy with tiny parameters after `dvc repro`, and what that said."""
    folder = tmp_path_factory.mktemp("repository")
    listed = git(ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")
    for name in listed:
        if name and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    edit_params(folder / "params.yaml", {**TINY, "train.epochs": 1})
    git(folder, "init", "--quiet")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "tiny")
    result = dvc(folder, "repro")
    assert result.returncode == 0, result.stderr
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "reproduced")
    return folder, result


@pytest.fixture
def repository(first: tuple[Path, Any], tmp_path: Path) -> Path:
    """A copy of it, to be changed."""
    return Path(shutil.copytree(first[0], tmp_path / "repository", symlinks=True))


def change(repository: Path, changes: dict[str, Any]) -> None:
    edit_params(repository / "params.yaml", changes)


def test_every_stage_runs_once_and_writes_its_outputs(first: tuple[Path, Any]) -> None:
    folder, result = first
    assert sorted(ran(result)) == sorted(STAGES)
    for stage in STAGES:
        for path in written_by(stage):
            assert digests(folder, path), path


def test_a_second_run_runs_nothing_and_leaves_the_tree_clean(repository: Path) -> None:
    assert git(repository, "status", "--porcelain") == ""
    before = digests(repository, "dvc.lock", "data", "models", "metrics", "plots", "reports", "timings")
    result = dvc(repository, "repro")
    assert result.returncode == 0
    assert mentioned(result, "Stage '{}' didn't change, skipping") == list(STAGES)
    assert ran(result) == []
    assert digests(repository, "dvc.lock", "data", "models", "metrics", "plots", "reports", "timings") == before
    assert git(repository, "status", "--porcelain") == ""


def downstream(stages: set[str]) -> set[str]:
    """These stages, and all that read what they write."""
    found = set(stages)
    for stage in STAGES:  # in the order of a run
        if any(set(STAGES[stage]["deps"]) & set(written_by(other)) for other in found):
            found.add(stage)
    return found


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"seed": 1}, set(STAGES) - {"download"}),
        ({"mlnt.M": 3}, META | END),
        ({"mentor.tau": 0.06}, META - {"meta1"} | CONTROL | END),
        ({"evaluate.label_issue_threshold": 0.5}, END),
        ({"train.checkpoint_every": 2}, {"report"}),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_changed_parameter_touches_its_stages_and_what_follows(
    changes: dict[str, Any], expected: set[str], repository: Path
) -> None:
    change(repository, changes)
    status = dvc(repository, "status", "--json", "dvc.yaml")
    assert downstream(set(json.loads(status.stdout))) == expected


def test_a_changed_line_of_code_touches_the_stages_that_import_it(repository: Path) -> None:
    with (repository / "pipeline/figures.py").open("a", encoding="utf-8") as file:
        file.write("# changed\n")
    assert set(json.loads(dvc(repository, "status", "--json", "dvc.yaml").stdout)) == {"report"}


def test_an_experiment_and_the_way_back(repository: Path) -> None:
    before = (repository / "params.yaml").read_text(encoding="utf-8")
    there = dvc(repository, "exp", "run", "-S", "mlnt.M=3")
    assert there.returncode == 0, there.stderr
    assert set(ran(there)) == META | END
    after = (repository / "params.yaml").read_text(encoding="utf-8")
    differ = [(a, b) for a, b in zip(before.splitlines(), after.splitlines(), strict=True) if a != b]
    assert [(a.split()[:2], b.split()[:2]) for a, b in differ] == [(["M:", "2"], ["M:", "3"])]
    models = digests(repository, "models/meta1")
    back = dvc(repository, "exp", "run", "-S", "mlnt.M=2")
    assert back.returncode == 0, back.stderr
    assert ran(back) == []
    assert set(mentioned(back, "Stage '{}' is cached - skipping run")) == META | END
    assert digests(repository, "models/meta1") != models
    assert git(repository, "status", "--porcelain") == ""


def test_a_wrong_parameter_stops_the_run_before_anything_is_written(repository: Path) -> None:
    before = digests(repository, "dvc.lock", "models", "metrics", "data")
    change(repository, {"train.lr": 0})
    result = dvc(repository, "repro")
    assert result.returncode != 0
    assert "error: params.yaml: train.lr: found 0; " in result.stderr
    assert "Traceback" not in result.stderr
    assert ran(result) == ["pretrain"]
    after = digests(repository, "dvc.lock", "models", "metrics", "data")
    assert after.items() <= before.items()
    # DVC has removed that stage's outputs, and only them; they come back from its cache.
    assert {name.split("/")[1] for name in set(before) - set(after)} == {"pretrain"}
    change(repository, {"train.lr": TINY["train.lr"]})
    restored = dvc(repository, "repro")
    assert restored.returncode == 0, restored.stderr
    assert ran(restored) == []
    assert digests(repository, "dvc.lock", "models", "metrics", "data") == before
    assert git(repository, "status", "--porcelain") == ""


# Sweeps: two seeds of Figure 3, one epoch each


def sweep(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = (sys.executable, "-m", "pipeline", "sweep", "figure3", "--preset", "short", "--seeds", "2", *arguments)
    return run(folder, *command, timeout=600, DVC_SITE_CACHE_DIR=str(folder.parent / "site-cache"))


@pytest.fixture
def with_preset(repository: Path) -> Path:
    (repository / "presets/short.yaml").write_text("# One epoch\ntrain:\n  epochs: 1\n", encoding="utf-8")
    git(repository, "add", "--all")
    git(repository, "commit", "--quiet", "--message", "a preset")
    return repository


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
    change(with_preset, {"mlnt.M": 3})
    result = sweep(with_preset)
    assert result.returncode == 2
    assert "changes that are not committed (params.yaml)" in result.stderr
    assert "Traceback" not in result.stderr


def test_an_experiment_that_diverges_is_said_and_not_repeated(with_preset: Path) -> None:
    preset = with_preset / "presets/short.yaml"
    preset.write_text("# Diverges\ntrain:\n  epochs: 2\n  lr: 1.0e+30\n", encoding="utf-8")
    git(with_preset, "commit", "--quiet", "--all", "--message", "diverges")
    result = sweep(with_preset, "--jobs", "2")
    assert result.returncode == 0, result.stderr
    assert "0 of 2 finished, 2 diverged" in result.stderr
    again = sweep(with_preset)
    assert "2 diverged (not repeated with this code)" in again.stderr
    assert "0 to queue" in again.stderr


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
