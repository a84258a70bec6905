"""The container's entry point, started without a container."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOBODY = {"user": 65534} if os.getuid() == 0 else {}  # root may write everywhere
PLACES = "import huggingface_hub.constants as c, torch; print(c.HF_HUB_CACHE, torch.hub.get_dir(), sep='\\n')"


@pytest.fixture
def workspace() -> Iterator[Path]:
    """A folder that any user may enter, which pytest's own is not; with a home."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        shutil.copy(ROOT / "container" / "entrypoint.sh", folder)
        for place in ("home", "tmp"):
            (folder / place).mkdir()
            (folder / place).chmod(0o777)
        yield folder


def variables(workspace: Path, **given: str) -> dict[str, str]:
    """What a command sees that the entry point starts."""
    system = {"PATH": os.environ["PATH"], "HOME": str(workspace / "home"), "TMPDIR": str(workspace / "tmp")}
    command = ["sh", "entrypoint.sh", "env"]
    done = subprocess.run(
        command, cwd=workspace, env=system | given, capture_output=True, text=True, check=True, **NOBODY
    )
    return dict(line.split("=", 1) for line in done.stdout.splitlines())


def test_a_home_that_can_be_written_is_kept(workspace: Path) -> None:
    found = variables(workspace)
    assert found["HOME"] == str(workspace / "home")
    assert "XDG_CACHE_HOME" not in found


def test_another_home_has_the_cache_of_the_old_one_where_that_can_be_written(workspace: Path) -> None:
    """A volume for pretrained weights under a read-only root."""
    cache = workspace / "home" / ".cache"
    cache.mkdir()
    cache.chmod(0o777)
    (workspace / "home").chmod(0o555)
    found = variables(workspace)
    assert found["HOME"].startswith(str(workspace / "tmp"))
    assert found["XDG_CACHE_HOME"] == str(cache)
    done = subprocess.run([sys.executable, "-c", PLACES], env=found, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [f"{cache}/huggingface/hub", f"{cache}/torch/hub"]
    elsewhere = variables(workspace, XDG_CACHE_HOME="/elsewhere", HF_HOME="/weights")
    assert (elsewhere["XDG_CACHE_HOME"], elsewhere["HF_HOME"]) == ("/elsewhere", "/weights")


def test_a_cache_that_cannot_be_written_is_not_used(workspace: Path) -> None:
    (workspace / "home" / ".cache").mkdir(mode=0o555)
    (workspace / "home").chmod(0o555)
    found = variables(workspace)
    assert found["HOME"].startswith(str(workspace / "tmp"))
    assert "XDG_CACHE_HOME" not in found
