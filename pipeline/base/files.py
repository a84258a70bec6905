"""Where files lie, and how they are written: beside their place, then renamed into it."""

from __future__ import annotations

import csv
import glob
import hashlib
import itertools
import json
import math
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import numpy as np

from pipeline.base import locks
from pipeline.base.errors import RunError, UserError, damaged

DATASET = Path("data/dataset.h5")
LABELS = Path("data/labels.h5")
EMBEDDINGS = Path("data/embeddings.h5")
FEATURES = Path("data/features.h5")
MODELS = Path("models")
METRICS = Path("metrics")
PLOTS = Path("plots")
REPORTS = Path("reports")
EVALUATION = METRICS / "evaluate.json"
NOISE = METRICS / "noise.json"
NOISE_MATRIX = REPORTS / "noise_matrix.csv"
NOISE_ESTIMATED = REPORTS / "noise_estimated.csv"
CONFUSIONS = REPORTS / "confusions.csv"
LABEL_ISSUES = REPORTS / "label_issues.csv"
REPORT = REPORTS / "index.html"
REVIEW = REPORTS / "review.html"
TIMINGS = Path("timings")
RECORDS = Path("records")
EXPERIMENTS = (".dvc", "tmp", "exps")
SWEEP = Path(".dvc/tmp/sweep")

_CRLF = "\r\n"
GIB = 1 << 30
MIB = 1 << 20


def checkpoints() -> Path:
    """The folder of all checkpoints."""
    return Path(os.environ.get("MLNT_CHECKPOINT_DIR") or "checkpoints")


def project() -> Path:
    """The folder of the project: this one, or, in an experiment's temporary folder, the one that it was started in.

    A person's own files, and what was fetched and unpacked, lie there; an experiment's copy has what git knows alone.
    A sweep's workers, whose clones lie anywhere, are told by `$MLNT_PROJECT_DIR`.
    """
    if told := os.environ.get("MLNT_PROJECT_DIR"):
        return Path(told)
    here = Path.cwd()
    parts = here.parts
    for at in range(len(parts) - len(EXPERIMENTS)):
        if parts[at : at + len(EXPERIMENTS)] == EXPERIMENTS:
            return Path(*parts[:at])
    return here


def resolve(name: str) -> Path:
    """The file or folder that a parameter names: a relative path starts at the project's folder, wherever a stage
    runs. In an experiment's copy, a file that is there is the copy's, and so is a folder with all that the project's
    has: git knows them.

    Raises:
        UserError: `expanded` fails.
    """
    path, home = expanded(name), project()
    if path.is_absolute() or home == Path.cwd():
        return path
    if os.path.isdir(path):  # noqa: PTH112 (pathlib raises where nobody may look)
        return holding(path, _below(home / path))
    return path if os.path.exists(path) else home / path  # noqa: PTH110


def holding(folder: Path, names: Iterable[str]) -> Path:
    """The folder, or the project's where this is one in an experiment's copy that lacks some of these files: those that
    git does not know."""
    home = project()
    if folder.is_absolute() or home == Path.cwd():
        return folder
    return folder if all(os.path.exists(folder / name) for name in names) else home / folder  # noqa: PTH110


def _below(root: Path) -> Iterator[str]:
    """Everything in a folder. Links are not followed."""
    for folder, folders, names in os.walk(root):
        yield from (os.path.relpath(os.path.join(folder, name), root) for name in (*folders, *names))  # noqa: PTH118


def expanded(name: str | Path) -> Path:
    """A path with the folder that `~` or `~NAME` at its beginning stands for.

    Raises:
        UserError: nobody knows that folder.
    """
    try:
        return Path(name).expanduser()
    except RuntimeError:
        raise UserError(f"{name}: nobody knows what {Path(name).parts[0]} stands for; write the whole path") from None


def raw() -> Path:
    """The folder for archives that were fetched, and for what archives unpack to."""
    return project() / "data" / "raw"


@contextmanager
def replacing(path: Path, synced: bool = True) -> Iterator[Path]:
    """Yield a temporary file beside `path`: it replaces `path` when the block ends well, and is removed otherwise.

    Temporary files that killed processes left for `path` are removed first. Write into the file that is there, do not
    replace it: its lock tells other processes that it is in use. On a file system without locks nobody can tell, and
    what killed processes left stays.

    Args:
        synced: whether it is on the disk when this returns: tens of milliseconds.

    Raises:
        RunError: the folder cannot be written or the disk is full; `path` is as it was.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(path)
        with _locked(temporary) as file:
            yield temporary
            if synced:
                os.fsync(file.fileno())
            temporary.replace(path)
    except OSError as error:
        raise RunError(f"{path}: could not be written: {error}; it is as it was before") from error
    finally:
        with suppress(OSError):  # for instance where the folder is a file
            temporary.unlink()
    if synced:
        with suppress(OSError):  # the file is in place; some file systems cannot sync a folder
            _sync_folder(path.parent)


def remove(path: Path) -> None:
    """Delete a file; that it does not exist is no error.

    Raises:
        RunError: the file exists and cannot be removed.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise RunError(f"{path}: could not be removed: {error}") from error


@contextmanager
def _locked(path: Path) -> Iterator[IO[bytes]]:
    """A new file, locked from the moment that it can be found."""
    while True:
        with path.open("wb") as file:
            locks.locked(file)
            if is_at(file, path):  # otherwise another process took it for abandoned and removed it
                yield file
                return


def is_at(file: IO[Any], path: Path) -> bool:
    """Whether the open file is the one at `path`; after a rename or removal it is not."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _remove_abandoned(path: Path) -> None:
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        with suppress(FileNotFoundError, BlockingIOError, locks.NoLocksError), left.open("r+b") as file:
            locks.lock(file, wait=False)
            left.unlink()


def _sync_folder(folder: Path) -> None:
    """Sync the folder, so that the new name survives a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, values: Any) -> None:
    """Write JSON; numbers are rounded to 6 digits, and NaN becomes null."""
    write_text(path, json.dumps(_plain(values), indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; `dvc repro` makes it") from None
    except (ValueError, OSError) as error:
        raise damaged(path, error) from error


def write_csv(path: Path, rows: Iterable[Mapping[str, Any]], synced: bool = True) -> None:
    """Rows of equal keys; numbers rounded to 6 digits, None and NaN as nothing. `synced`: see `replacing`."""
    with replacing(path, synced) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        left = iter(rows)
        first = next(left, None)
        # csv puts those line ends alone into quotes that it writes itself, and a file name may have either.
        lines = SimpleNamespace(write=lambda line: file.write(f"{line.removesuffix(_CRLF)}\n"))
        writer = csv.DictWriter(lines, list(first or ()), lineterminator=_CRLF)
        writer.writeheader()
        for row in itertools.chain(() if first is None else (first,), left):
            writer.writerow({key: "" if value is None else value for key, value in _plain(row).items()})


def read_csv(path: Path) -> list[dict[str, str]]:
    """All rows of a CSV file, each as column → text.

    Raises:
        UserError: the file is missing or damaged.
    """
    return list(csv_rows(path))


def csv_rows(path: Path) -> Iterator[dict[str, str]]:
    """Yield the rows of a CSV file one by one, since the table may be as long as the data set.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            if reader.fieldnames is None:
                raise damaged(path, "it is empty")
            yield from reader
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; `dvc repro` makes it") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise damaged(path, error) from error


def file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _plain(value: Any) -> Any:
    """Python values for JSON and CSV."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [_plain(item) for item in value]
    if isinstance(value, float | np.floating):
        return round(float(value), 6) if math.isfinite(value) else None
    if isinstance(value, np.integer | np.bool_):
        return value.item()
    return value
