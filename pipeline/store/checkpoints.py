"""Checkpoints: a training stage that was stopped goes on after its last saved epoch.

They lie outside of DVC's outs, which it deletes before a run, in a folder named by a digest of all that the result
depends on: after a changed parameter a stage cannot pick up the wrong run.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

import mlnt
from pipeline import files, locks
from pipeline.errors import RunError, UserError
from pipeline.images import decode
from pipeline.store.models import load_with_metadata, save_tensors

ATTEMPTS = 100
"""To find the folder there, where other processes remove it."""
NO_LOCKS = "its file system has no locks, by which a second process would be kept from training the same"


class Checkpoint:
    """The checkpoint of one run of one stage; obtained from `opened`, which holds its lock."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file = folder / "state.safetensors"

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """What `save` was given last, or None where there is nothing to go on from.

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

    def note_divergence(self, stage: str, params: Mapping[str, Any], message: str) -> None:
        """Leave a record beside the checkpoint: tables report a run that diverged as such."""
        record = {"stage": stage, "params": params, "code": code_digest(), "message": message}
        files.write_text(self._folder / "diverged.json", json.dumps(record, indent=2) + "\n")

    def remove(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)


def code_digest() -> str:
    """Of the library's source, and of what reads images: a step that was changed must not go on from epochs of the
    old one."""
    digest = hashlib.sha256()
    for path in (*sorted(Path(mlnt.__file__).parent.rglob("*.py")), Path(decode.__file__)):
        digest.update(path.read_bytes())
    return digest.hexdigest()


@contextmanager
def opened(stage: str, identity: Mapping[str, Any]) -> Iterator[Checkpoint]:
    """The checkpoint of the run that `identity` (parameters and digests of inputs) describes, locked.

    The folder is `$MLNT_CHECKPOINT_DIR` (default `checkpoints/`)/<stage>/<digest>.

    Raises:
        UserError: another process is training the same, or the file system has no locks to tell.
        RunError: the folder cannot be written.
    """
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    folder = files.checkpoints() / stage / digest
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
                    f"{folder}: another process is training {stage} with the same parameters; "
                    "wait for it, or end it (`pgrep -fa pipeline` shows it)"
                ) from None
            if files.is_at(lock, folder / "lock"):  # else another process has just finished, and removed the folder
                yield Checkpoint(folder)
                return
    raise RunError(f"{folder}: could not be made: it vanishes again and again")
