"""A disk that is full: every stage on a small file system of its own that has too little room for what it writes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from projects import OUTPUTS, copy_outputs, digests, run_pipeline, run_stage, write_params, written_by
from runs import Run

COMMANDS = {
    "download": ["download"],
    "noise": ["inject-noise"],
    "pretrain": ["pretrain"],
    "features": ["extract-features"],
    "meta2": ["meta-train", "--iteration", "2"],
    "evaluate": ["evaluate"],
    "report": ["report"],
}


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 MiB in memory."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)],  # noqa: S607
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"a file system cannot be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)  # noqa: S607


def fill(disk: Path, left: int) -> Path:
    """Take all space but this many bytes."""
    path = disk / "filler"
    block = os.statvfs(disk).f_frsize
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, (os.statvfs(disk).f_bavail - left // block) * block)
    return path


@pytest.mark.parametrize(("stage", "processes"), [*((stage, 1) for stage in COMMANDS), ("meta2", 2)])
def test_one_message_and_the_same_bits_once_there_is_room(
    stage: str, processes: int, finished: Run, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = disk / "project"
    project.mkdir()
    copy_outputs(finished.folder, project)
    write_params(project, run__processes=processes)
    for name in written_by(stage):
        path = project / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    before = digests(project, *OUTPUTS)
    size = sum((finished.folder / name).stat().st_size for name in digests(finished.folder, *written_by(stage)))
    filler = fill(disk, size // 2)
    stopped = run_pipeline(project, *COMMANDS[stage])
    assert stopped.returncode == 1, stopped.stderr
    said = stopped.stderr.splitlines()[-1]
    assert re.fullmatch(r"error: \S+: could not be written: .*No space left on device; it is as it was before", said)
    assert "Traceback" not in stopped.stdout + stopped.stderr
    there = digests(project, *OUTPUTS)
    grown = f"plots/{stage}.csv"  # while the stage was training
    if there.pop(grown, None):
        assert (finished.folder / grown).read_text().startswith((project / grown).read_text())
    assert before.items() <= there.items() <= digests(finished.folder, *OUTPUTS).items()
    filler.unlink()
    monkeypatch.chdir(project)
    run_stage(stage, finished.params)
    monkeypatch.undo()
    assert digests(project, *OUTPUTS) == digests(finished.folder, *OUTPUTS)
