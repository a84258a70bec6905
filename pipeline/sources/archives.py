"""Tar and zip archives, read in place.

Nothing is ever extracted, so no member can land outside a folder, and what a link in an archive points to is never
read. What an archive unpacks to is counted while it is read, and never held as a whole.
"""

from __future__ import annotations

import io
import lzma
import stat
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from pipeline.errors import UserError
from pipeline.sources.compressed import unpacked
from pipeline.sources.members import Members

GIB = 1 << 30

_CHUNK = 1 << 20
_LONGEST_NAME = 4096
"""No system has longer paths."""
_UTF8_NAME = 1 << 11
"""The flag of a zip member."""
_MOST_NAMES_BYTES = 1 << 30
"""More than ten million names; compressed ones may need a hundredth of a byte each."""


class Tar:
    """A tar archive, plain or compressed by gzip, bzip2 or xz. `limit`: the bytes that it may unpack to."""

    def __init__(self, path: Path, limit: int) -> None:
        self._path = path
        self._limit = limit

    def members(self) -> Members:
        found, memory = Members([], []), 0
        with _readable(self._path):
            for _, member in self._each():
                if not member.isdir():
                    (found.files if member.isreg() else found.others).append(_name(member))
                    if (memory := memory + sys.getsizeof(member.name)) > _MOST_NAMES_BYTES:
                        raise tarfile.ReadError(f"names of more than {_MOST_NAMES_BYTES >> 30} GiB")
        return Members(sorted(found.files), sorted(found.others))

    def read(self, wanted: Collection[str], most: int) -> Iterator[tuple[str, bytes]]:
        left = set(wanted)
        total = 0
        # In the order of the archive: a compressed one can only be read forwards.
        with _readable(self._path):
            for archive, member in self._each():
                name = _name(member)
                if member.isreg() and name in left:
                    left.discard(name)
                    total += min(member.size, most)  # a sparse member is larger than what the archive holds of it
                    if total > self._limit:
                        raise _too_large(self._path, self._limit)
                    if (file := archive.extractfile(member)) is not None:
                        yield name, _read(file, most + 1)
                if not left:
                    return

    def _each(self) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
        with unpacked(self._path) as stream:
            counted: Any = _Counted(stream, self._path, self._limit)
            with tarfile.open(fileobj=counted, mode="r:") as archive:
                while (member := archive.next()) is not None:
                    # tarfile keeps all of them: an archive of empty ones would fill the memory.
                    archive.members.clear()  # type: ignore[attr-defined]
                    if len(member.name) > _LONGEST_NAME:
                        raise tarfile.ReadError(f"a name of {len(member.name)} characters")
                    # Global headers, too, which are those of every member after them.
                    if sum(len(key) + len(value) for key, value in archive.pax_headers.items()) > _CHUNK:
                        raise tarfile.ReadError(f"headers of more than {_CHUNK} bytes")
                    yield archive, member
                # tarfile takes a damaged header, and the end of a file that was cut off there, for the end.
                if counted.last != bytes(tarfile.BLOCKSIZE):
                    raise tarfile.ReadError(f"no end mark at {archive.offset} bytes: it is cut off, or damaged there")
            while counted.read(_CHUNK):
                pass  # only at its very end is a compressed file's checksum looked at


class Zip:
    """`limit`: the bytes that the wanted files of the archive may unpack to."""

    def __init__(self, path: Path, limit: int) -> None:
        self._path = path
        self._limit = limit

    def members(self) -> Members:
        found = Members([], [])
        with _readable(self._path), zipfile.ZipFile(self._path) as archive:
            for info in archive.infolist():
                if not info.is_dir():
                    kind = stat.S_IFMT(info.external_attr >> 16)  # 0 where the writer knew no file types
                    (found.files if kind in (0, stat.S_IFREG) else found.others).append(_zip_name(info))
        return Members(sorted(found.files), sorted(found.others))

    def read(self, wanted: Collection[str], most: int) -> Iterator[tuple[str, bytes]]:
        with _readable(self._path), zipfile.ZipFile(self._path) as archive:
            by_name = {_zip_name(info): info for info in archive.infolist()}
            infos = {name: by_name[name] for name in wanted if name in by_name}
            # No member gives more bytes than the directory says: zipfile sees to that.
            if sum(info.file_size for info in infos.values()) > self._limit:
                raise _too_large(self._path, self._limit)
            for name, info in infos.items():
                # Of the others zipfile unpacks 4 KiB at once, whatever comes out: of bzip2 that can be gibibytes.
                if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise UserError(
                        f"data.root: {self._path}: {name} is compressed by method {info.compress_type}, which "
                        "cannot be unpacked within bounds; pack it anew with deflate, as zip does by default"
                    )
                with _readable(self._path, name), archive.open(info) as file:
                    content = _read(file, most + 1)
                yield name, content


class _Counted:
    """A stream that is read forwards, up to a limit; what `tarfile` needs of a file.

    The limit is on the position: seeking past a member unpacks all of it too.
    """

    def __init__(self, stream: IO[bytes], path: Path, limit: int) -> None:
        self._stream = stream
        self._path = path
        self._limit = limit
        self.last = b""
        """What was read last."""

    def tell(self) -> int:
        return self._stream.tell()

    def seek(self, position: int) -> int:
        if position < self.tell():
            raise tarfile.ReadError("a member of negative size")  # tarfile would read its header for ever
        if position > self._limit:
            raise _too_large(self._path, self._limit)
        return self._stream.seek(position)

    def read(self, size: int) -> bytes:
        if size > _CHUNK:
            raise tarfile.ReadError(f"a header of {size} bytes")  # tarfile would read all of it into memory
        self.last = content = self._stream.read(size)
        if self._stream.tell() > self._limit:
            raise _too_large(self._path, self._limit)
        return content


def _name(member: tarfile.TarInfo) -> str:
    return member.name.removeprefix("./")


def _zip_name(info: zipfile.ZipInfo) -> str:
    """As the writer meant it. A name without the mark of UTF-8 zipfile takes for cp437, which few writers mean.

    What is no UTF-8 comes as lone surrogates, like the names in a folder or a tar archive.
    """
    from_field = info.orig_filename.partition("\0")[0] != info.filename  # newer Pythons read a field of Unicode names
    if info.flag_bits & _UTF8_NAME or from_field:
        return info.filename
    return info.filename.encode("cp437").decode("utf-8", "surrogateescape")


def _read(file: IO[bytes], most: int) -> bytes:
    """Up to `most` bytes, unpacked a chunk at a time."""
    content = io.BytesIO()
    while (left := most - content.tell()) > 0 and (part := file.read(min(_CHUNK, left))):
        content.write(part)
    return content.getvalue()


def _too_large(path: Path, limit: int) -> UserError:
    return UserError(
        f"run.max_unpacked_gib: {path} unpacks to more than {limit / GIB:g} GiB; raise it if you trust the archive"
    )


@contextmanager
def _readable(path: Path, name: str = "") -> Iterator[None]:
    """
    Raises:
        UserError: in place of what a damaged archive makes its reader raise.
    """
    damaged = (
        EOFError, OSError, RuntimeError, ValueError, tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError,
    )  # fmt: skip
    try:
        yield
    except damaged as error:
        raise UserError(f"data.root: {path}{', ' if name else ''}{name}: damaged ({error})") from error


def is_tar(path: Path, limit: int) -> bool:
    """By its first header.

    Raises:
        UserError: it cannot be unpacked within bounds.
    """
    try:
        with unpacked(path) as stream:
            counted: Any = _Counted(stream, path, limit)
            tarfile.open(fileobj=counted, mode="r:").close()
        return True
    except (tarfile.TarError, ValueError, OSError, EOFError, zlib.error, lzma.LZMAError):
        return False
