"""A stage that reads files with processes of its own: stopped in every way, it leaves none of them, and goes on."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from projects import digests, environment, make_params, run_pipeline, run_stage, write_params, write_picture

PATIENCE_S = 600
LAST_STEP = re.compile(r"stopped before step (\d+) of 400")
OUR_CODE = re.compile(r'File ".*/(?:pipeline|mlnt)/[\w/]+\.py"')


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project whose pretraining takes some seconds, with two processes that read."""
    for split, count in (("train", 40), ("val", 4)):
        for i in range(count):
            write_picture(tmp_path / "own" / split / ("cat" if i % 2 else "dog") / f"{i}.png", i, (8, 8))
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for stage in ("download", "noise"):
        run_stage(stage, make_params(**changes(tmp_path)))
    write_params(folder, **changes(tmp_path))
    return folder


def changes(root: Path) -> dict[str, Any]:
    return {
        "data__source": "imagefolder",
        "data__root": str(root / "own"),
        "data__storage": "files",
        "run__workers": 2,
        "data__limit": None,
        "noise__kind": "none",
        "train__epochs": 200,
        "train__batch_size": 20,
        "run__checkpoint_every": "20 steps",
    }


def start(log: Path) -> subprocess.Popen[bytes]:
    """In a group of its own, as under a terminal."""
    with log.open("wb") as file:
        command = [sys.executable, "-m", "pipeline", "pretrain"]
        return subprocess.Popen(command, env=environment(), stderr=file, start_new_session=True)


def wait_for_a_checkpoint(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """And all processes that the stage has started by then."""
    deadline = time.monotonic() + PATIENCE_S
    before = {path: path.stat().st_mtime_ns for path in Path().glob("checkpoints/*/*/state.*")}
    while {path: path.stat().st_mtime_ns for path in Path().glob("checkpoints/*/*/state.*")} == before:
        assert process.poll() is None, "the run ended before it could be stopped"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return psutil.Process(process.pid).children(recursive=True)


def stop(number: signal.Signals, to_group: bool, log: Path) -> int:
    """Stop a stage that is in the middle of its training; returns its status, once none of its processes is left."""
    process = start(log)
    try:
        started = wait_for_a_checkpoint(process)
        assert len(started) >= 3  # the server that forks, two that read
        (os.killpg if to_group else os.kill)(process.pid, number)
        status = process.wait(PATIENCE_S)
        _, alive = psutil.wait_procs(started, timeout=PATIENCE_S)
        assert alive == []
    finally:
        process.kill()
        process.wait()
    text = log.read_text(encoding="utf-8")
    if number == signal.SIGKILL:  # whose peers Python's own threads may complain of, in the processes that read
        assert not OUR_CODE.search(text), text
    else:
        assert "Traceback" not in text, text
        assert LAST_STEP.search(text), text
    return status


@pytest.mark.parametrize(
    ("number", "to_group", "status"),
    [(signal.SIGTERM, True, 143), (signal.SIGTERM, False, 143), (signal.SIGKILL, False, -9)],
)
def test_a_stopped_stage_leaves_no_process(
    number: signal.Signals, to_group: bool, status: int, prepared: Path, tmp_path: Path
) -> None:
    assert stop(number, to_group, tmp_path / "log") == status


def test_a_file_that_vanishes_in_the_middle_is_one_message(prepared: Path, tmp_path: Path) -> None:
    process = start(tmp_path / "log")
    try:
        wait_for_a_checkpoint(process)
        (tmp_path / "own/train/cat/7.png").unlink()
        assert process.wait(PATIENCE_S) == 2
    finally:
        process.kill()
        process.wait()
    said = (tmp_path / "log").read_text(encoding="utf-8").splitlines()
    assert [line for line in said if line.startswith("error: ")] == said[-1:], said
    assert "own/train/cat/7.png has changed" in said[-1]
    assert said[-1].startswith("error: data.root: ")


def test_a_stage_that_was_interrupted_ends_with_the_bits_of_one_that_was_not(prepared: Path, tmp_path: Path) -> None:
    assert stop(signal.SIGINT, True, tmp_path / "log") == 130
    done = run_pipeline(prepared, "pretrain")
    assert done.returncode == 0, done.stderr
    assert "going on after step" in done.stderr
    found = digests(prepared, "models", "plots")
    run_stage("pretrain", make_params(**{**changes(tmp_path), "run__workers": 0}))
    assert digests(prepared, "models", "plots") == found
