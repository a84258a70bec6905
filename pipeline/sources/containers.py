"""Folders and archives as one thing: a list of member names, and their bytes on demand.

Archives are read in place. Nothing is ever extracted, so no member can land outside a folder.
"""

from __future__ import annotations

import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from pipeline.errors import UserError


class Container(Protocol):
    def names(self) -> list[str]:
        """The files in it, by their path inside it, with `/`."""
        ...

    def read(self, wanted: Collection[str]) -> Iterator[tuple[str, bytes]]:
        """The bytes of these files, in any order."""
        ...


class Folder:
    def __init__(self, root: Path) -> None:
        self.root = root

    def names(self) -> list[str]:
        return sorted(path.relative_to(self.root).as_posix() for path in self.root.rglob("*") if path.is_file())

    def read(self, wanted: Collection[str]) -> Iterator[tuple[str, bytes]]:
        for name in wanted:
            if (path := self.root / name).is_file():  # the caller names those that are missing
                yield name, path.read_bytes()


class Tar:
    def __init__(self, path: Path) -> None:
        self._path = path

    def names(self) -> list[str]:
        with _readable(self._path), tarfile.open(self._path) as archive:
            return sorted(member.name.removeprefix("./") for member in archive if member.isreg())

    def read(self, wanted: Collection[str]) -> Iterator[tuple[str, bytes]]:
        left = set(wanted)
        # In the order of the archive: a compressed one can only be read forwards.
        with _readable(self._path), tarfile.open(self._path) as archive:
            for member in archive:
                name = member.name.removeprefix("./")
                if member.isreg() and name in left:
                    left.discard(name)
                    if (file := archive.extractfile(member)) is not None:
                        yield name, file.read()


class Zip:
    def __init__(self, path: Path) -> None:
        self._path = path

    def names(self) -> list[str]:
        with _readable(self._path), zipfile.ZipFile(self._path) as archive:
            return sorted(info.filename for info in archive.infolist() if not info.is_dir())

    def read(self, wanted: Collection[str]) -> Iterator[tuple[str, bytes]]:
        with _readable(self._path), zipfile.ZipFile(self._path) as archive:
            for name in wanted:
                with _readable(self._path, name):
                    content = archive.read(name)
                yield name, content


@contextmanager
def _readable(path: Path, name: str = "") -> Iterator[None]:
    """
    Raises:
        UserError: in place of what a damaged archive makes its reader raise.
    """
    damaged = (EOFError, OSError, RuntimeError, tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError)
    try:
        yield
    except damaged as error:
        raise UserError(f"data.root: {path}{', ' if name else ''}{name}: damaged ({error})") from error


def open_container(path: Path) -> Container:
    """
    Raises:
        UserError: neither a folder nor a readable tar or zip archive.
    """
    if path.is_dir():
        return Folder(path)
    if not path.exists():
        raise UserError(f"data.root: {path}: no such folder or file")
    if zipfile.is_zipfile(path):
        return Zip(path)
    if tarfile.is_tarfile(path):
        return Tar(path)
    raise UserError(f"data.root: {path}: expected a folder, a tar or zip archive or a .csv file")
