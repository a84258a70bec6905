"""HDF5 files as the stages pass them on: replaced whole, with a checksum on everything, text too."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from pipeline.base import files
from pipeline.base.errors import UserError, damaged


def digest(arrays: dict[str, NDArray[Any]], attributes: dict[str, Any]) -> str:
    """SHA-256 of arrays and text."""
    found = hashlib.sha256(json.dumps(attributes, sort_keys=True).encode())
    for name, array in sorted(arrays.items()):
        found.update(f"{name} {array.dtype.str} {array.shape}".encode())
        found.update(np.ascontiguousarray(array).data)
    return found.hexdigest()


def store(file: h5py.File, arrays: dict[str, NDArray[Any]], text: dict[str, Any]) -> None:
    """Write arrays, and text as JSON, with checksums: HDF5's strings have none, and reading damaged ones can hang."""
    encoded = np.frombuffer(json.dumps(text).encode(), dtype=np.uint8)
    for name, array in {**arrays, "about": encoded}.items():
        # One chunk holds about 1 MiB of whole rows; each chunk carries a checksum.
        rows = max(1, min(len(array), (1 << 20) // max(1, array[0].nbytes)))
        file.create_dataset(name, data=array, chunks=(rows, *array.shape[1:]), fletcher32=True)


def about(file: h5py.File) -> dict[str, Any]:
    """The text that `store` wrote, as a dict."""
    text: dict[str, Any] = json.loads(file["about"][:].tobytes())
    return text


@contextmanager
def create(path: Path) -> Iterator[tuple[h5py.File, Sink]]:
    """Yield a new file and its sink; the file replaces `path` when the block ends well. Call `sink.check` now and then.

    Raises:
        RunError: the disk is full, or the folder cannot be written.
    """
    with files.replacing(path) as temporary, Sink(temporary) as sink:
        # The newer format has checksums of its own structure too; the older one reads some damage as other values.
        with h5py.File(sink, "w", libver="v110") as file:
            yield file, sink
        sink.check()


class Sink(FileIO):
    """The file that HDF5 writes to. An error of a write, which would crash HDF5, is kept until `check` raises it."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "w+")
        self._error: OSError | None = None

    def write(self, data: Any) -> int:
        view = memoryview(data)
        try:
            written = 0
            while written < len(view):
                written += super().write(view[written:])
        except OSError as error:
            self._error = self._error or error
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        try:
            return super().truncate(size)
        except OSError as error:
            self._error = self._error or error
            return size or 0

    def check(self) -> None:
        """Raise the first error that a write met, if there was one.

        Raises:
            OSError: a write failed, for instance on a full disk.
        """
        if self._error is not None:
            raise self._error


@contextmanager
def opened(path: Path, command: str) -> Iterator[h5py.File]:
    """Open a file for reading; `command` names the `mlnt` command that makes it, for the message.

    Raises:
        UserError: the file is missing, or what the block reads is damaged.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file; `mlnt {command}` makes it, or `dvc repro` all of them")
    # Files are replaced whole, never written in place: no lock is needed, and not every file system has one.
    with reading(path), h5py.File(path, "r", locking=False) as file:
        yield file


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn the errors of reading damaged content in the block into one message.

    Raises:
        UserError: what the block reads is damaged.
    """
    try:
        yield
    except (OSError, KeyError, RuntimeError, ValueError, TypeError) as error:
        raise damaged(path, error) from error


def check_origin(file: h5py.File, path: Path, what: str, expected: str, command: str) -> None:
    """Check that a file was made from the expected labels, data set or network, as `what` says.

    Raises:
        UserError: the file names another digest of it; the message says to run `mlnt COMMAND`.
    """
    found = about(file).get(f"{what}_digest")
    if found != expected:
        other = "other labels" if what == "labels" else f"another {what}"
        raise UserError(
            f"{path}: was made from {other} (digest {str(found)[:12]}, expected {expected[:12]}); "
            f"run `mlnt {command}` again, or `dvc repro`"
        )
