"""`mlnt doctor`: what works on this machine and in this project, what is missing, and what to do about it."""

from __future__ import annotations

import configparser
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import psutil
from rich.console import Console

from pipeline.base import files, locks
from pipeline.base.errors import UserError
from pipeline.base.files import GIB
from pipeline.base.git import run_git
from pipeline.params.load import load
from pipeline.params.schema import Data, Run, cores
from pipeline.stages.look import require_start
from pipeline.workspace import outlook

ENOUGH_DISK_GIB = 2
ENOUGH_SHARED_GIB = 1


class Finding(NamedTuple):
    """`ok`, `note` (works, but look) or `fail` (will not run), what was looked at, and what was found."""

    status: str
    subject: str
    text: str


def examine(path: Path) -> bool:
    """Print every finding; return whether the pipeline can run."""
    console = Console(highlight=False)
    colors = {"ok": "green", "note": "yellow", "fail": "red"}
    failed = False
    for look in (_python, _packages, _torch, _dvc, _git, _hardware, _locks, _params, _time):
        for finding in _safely(look, path):
            failed |= finding.status == "fail"
            mark = f"[{colors[finding.status]}]{finding.status:4}[/]"
            console.print(f"{mark}  {finding.subject:8}  ", end="")
            console.print(finding.text, markup=False, soft_wrap=True)
    console.print("It will not run before what failed is mended." if failed else "Ready: dvc repro")
    return not failed


def _safely(look: Callable[[Path], Iterator[Finding]], path: Path) -> list[Finding]:
    """One broken part must not hide what the others would say."""
    try:
        return list(look(path))
    except Exception as error:
        return [Finding("fail", look.__name__.strip("_"), f"{type(error).__name__}: {error}")]


def _python(_: Path) -> Iterator[Finding]:
    good = sys.version_info >= (3, 11)
    where = f"{platform.python_version()} at {sys.executable}"
    yield Finding("ok" if good else "fail", "python", where if good else f"{where}; expected 3.11 or newer")
    on_path = shutil.which("python")
    if on_path is None or Path(on_path).parent.resolve() != Path(sys.executable).parent.resolve():
        yield Finding(
            "fail",
            "python",
            f"`python` on PATH is {on_path}, which dvc repro would run instead of {sys.executable}; "
            "activate the environment: source .venv/bin/activate",
        )


def _packages(path: Path) -> Iterator[Finding]:
    """Versions against the lock file, if it is at hand."""
    lock = path.parent / "requirements.lock"
    names = ("torch", "torchvision", "timm", "h5py", "numpy", "dvc")
    yield Finding("ok", "packages", ", ".join(f"{name} {metadata.version(name)}" for name in names))
    if lock.exists():
        text = lock.read_text(encoding="utf-8")
        other = [n for n in names if f"\n{n}=={metadata.version(n)}" not in text]
        if other:
            yield Finding(
                "note", "packages", f"not the locked version of {', '.join(other)}; `make install` installs it"
            )


def _torch(_: Path) -> Iterator[Finding]:
    import torch

    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            memory = torch.cuda.get_device_properties(i).total_memory / GIB
            yield Finding(
                "ok",
                "cuda",
                f"GPU {i}: {torch.cuda.get_device_name(i)}, {memory:.0f} GiB; compute.device: auto takes it",
            )
    elif shutil.which("nvidia-smi"):
        yield Finding(
            "note",
            "cuda",
            f"nvidia-smi is there but torch (CUDA {torch.version.cuda}) sees no GPU: the driver may be too old",
        )
    else:
        in_container = Path("/.dockerenv").exists() or Path("/run/.containerenv").exists()
        yield Finding(
            "note",
            "cuda",
            f"no NVIDIA GPU{' here; docker run --gpus all lends one' if in_container else ''}: the CPU is used; "
            "fine for digits, slow for the CIFAR-10 recipe",
        )


def _dvc(path: Path) -> Iterator[Finding]:
    if shutil.which("dvc") is None:
        yield Finding("fail", "dvc", "no dvc on PATH; activate the environment: source .venv/bin/activate")
    elif not (path.parent / ".dvc").is_dir():
        yield Finding(
            "fail", "dvc", f"{path.parent.resolve()} is no DVC repository; run `dvc init` (without git: --no-scm)"
        )
    else:
        yield Finding("ok", "dvc", f"{metadata.version('dvc')}, repository at {path.parent.resolve()}")


def _git(path: Path) -> Iterator[Finding]:
    if shutil.which("git") is None:
        yield Finding("note", "git", "not installed; `dvc repro` runs without, `dvc exp` does not")
        return
    here = ("-C", str(path.parent))
    head = run_git(*here, "rev-parse", "--short", "HEAD")
    if head.returncode != 0:
        yield Finding("note", "git", "no commit here; `dvc repro` runs, `dvc exp run` needs one")
        return
    count = len(run_git(*here, "status", "--porcelain").stdout.splitlines())
    yield Finding(
        "ok", "git", f"commit {head.stdout.strip()}" + (f", {count} files changed since" if count else ", clean")
    )


def _hardware(path: Path) -> Iterator[Finding]:
    memory = psutil.virtual_memory()
    yield Finding(
        "ok", "machine", f"{cores()} cores, {memory.available / GIB:.1f} of {memory.total / GIB:.1f} GiB memory free"
    )
    free = shutil.disk_usage(path.parent.resolve()).free / GIB
    little = free < ENOUGH_DISK_GIB
    yield Finding("note" if little else "ok", "disk", f"{free:.0f} GiB free{': little' if little else ''}")
    if not os.access(path.parent.resolve(), os.W_OK):
        yield Finding("fail", "disk", f"{path.parent.resolve()} is not writable")


def _locks(path: Path) -> Iterator[Finding]:
    """Of the project, for DVC, and of the checkpoints, for the stages that train."""
    project, checkpoints = path.parent.resolve(), files.checkpoints().absolute()
    if not os.access(project, os.W_OK):
        return  # which is said already
    missing = {}
    for folder in (project, checkpoints):
        try:
            missing[folder] = locks.are_missing(folder)
        except OSError as error:
            yield Finding("fail", "locks", f"{folder}: no file can be made there ({error.strerror})")
            return
    if not any(missing.values()):
        yield Finding("ok", "locks", f"files can be locked in {project} and {checkpoints}")
    if missing[project]:
        without = _has_hardlink_lock(path.parent / ".dvc")
        remedy = "run `dvc config --local core.hardlink_lock true`, or move the project to another disk"
        yield Finding(
            "note" if without else "fail",
            "locks",
            f"{project}: its file system has no locks (flock: {missing[project]}); "
            + (
                "DVC goes without; run no two stages there by hand at a time"
                if without
                else f"DVC needs them: {remedy}"
            ),
        )
    if missing[checkpoints]:
        yield Finding(
            "fail",
            "locks",
            f"{checkpoints}: its file system has no locks (flock: {missing[checkpoints]}), which checkpoints need: set "
            "MLNT_CHECKPOINT_DIR to a folder on another disk",
        )


def _has_hardlink_lock(dvc: Path) -> bool:
    """Whether DVC locks by hard links, which every file system has."""
    config = configparser.ConfigParser(interpolation=None)
    config.read([dvc / "config", dvc / "config.local"], encoding="utf-8")
    return config.get("core", "hardlink_lock", fallback="").lower() in ("true", "yes", "on", "1")


def _params(path: Path) -> Iterator[Finding]:
    try:
        checked = load(path)
    except UserError as error:
        for line in str(error).splitlines():
            yield Finding("fail", "params", line)
        return
    compute = checked.compute
    yield Finding(
        "ok",
        "params",
        f"{path}: {checked.data.source}, {checked.noise.kind} noise, {checked.model.name}, seed {checked.seed}",
    )
    if compute.threads is not None and compute.threads > (os.cpu_count() or 1):
        yield Finding(
            "note", "params", f"compute.threads is {compute.threads}, more than the {os.cpu_count()} cores here"
        )
    for key, name in (
        ("data.root", checked.data.root if checked.data.has_image_files else None),
        *checked.noise.files().items(),
        ("model.weights", checked.model.weights),
    ):
        if name is not None:
            there = files.resolve(name).exists()
            yield Finding(
                "ok" if there else "fail", "data", f"{key}: {name}" + ("" if there else ": no such file or folder")
            )
    if checked.model.weights is not None and files.resolve(checked.model.weights).exists():
        try:
            require_start(checked)
        except UserError as error:
            yield Finding("fail", "params", str(error))
    if checked.data.has_image_files and not (checked.data.root or checked.data.url):
        yield Finding("fail", "data", f"data.root is null: set it to your data for data.source: {checked.data.source}")
    if checked.data.storage == "files":
        yield from _files(checked.data, checked.run)
    done = [p for p in (files.DATASET, files.LABELS, files.FEATURES, files.REPORT) if p.exists()]
    yield Finding("ok", "results", f"there already: {', '.join(map(str, done))}" if done else "none yet")


def _time(path: Path) -> Iterator[Finding]:
    """Of the whole run, and what it will do."""
    try:
        checked = load(path)
    except UserError:
        return  # said already
    try:
        yield Finding("ok", "time", f"{outlook.plan(checked)}: {outlook.time(checked)}")
    except UserError as error:
        yield Finding("fail", "time", f"a run would end with: {error}")


def _files(data: Data, run: Run) -> Iterator[Finding]:
    """`data.storage: files`: processes read the images and hand batches over in shared memory."""
    if not data.has_image_files:
        yield Finding("fail", "data", f"data.storage: files wants data.source to be imagefolder, not {data.source}")
    shared = Path("/dev/shm")  # noqa: S108
    if run.num_workers and shared.is_dir() and (free := shutil.disk_usage(shared).free / GIB) < ENOUGH_SHARED_GIB:
        yield Finding(
            "note",
            "memory",
            f"{free:.2f} GiB of shared memory free for {run.num_workers} processes that read images; may be too "
            "little (docker run --shm-size=2g)",
        )
