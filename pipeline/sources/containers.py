"""Folders and archives as one thing: a list of member names, and their bytes on demand."""

from __future__ import annotations

import os
import stat
import zipfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from pipeline.errors import UserError
from pipeline.sources.archives import Tar, Zip, is_tar
from pipeline.sources.members import Members, first_few


class Container(Protocol):
    def members(self) -> Members: ...

    def read(self, wanted: Collection[str], most: int) -> Iterator[tuple[str, bytes]]:
        """The bytes of these files, in any order; of a file with more than `most` the first `most + 1`."""
        ...


class Folder:
    """A person's own folder: its links are followed wherever they lead, as people link data from other disks."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def members(self) -> Members:
        found = Members([], [])
        for path, is_file in _walk(self.root):
            (found.files if is_file else found.others).append(path.relative_to(self.root).as_posix())
        return Members(sorted(found.files), sorted(found.others))

    def read(self, wanted: Collection[str], most: int) -> Iterator[tuple[str, bytes]]:
        self.require(wanted)
        for name in wanted:
            yield name, read_start(self.root / name, most + 1)

    def require(self, wanted: Collection[str]) -> None:
        """At once, not after hours of decoding. Only a regular file is opened: a pipe would never end.

        Raises:
            UserError: files that are missing.
        """
        if missing := [name for name in wanted if not os.path.isfile(self.root / name)]:  # noqa: PTH113 (pathlib raises for a long path)
            raise UserError(
                f"data.root: {self.root}: {len(missing)} of {len(wanted)} listed files are missing: "
                f"{first_few(missing)}"
            )


def read_start(path: Path, most: int) -> bytes:
    """The first `most` bytes of a file.

    Raises:
        UserError: it cannot be read.
    """
    with readable(path), path.open("rb") as file:
        return file.read(most)


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """
    Raises:
        UserError: in place of what a file or folder that cannot be read makes Python raise.
    """
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"data.root: {path}: no such file") from None
    except OSError as error:
        raise UserError(f"data.root: {path}: not readable ({error})") from error


def file_type(path: Path) -> int:
    """The type of what is there, as in `stat.S_IFMT`; 0 for nothing.

    Raises:
        UserError: nobody may look. From Python 3.14 on pathlib says that there is nothing.
    """
    with readable(path):
        try:
            return stat.S_IFMT(path.stat().st_mode)
        except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: no path at all
            return 0


def _walk(root: Path) -> Iterator[tuple[Path, bool]]:
    """Everything below `root` but folders, and whether it is a regular file. Folders of one's own parents end a path.

    Raises:
        UserError: a folder that may not be read: its images would be missing without a word.
    """
    left = [(root, frozenset[tuple[int, int]]())]
    while left:
        folder, above = left.pop()
        with readable(folder):
            about = folder.stat()
            if (key := (about.st_dev, about.st_ino)) in above:
                continue
            with os.scandir(folder) as entries:
                for entry in entries:
                    path = folder / entry.name
                    if path.is_dir():  # unlike `entry`, False for a link to itself
                        left.append((path, above | {key}))
                    else:
                        yield path, path.is_file()


def open_container(path: Path, limit: int) -> Container:
    """
    Args:
        limit: the bytes that an archive may unpack to.

    Raises:
        UserError: neither a folder nor a tar or zip archive, or one that cannot be read.
    """
    if (found := file_type(path)) == stat.S_IFDIR:
        return Folder(path)
    if not found:
        raise UserError(f"data.root: {path}: no such folder or file")
    if found == stat.S_IFREG:
        read_start(path, 1)  # what cannot be read looks like no archive
        # Tar first: of any file whose end looks like a zip archive zipfile believes that it is one.
        if is_tar(path, limit):
            return Tar(path, limit)
        if zipfile.is_zipfile(path):
            return Zip(path, limit)
    raise UserError(f"data.root: {path}: expected a folder, a tar or zip archive or a .csv file")
