"""A sweep on a real SLURM of one node: a job that is signalled before its time limit, and one that is requeued."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from projects import environment, git
from slurm_node import CannotStartError, command, slurm, wait_for
from sweeps import with_short_preset


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[dict[str, str]]:
    running = slurm(tmp_path / "slurm")
    try:
        variables = running.__enter__()
    except CannotStartError as error:
        pytest.skip(f"NO SLURM HERE: {error}")
    try:
        yield variables
    finally:
        running.__exit__(None, None, None)


def test_a_job_goes_on_after_its_time_limit_and_after_a_preemption(tmp_path: Path, cluster: dict[str, str]) -> None:
    folder = with_short_preset(tmp_path / "repository")
    (folder / "presets/short.yaml").write_text("# Long enough\ntrain:\n  epochs: 300\n", encoding="utf-8")
    git(folder, "commit", "--quiet", "--all", "--message", "longer")
    arguments = ["sweep", "figure3", "--preset", "short", "--seeds", "1"]
    on_slurm = ["--executor", "slurm", "--gpus-per-job", "0", "--time", "30", "--slurm", "comment=a test"]
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline", *arguments, *on_slurm],
        cwd=folder,
        env=environment(DVC_SITE_CACHE_DIR=str(tmp_path / "site-cache"), TMPDIR=str(tmp_path), **cluster),
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def log() -> str:
        return "".join(path.read_text(encoding="utf-8") for path in folder.glob(".dvc/tmp/sweep/jobs/figure3-r*/*.out"))

    def job() -> str:
        return command("squeue", "--noheader", "--format=%A", **cluster).strip()

    def wait(what: str, there: Callable[[], bool]) -> None:
        wait_for(what, lambda: there() or process.poll() is not None, 400)
        assert process.poll() is None, f"{what}: the sweep has ended; {log()}"

    wait("meta1 has a checkpoint", lambda: any(folder.glob("checkpoints/meta1/*/state.safetensors")))
    command("scancel", job(), "--signal", "USR2", **cluster)  # what SLURM sends 90 s before the limit
    wait("it goes on", lambda: log().count("meta1: going on after step") == 1)
    command("scontrol", "requeue", job(), **cluster)  # what SLURM does where it preempts
    said, errors = process.communicate(timeout=600)
    assert process.returncode == 0, said + errors + log()
    assert "sweep figure3: 1 of 1 finished" in errors
    assert " failed" not in errors
    assert log().count("meta1: stopped before step") == log().count("meta1: going on after step") == 2
    assert git(folder, "for-each-ref", "refs/exps/*/*/figure3-r-0.4-seed0-*")
    assert not list(tmp_path.glob("mlnt-*"))
