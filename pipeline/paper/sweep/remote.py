"""The git repository that a sweep's workers push their results to."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from pipeline.base import files
from pipeline.base.errors import RunError, UserError
from pipeline.base.git import run_git
from pipeline.paper.history import git

PROBE = "refs/exps/probe"


def opened(wanted: str | None, commit: str) -> str:
    """The path or URL of the repository; without a wish the sweep's own, which is made here where it is not there.

    Raises:
        UserError: there is no such repository, or it takes no push.
    """
    if wanted is None:
        own = (files.SWEEP / "results.git").resolve()
        if not (own / "HEAD").exists():
            git("init", "--quiet", "--bare", "--initial-branch", "main", str(own))
        git("push", "--quiet", "--force", str(own), f"{commit}:refs/heads/main")
        return str(own)
    names = git("remote").split()
    url = git("remote", "get-url", wanted).strip() if wanted in names else wanted
    if Path(url).exists():
        url = str(Path(url).resolve())
    # Nothing is written: a job would find out after hours.
    if (done := run_git("push", "--dry-run", "--quiet", url, f"{commit}:{PROBE}")).returncode:
        raise UserError(
            f"--git-remote: found {wanted!r}, expected a git repository that can be pushed to: {_said(done)}"
        )
    return url


def fetch(remote: str) -> None:
    """Bring all experiments from there into this repository; what is here already stays as it is.

    Raises:
        RunError: the repository cannot be read.
    """
    done = run_git("fetch", "--no-write-fetch-head", "--no-tags", remote, "refs/exps/*:refs/exps/*")
    # Rejected: an experiment of that name is here and another one. Lock: another sweep is fetching it.
    if done.returncode and "rejected" not in done.stderr and "lock" not in done.stderr:
        raise RunError(f"{remote}: results could not be fetched: {_said(done)}")


def cache() -> Path:
    """DVC's cache.

    Raises:
        UserError: this is no DVC repository.
        RunError: the cache cannot be written.
    """
    done = subprocess.run([sys.executable, "-m", "dvc", "cache", "dir"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"dvc cache dir: {_said(done)}")
    folder = Path(done.stdout.strip()).resolve()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(os.urandom(1 << 20))  # a full disk has room for a name
    except OSError as error:
        raise RunError(
            f"{folder}: DVC's cache cannot be written: {error}; workers would lose what they compute"
        ) from None
    return folder


def _said(done: subprocess.CompletedProcess[str]) -> str:
    lines = [
        line for line in done.stderr.strip().splitlines() if line.startswith(("fatal", "error", "ERROR", "remote"))
    ]
    return (lines or done.stderr.strip().splitlines() or ["?"])[0]
