"""Stage look: which files a run comes from, and whether one of them is another one than before."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest
from projects import make_params, write_picture

from pipeline import files
from pipeline.errors import UserError
from pipeline.sources import seen
from pipeline.stages import look


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two pictures, and an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for i in range(2):
        write_picture(tmp_path / f"images/{i}.bmp", i)
    return tmp_path / "images"


@pytest.fixture
def nowhere_at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container whose user number nobody has."""

    def unknown(number: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {number}")

    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)


def test_another_file_of_the_same_size_and_time_is_seen(folder: Path) -> None:
    """As after `cp -p`, or from an archive with fixed times."""
    before = seen.look(folder)
    about = (folder / "1.bmp").stat()
    write_picture(folder / "1.bmp", 2)
    os.utime(folder / "1.bmp", ns=(about.st_atime_ns, about.st_mtime_ns))
    after = seen.look(folder)
    assert (folder / "1.bmp").stat().st_size == about.st_size
    assert after[0] == before[0]
    assert after[1].sha256 == files.file_digest(folder / "1.bmp") != before[1].sha256


@pytest.mark.usefixtures("folder", "nowhere_at_home")
def test_without_a_home_nothing_is_remembered(folder: Path) -> None:
    assert [each.name for each in seen.look(folder)] == ["0.bmp", "1.bmp"]


@pytest.mark.usefixtures("nowhere_at_home", "project")
@pytest.mark.parametrize("name", ["~/images", "~nosuchperson/images"])
def test_a_home_that_nobody_has_is_named(name: str) -> None:
    with pytest.raises(UserError, match=rf"^{name}: "):
        look.run(make_params(data__source="imagefolder", data__root=name))
