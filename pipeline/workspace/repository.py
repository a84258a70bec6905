"""A workspace as a git repository with one commit, where there is none and git is installed."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from pipeline.base.git import run_git


def has_git() -> bool:
    return shutil.which("git") is not None


def commit(folder: Path, names: Iterable[str]) -> str:
    """Make the repository and commit these files; returns what was done, or why not and what to do."""
    if not has_git():
        return "git is not installed: `dvc repro` runs without, `dvc exp` does not"
    if run_git("rev-parse", "--git-dir", cwd=folder).returncode == 0:
        return "it lies in a git repository: commit its files there before `dvc exp run`"
    for arguments in (
        ("init", "--quiet", "--initial-branch", "main"),
        ("add", "--", *names),
        ("commit", "--quiet", "--message", "mlnt init"),
    ):
        done = run_git(*arguments, cwd=folder)
        if done.returncode != 0:
            why = done.stderr.strip().splitlines()
            return (
                f"`git {arguments[0]}` failed ({why[-1] if why else done.returncode}): `dvc repro` runs; before "
                "`dvc exp run`, mend that and commit: git add --all && git commit -m init"
            )
    return "a new repository with one commit"
