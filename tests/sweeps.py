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


def sweep(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Two seeds of Figure 3."""
    command = (sys.executable, "-m", "pipeline", "sweep", "figure3", "--preset", "short", "--seeds", "2", *arguments)
    return run(folder, *command, timeout=600, DVC_SITE_CACHE_DIR=str(folder.parent / "site-cache"))
