"""Tar and zip archives: unpacked once, and from then on a folder like any other."""

from __future__ import annotations

import lzma
import os
import secrets
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.base import console, files, locks
from pipeline.base.errors import RunError, UserError
from pipeline.base.files import GIB, MIB
from pipeline.sources.places.folder import is_inside, printable, readable

_DAMAGED = (EOFError, RuntimeError, ValueError, tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError)
"""What a damaged archive makes its reader raise, beside an OSError without a number."""


def check_sha256(path: Path, expected: str | None) -> str:
    """Compute the SHA-256 of a file, and compare it with the expected one, if there is one.

    Raises:
        UserError: it differs from `expected` (`data.sha256`), or the file cannot be read.
    """
    with readable(path):
        digest = files.file_digest(path)
    if expected not in (None, digest):
        raise UserError(f"data.sha256: {path} has {digest}, expected {expected}; it is another file or damaged")
    return digest


def unpack(archive: Path, raw: Path, limit: int, sha256: str | None = None) -> Path:
    """Unpack an archive, unless that was done before; return the folder.

    The folder lies in `raw` and is named by the archive and its SHA-256. It gets that name when it is complete, so that
    the part that a killed process has unpacked is never used.

    Args:
        limit: the bytes that the archive may unpack to.
        sha256: of the archive, if it is to be checked.

    Raises:
        UserError: another SHA-256, no tar or zip archive, a damaged or too large one, or one with members that are no
            files, occur twice or point outside.
        RunError: the folder cannot be written.
    """
    digest = check_sha256(archive, sha256)
    target = raw / f"{archive.name}-{digest[:16]}"
    try:
        raw.mkdir(parents=True, exist_ok=True)
        with _alone_in(raw) as alone:
            # Where nothing can be locked, each process has a folder of its own; the first complete one is taken.
            partial = raw / f".{target.name}{'' if alone else f'.{secrets.token_hex(8)}'}.partial"
            if not target.is_dir():
                shutil.rmtree(partial, ignore_errors=True)  # left by a process that was killed
                partial.mkdir()
                try:
                    console.say(f"unpacking {archive} to {target}")
                    _extract(archive, partial, limit)
                    _take_place(partial, target)
                finally:
                    shutil.rmtree(partial, ignore_errors=True)
    except (*_DAMAGED, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise RunError(f"{target}: {archive} could not be unpacked there: {error}") from error
        reason = str(error) or type(error).__name__
        raise UserError(f"data.root: {archive}: damaged ({reason}); put an intact one in its place") from error
    return target


@contextmanager
def _alone_in(folder: Path) -> Iterator[bool]:
    """Let other processes that unpack into the folder wait; whether they do: some file systems cannot lock a folder."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        yield locks.locked(handle)
    finally:
        os.close(handle)


def _take_place(partial: Path, target: Path) -> None:
    """Rename the complete folder, unless another process has been faster."""
    try:
        partial.rename(target)
    except OSError:
        if not target.is_dir():
            raise


def _extract(archive: Path, folder: Path, limit: int) -> None:
    # Tar first: zipfile takes any file whose end looks like that of a zip archive for one.
    if tarfile.is_tarfile(archive):
        _extract_tar(archive, folder, limit)
    elif zipfile.is_zipfile(archive):
        _extract_zip(archive, folder, limit)
    else:
        raise UserError(
            f"data.root: {archive}: expected a folder, a tar or zip archive or a .csv file; this is something else, or "
            "damaged"
        )


# Python 3.11.4 and later; `_check_member` has refused all but plain files inside of the folder.
_SAFELY: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}


def _extract_tar(archive: Path, folder: Path, limit: int) -> None:
    total, size = 0, archive.stat().st_size
    with (
        archive.open("rb") as packed,
        tarfile.open(fileobj=packed) as opened,
        console.progress("unpacking", size // MIB, "MiB") as bar,
    ):
        while (member := opened.next()) is not None:
            opened.members = []  # type: ignore[attr-defined]  # tarfile keeps all, and there may be a million
            if not member.isdir():
                _check_member(archive, folder, member.name, member.isreg())
                total += member.size
                _check_size(archive, folder, total, member.size, limit)
                opened.extract(member, folder, **_SAFELY)
                bar.at(packed.tell() // MIB - 1)
        # tarfile takes a damaged header, and a file that was cut off between two members, for the end.
        stream: Any = opened.fileobj
        stream.seek(opened.offset)
        if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError(f"no end mark after {opened.offset} bytes: it is cut off, or damaged there")
        while stream.read(MIB):
            pass  # a compressed file's checksum, which tarfile does not read, stands at its very end


def _extract_zip(archive: Path, folder: Path, limit: int) -> None:
    try:
        # Without it names that lack the mark of UTF-8 are taken for cp437, which few writers mean.
        opened = zipfile.ZipFile(archive, metadata_encoding="utf-8")
    except UnicodeDecodeError as error:
        raise _refusal(archive, ascii(error.object)[2:-1], "has a name that is not UTF-8", "rename it") from error
    with opened:
        members = [member for member in opened.infolist() if not member.is_dir()]
        total = sum(member.file_size for member in members)
        _check_size(archive, folder, total, total, limit)
        for member in console.counted(members, "unpacking", len(members), "file"):
            kind = stat.S_IFMT(member.external_attr >> 16)  # 0 where the writer knew no file types
            _check_member(archive, folder, member.filename, kind in (0, stat.S_IFREG))
            opened.extract(member, folder)


def _check_size(archive: Path, folder: Path, total: int, size: int, limit: int) -> None:
    """Check that the next `size` bytes, which make `total` together, may be written.

    Raises:
        UserError: the limit or the disk is too small.
    """
    if total > limit:
        raise UserError(
            f"run.max_unpacked_gib: {archive} unpacks to more than {limit / GIB:g} GiB; raise it if you trust the "
            "archive"
        )
    if size > (free := shutil.disk_usage(folder).free):
        raise UserError(
            f"data.root: {archive} unpacks to another {size / GIB:.2f} GiB, and {folder.parent} has {free / GIB:.2f} "
            "GiB free; make room"
        )


def _check_member(archive: Path, folder: Path, name: str, is_file: bool) -> None:
    """Refuse a member that is no file, points outside, or occurs twice.

    Raises:
        UserError: always in these cases, since leaving the member out could lose an image unnoticed.
    """
    if not is_file:
        remedy = "put a file in its place (tar: --dereference --hard-dereference)"
        raise _refusal(archive, name, "is a link, device or pipe, not a file", remedy)
    if not is_inside(name):
        raise _refusal(archive, name, r"points outside of it (absolute, or with .., a drive or \)", "pack it anew")
    if os.path.lexists(folder / name):
        raise _refusal(archive, name, "occurs more than once", "pack it anew")


def _refusal(archive: Path, name: str, what: str, remedy: str) -> UserError:
    return UserError(f"data.root: {archive}: {printable(name)} in it {what}; {remedy}")
