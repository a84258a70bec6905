"""Experiments of a sweep that diverge, or cannot run."""

from __future__ import annotations

from pathlib import Path

import pytest
from projects import git
from sweeps import sweep, with_short_preset


@pytest.fixture
def with_preset(tmp_path: Path) -> Path:
    return with_short_preset(tmp_path / "repository")


def test_an_experiment_that_diverges_is_said_and_not_repeated(with_preset: Path) -> None:
    preset = with_preset / "presets/short.yaml"
    preset.write_text("# Diverges\ntrain:\n  epochs: 2\n  lr: 1.0e+30\n", encoding="utf-8")
    git(with_preset, "commit", "--quiet", "--all", "--message", "diverges")
    result = sweep(with_preset, "--seeds", "1")
    assert result.returncode == 0, result.stderr
    assert "0 of 1 finished, 1 diverged" in result.stderr
    again = sweep(with_preset, "--seeds", "1")
    assert "1 diverged (not repeated with this code)" in again.stderr
    assert "0 to run" in again.stderr


def before_pretrain(folder: Path, script: str) -> None:
    """Let a shell script decide whether the stage may run."""
    (folder / "may_run.sh").write_text(script, encoding="utf-8")
    path = folder / "dvc.yaml"
    command = "python -m pipeline pretrain"
    text = path.read_text(encoding="utf-8").replace(command, f"sh may_run.sh && {command}")
    assert "may_run.sh" in text
    path.write_text(text, encoding="utf-8")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "a condition")


def test_an_experiment_that_cannot_run_is_given_up_with_its_reason(with_preset: Path) -> None:
    before_pretrain(with_preset, "echo error: no such luck; exit 2")
    result = sweep(with_preset, "--seeds", "1")
    assert result.returncode == 1
    assert sum("seed0" in line and "failed: error: no such luck" in line for line in result.stderr.splitlines()) == 2
    assert "1 failed: error: no such luck" in result.stderr
    assert "error: 1 experiments are missing" in result.stderr
    assert "Traceback" not in result.stderr
