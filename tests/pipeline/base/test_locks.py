"""File systems without locks: what goes without them, what does not, and what the doctor says."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from projects import make_params, run_stage, write_params, write_picture
from typer.testing import CliRunner

from pipeline.base import files, locks
from pipeline.base.errors import UserError
from pipeline.cli import app
from pipeline.sources.places import archive

MISSING = [errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK]
Deny = Callable[[Path, int], None]


@pytest.fixture
def deny(monkeypatch: pytest.MonkeyPatch) -> Deny:
    """Take the locks of everything below a folder away."""
    real = fcntl.flock

    def take(folder: Path, number: int = errno.ENOSYS) -> None:
        def flock(handle: Any, operation: int) -> None:
            at = Path(f"/proc/self/fd/{handle if isinstance(handle, int) else handle.fileno()}").readlink()
            if at.is_relative_to(folder.resolve()):
                raise OSError(number, os.strerror(number))
            real(handle, operation)

        monkeypatch.setattr(fcntl, "flock", flock)

    return take


@pytest.mark.parametrize("number", MISSING)
def test_a_run_goes_without_locks_but_for_its_checkpoints(
    number: int, deny: Deny, project: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    deny(project, number)
    params = make_params()
    for stage in ("download", "noise"):
        run_stage(stage, params)
    with pytest.raises(UserError) as caught:
        run_stage("pretrain", params)
    assert all(text in str(caught.value) for text in ("checkpoints/pretrain", os.strerror(number), "another disk"))
    assert not Path("models").exists()
    monkeypatch.setenv("MLNT_CHECKPOINT_DIR", str(tmp_path / "elsewhere"))
    for stage in ("pretrain", "features", "meta1"):
        run_stage(stage, params)
    assert not list(project.rglob("*.tmp"))


def test_other_errors_are_no_missing_locks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def flock(*_: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", flock)
    with (tmp_path / "a").open("w") as file, pytest.raises(OSError, match="Input/output error") as caught:
        locks.locked(file)
    assert not isinstance(caught.value, locks.NoLocksError)


def test_what_may_belong_to_a_living_process_stays_where_nobody_can_tell(deny: Deny, tmp_path: Path) -> None:
    left = tmp_path / ".a.txt.0123456789abcdef.tmp"
    left.touch()
    deny(tmp_path, errno.ENOSYS)
    files.write_text(tmp_path / "a.txt", "new")
    assert left.exists()
    assert (tmp_path / "a.txt").read_text() == "new"


def test_an_archive_is_unpacked_without_locks_beside_another_process(
    deny: Deny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        packed.writestr("cat/1.png", b"1")
    raw = tmp_path / "raw"
    deny(raw, errno.ENOLCK)
    extract = archive._extract

    def slow(source: Path, folder: Path, limit: int) -> None:
        monkeypatch.setattr(archive, "_extract", extract)
        assert archive.unpack(tmp_path / "a.zip", raw, 1000).is_dir()  # the other one is faster
        extract(source, folder, limit)

    monkeypatch.setattr(archive, "_extract", slow)
    target = archive.unpack(tmp_path / "a.zip", raw, 1000)
    assert (target / "cat/1.png").read_bytes() == b"1"
    assert list(raw.iterdir()) == [target]


HARDLINKS = "[core]\n    hardlink_lock = true\n"


@pytest.mark.parametrize(
    ("below", "config", "status", "expected"),
    [
        ("", "", 2, ["dvc config --local core.hardlink_lock true", "MLNT_CHECKPOINT_DIR"]),
        ("", HARDLINKS, 2, ["no two stages", "MLNT_CHECKPOINT_DIR"]),
        ("checkpoints", "", 2, ["MLNT_CHECKPOINT_DIR"]),
        ("elsewhere", "", 0, ["files can be locked"]),
    ],
)
def test_the_doctor_tries_the_locks(
    below: str,
    config: str,
    status: int,
    expected: list[str],
    deny: Deny,
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_params(project)
    (project / ".dvc").mkdir()
    (project / ".dvc/config").write_text(config)
    (project / "checkpoints").mkdir()
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    deny(project / below, errno.ENOSYS)
    result = CliRunner().invoke(app, ["doctor"], env={"COLUMNS": "300"})
    said = "\n".join(line for line in result.output.splitlines() if "  locks " in line)
    assert result.exit_code == status, result.output
    assert all(text in said for text in expected), said
    assert not list(project.rglob(".lock*"))


SHIM = "#include <errno.h>\nint flock(int fd, int op) { errno = ENOTSUP; return -1; }\n"


@pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc")
def test_libraries_do_without_locks_too(tmp_path: Path) -> None:
    """HDF5 locks what it opens."""
    (tmp_path / "shim.c").write_text(SHIM)
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", tmp_path / "shim.so", tmp_path / "shim.c"], check=True)  # noqa: S607
    for number in range(12):
        write_picture(tmp_path / "images" / "ab"[number % 2] / f"{number}.png", number, size=(8, 8))
    write_params(tmp_path, data__source="imagefolder", data__root="images")
    for command in ("download", "inject-noise"):
        result = subprocess.run(
            [sys.executable, "-m", "pipeline", command],
            cwd=tmp_path,
            env={
                **os.environ,
                "LD_PRELOAD": str(tmp_path / "shim.so"),
                "PYTHONPATH": str(Path(files.__file__).parents[2]),
            },
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stderr
