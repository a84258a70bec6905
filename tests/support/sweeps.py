"""A copy of this project with a preset of one epoch, and sweeps in it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from projects import TINY, copy_project, git, run


def with_short_preset(folder: Path) -> Path:
    copy_project(folder, {**TINY, "train.epochs": 1})
    (folder / "presets/short.yaml").write_text("# One epoch\ntrain:\n  epochs: 1\n", encoding="utf-8")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "a preset")
    return folder


FIGURE3 = (sys.executable, "-m", "pipeline", "sweep", "figure3", "--preset", "short")


def variables(folder: Path) -> dict[str, str]:
    """Clones lie beside the repository."""
    scratch = folder.parent / "scratch"
    scratch.mkdir(exist_ok=True)
    return {"DVC_SITE_CACHE_DIR": str(folder.parent / "site-cache"), "TMPDIR": str(scratch)}


def sweep(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Two seeds of Figure 3."""
    return run(folder, *FIGURE3, "--seeds", "2", *arguments, timeout=600, **variables(folder))
