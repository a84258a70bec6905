"""git, by its command."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path


def run_git(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run git in a folder, by default this one; its exit status is the caller's to look at.

    Raises:
        FileNotFoundError: git is not installed.
    """
    english = {**os.environ, "LC_ALL": "C"}  # callers look for words in what it says
    return subprocess.run(["git", *arguments], cwd=cwd, env=english, capture_output=True, text=True, check=False)  # noqa: S603, S607
