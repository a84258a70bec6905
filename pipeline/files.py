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
from typing import IO, Any

import numpy as np

from pipeline import locks
from pipeline.errors import RunError, UserError

DATASET = Path("data/dataset.h5")
LABELS = Path("data/labels.h5")
FEATURES = Path("data/features.h5")
MODELS = Path("models")
METRICS = Path("metrics")
PLOTS = Path("plots")
REPORTS = Path("reports")
EVALUATION = METRICS / "evaluate.json"
CONFUSIONS = REPORTS / "confusions.csv"
LABEL_ISSUES = REPORTS / "label_issues.csv"
REPORT = REPORTS / "index.html"
BASELINE_EVALUATION = METRICS / "baselines.json"
BASELINE_CONFUSIONS = REPORTS / "baselines_confusions.csv"
BASELINE_LABEL_ISSUES = REPORTS / "baselines_label_issues.csv"
BASELINE_REPORT = REPORTS / "baselines.html"
TIMINGS = Path("timings")

GIB = 1 << 30


def checkpoints() -> Path:
    """The folder of all checkpoints."""
    return Path(os.environ.get("MLNT_CHECKPOINT_DIR") or "checkpoints")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` that takes its place when the block ends well, and vanishes otherwise.

    What a process that was killed has left there vanishes too. Write into the file that is there: its lock tells
    other processes that somebody is at work. On a file system without locks nobody knows, and what is left stays.

    Raises:
        RunError: the folder cannot be written or the disk is full; `path` is as it was.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(path)
        with _locked(temporary) as file:
            yield temporary
            os.fsync(file.fileno())
            temporary.replace(path)
    except OSError as error:
        raise RunError(f"{path}: could not be written: {error}; it is as it was before") from error
    finally:
        with suppress(OSError):  # as where its folder is none
            temporary.unlink()
    with suppress(OSError):  # the file is there; some file systems cannot do more
        _sync_folder(path.parent)


def remove(path: Path) -> None:
    """
    Raises:
        RunError: it is there and cannot be removed.
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
            if is_at(file, path):  # else it was taken for abandoned
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
    """So that the new name, too, is there after a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, values: Any) -> None:
    """JSON as it is committed: numbers rounded to 6 digits, NaN as null."""
    write_text(path, json.dumps(_plain(values), indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """
    Raises:
        UserError: missing or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; `dvc repro` makes it") from None
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: damaged ({error}); delete it and run `dvc repro` again") from error


def write_csv(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Rows of equal keys; numbers rounded to 6 digits, None and NaN as nothing."""
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        left = iter(rows)
        first = next(left, None)
        writer = csv.DictWriter(file, list(first or ()), lineterminator="\n")
        writer.writeheader()
        for row in itertools.chain(() if first is None else (first,), left):
            writer.writerow({key: "" if value is None else value for key, value in _plain(row).items()})


def read_csv(path: Path) -> list[dict[str, str]]:
    """
    Raises:
        UserError: missing or damaged.
    """
    return list(csv_rows(path))


def csv_rows(path: Path) -> Iterator[dict[str, str]]:
    """One after the other, for a table that may be as long as the data set.

    Raises:
        UserError: missing or damaged.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            if reader.fieldnames is None:
                raise UserError(f"{path}: damaged (it is empty); delete it and run `dvc repro` again")
            yield from reader
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; `dvc repro` makes it") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: damaged ({error}); delete it and run `dvc repro` again") from error


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
