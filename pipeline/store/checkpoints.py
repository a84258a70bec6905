"""Checkpoints: a training stage that was stopped continues after its last saved step.

They lie outside of DVC's outs, which it deletes before a run, in a folder named by a digest of all that the result
depends on: after a changed parameter a stage cannot pick up the wrong run.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from pipeline.base import files, locks
from pipeline.base.errors import RunError, UserError
from pipeline.store.models import load_with_metadata, save_tensors
from pipeline.store.record import Record

OWN = re.compile(r"lock|(record|diverged)\.json|state\.safetensors|piece-\d+\.safetensors|\..*\.tmp")
"""Names of the files in a checkpoint's folder."""
ATTEMPTS = 100
"""To find the folder there, where other processes remove it."""
NO_LOCKS = "its file system has no locks, by which a second process would be kept from training the same"


class Checkpoint:
    """The checkpoint of one run of one stage; obtained from `opened`, which holds its lock."""

    def __init__(self, folder: Path, record: Record) -> None:
        self._folder = folder
        self._record = record
        self._file = folder / "state.safetensors"

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """What `save` was given last, or None where there is no checkpoint.

        Raises:
            UserError: the file is damaged.
        """
        if not self._file.exists():
            return None
        tensors, metadata = load_with_metadata(self._file)
        return tensors, json.loads(metadata["values"])

    def save(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Replace the checkpoint, atomically."""
        save_tensors(self._file, tensors, {"values": json.dumps(values)})

    def has_piece(self, number: int) -> bool:
        """Whether `save_piece` has finished this one."""
        return self._piece(number).exists()

    def save_piece(self, number: int, tensors: Mapping[str, Tensor]) -> None:
        """Save a part of a result that is made in parts, atomically."""
        save_tensors(self._piece(number), tensors)

    def load_piece(self, number: int) -> dict[str, Tensor]:
        """What `save_piece` was given.

        Raises:
            UserError: the file is missing or damaged.
        """
        return load_with_metadata(self._piece(number))[0]

    def _piece(self, number: int) -> Path:
        return self._folder / f"piece-{number}.safetensors"

    def note_divergence(self, params: Mapping[str, Any], message: str) -> None:
        """Leave a note beside the checkpoint: tables report a run that diverged as such.

        Args:
            params: all parameters of the run, by dotted name.
        """
        about = {"stage": self._record.stage, "params": params, "code": self._record.code, "message": message}
        files.write_text(self._folder / "diverged.json", json.dumps(about, indent=2) + "\n")

    def remove(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)


@contextmanager
def opened(record: Record) -> Iterator[Checkpoint]:
    """The checkpoint of the run whose result this record will describe, locked.

    The folder is `$MLNT_CHECKPOINT_DIR` (default `checkpoints/`)/<stage>/<digest of the record>: a run with other
    parameters, inputs, code or packages has another one, and never continues this.

    Raises:
        UserError: another process is training the same, or the file system has no locks to tell.
        RunError: the folder cannot be written.
    """
    text = json.dumps(asdict(record), sort_keys=True)
    folder = files.checkpoints() / record.stage / hashlib.sha256(text.encode()).hexdigest()[:16]
    for _ in range(ATTEMPTS):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = (folder / "lock").open("w")
        except FileNotFoundError:
            continue  # another process has just removed the folder
        except OSError as error:
            raise RunError(f"{folder}: could not be written: {error}") from error
        with lock:
            try:
                locks.lock(lock, wait=False)
            except locks.NoLocksError as error:
                raise UserError(
                    f"{folder}: {NO_LOCKS} (flock: {error.strerror}); set MLNT_CHECKPOINT_DIR, found "
                    f"{os.environ.get('MLNT_CHECKPOINT_DIR') or 'nothing'}, to a folder on another disk"
                ) from None
            except BlockingIOError:
                raise UserError(
                    f"{folder}: another process is training {record.stage} with the same parameters; "
                    "wait for it, or end it (`pgrep -fa pipeline` shows it)"
                ) from None
            if files.is_at(lock, folder / "lock"):  # else another process has just finished, and removed the folder
                files.write_text(folder / "record.json", text + "\n")
                yield Checkpoint(folder, record)
                return
    raise RunError(
        f"{folder}: could not be made: other processes removed it {ATTEMPTS} times; run the same command again"
    )


def abandoned(code_now: Callable[[str], str]) -> list[Path]:
    """The folders of checkpoints that nothing will continue: those of other code, and those without a record. Of
    folders in which another program has something, none.

    Args:
        code_now: digest of the code that a stage would run today.
    """
    found: list[Path] = []
    for folder in sorted(files.checkpoints().glob("*/*/")):
        try:
            made_by = json.loads((folder / "record.json").read_text(encoding="utf-8"))["code"]
            current = made_by == code_now(folder.parent.name)
        except (OSError, ValueError, KeyError):
            current = False
        if not current and all(OWN.fullmatch(path.name) for path in folder.iterdir()):
            found.append(folder)
    return found


@contextmanager
def unused(folder: Path) -> Iterator[bool]:
    """Whether no process trains with this checkpoint; until the block ends none begins to, if so."""
    try:
        lock = (folder / "lock").open()
    except FileNotFoundError:  # training makes it first
        yield True
        return
    with lock:
        try:
            locks.lock(lock, wait=False)
        except BlockingIOError:
            yield False
        except locks.NoLocksError:  # training refuses such a file system
            yield True
        else:
            yield True
