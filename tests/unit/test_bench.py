"""The scripts of bench/ run for minutes; that they start is tested here, and that the one that changes classes runs."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
from projects import run_stage, write_params

from pipeline.params.load import load

BENCH = Path(__file__).parents[2] / "bench"


SCRIPTS = sorted(path.stem for path in BENCH.glob("*.py") if "ArgumentParser(" in path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("script", SCRIPTS)
def test_script_starts(script: str) -> None:
    command = [sys.executable, BENCH / f"{script}.py", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "usage:" in done.stdout


def test_an_epoch_is_profiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_params(tmp_path)
    for stage in ("download", "noise", "pretrain", "features"):
        run_stage(stage, load(Path("params.yaml")))
    command = [
        sys.executable,
        BENCH / "profile_epoch.py",
        "--set",
        "train.epochs=1",
        "--set",
        "train.lr_drop_epochs=[]",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    seconds = {
        row.split("│")[1].strip(): float(row.split("│")[2])
        for row in done.stdout.splitlines()
        if "%" in row and "│" in row
    }
    assert 0 < seconds["step"] <= seconds["all epochs"] <= seconds["stage without start-up"]


def test_what_runs_on_a_gpu_runs_in_miniature_on_a_cpu(tmp_path: Path) -> None:
    command = [
        sys.executable,
        BENCH / "gpu.py",
        "--miniature",
        "--device",
        "cpu",
        "--minutes",
        "0.1",
        "--out",
        tmp_path,
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    with (tmp_path / "gpu.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["part"] for row in rows} == {"machine", "equal", "speed", "scaling", "training"}
    assert [row["result"] for row in rows if row["case"].endswith("to the CPU")] == ["equal"] * 9
