"""Locks of files and folders, which end with the process that holds them, and file systems that have none."""

from __future__ import annotations

import errno
import fcntl
import os
import tempfile
from pathlib import Path
from typing import IO, Any

NONE_HERE = frozenset({errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EBADF, errno.EINVAL})
"""What flock raises where a file system has no locks; of an open folder, EBADF and EINVAL on network file systems."""


class NoLocksError(OSError):
    """The file system has no locks."""


def lock(handle: IO[Any] | int, wait: bool = True) -> None:
    """Lock an open file or folder for this process alone, until it is closed.

    Raises:
        BlockingIOError: another process holds it, and `wait` is false.
        NoLocksError: the file system has no locks.
    """
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno in NONE_HERE:
            raise NoLocksError(*error.args) from error
        raise


def locked(handle: IO[Any] | int) -> bool:
    """Lock it as `lock` does, and say whether that could be done: for what goes on without where there are none."""
    try:
        lock(handle)
    except NoLocksError:
        return False
    return True


def are_missing(folder: Path) -> str:
    """Why files in a folder, or in the nearest one above that is there, cannot be locked; "" where they can be.

    Raises:
        OSError: no file can be made there.
    """
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.is_dir())
    handle, name = tempfile.mkstemp(prefix=".lock", dir=existing)
    try:
        lock(handle, wait=False)
    except NoLocksError as error:
        return error.strerror or str(error)
    finally:
        os.close(handle)
        Path(name).unlink()
    return ""
