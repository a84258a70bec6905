"""Getting an archive from a URL.

What has arrived stays beside the target as `.NAME.part`, its address and version as `.NAME.part.json`: the next run
goes on from there, if the server still has the same file.
"""

from __future__ import annotations

import fcntl
import http.client
import json
import os
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any

from pipeline import console, files
from pipeline.errors import RunError, UserError
from pipeline.sources.archives import GIB

TIMEOUT_S = 60
SCHEMES = ("http", "https", "file")
_CHUNK = 1 << 20


def fetch(url: str, sha256: str | None, folder: Path, limit: int, name: str | None = None) -> Path:
    """Download `url` into `folder` unless an intact copy is there; return the file.

    Args:
        limit: bytes; a larger file is refused.
        name: of the file; None takes that of the URL.

    Raises:
        UserError: another scheme, no answer or a truncated one, a file that is too large, or another SHA-256 than
            `data.sha256`.
        RunError: the folder cannot be written.
    """
    try:
        parts = urllib.parse.urlsplit(url)
    except ValueError as error:
        raise UserError(f"data.url: found {url}: {error}") from error
    name = name or PurePosixPath(parts.path).name
    if parts.scheme not in SCHEMES or name in ("", ".."):
        raise UserError(f"data.url: found {url}, expected {'://, '.join(SCHEMES)}://…/FILE")
    target = folder / name
    note = folder / f".{name}.part.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if _is_intact(target, sha256):
            return target
        if parts.scheme == "file" and not Path(urllib.request.url2pathname(parts.path)).is_file():  # a pipe would hang
            raise UserError(f"data.url: {url} could not be fetched: no such file")
        with _locked(folder / f".{name}.part", target) as part:
            if part is None:
                check_sha256(target, sha256, url)
                return target
            _download(url, part, note, limit)
            try:
                check_sha256(Path(part.name), sha256, url)
            except UserError:
                _empty(part, note)
                raise
            os.fsync(part.fileno())
            Path(part.name).replace(target)
            note.unlink(missing_ok=True)
    except OSError as error:
        raise RunError(f"{target}: could not be written: {error}; it is as it was before") from error
    return target


def check_sha256(path: Path, expected: str | None, name: str) -> None:
    """
    Raises:
        UserError: the file is another one.
    """
    if expected is None:
        return
    if (found := files.file_digest(path)) != expected:
        raise UserError(f"data.sha256: {name} has {found}, expected {expected}; it is another file or damaged")


def _is_intact(path: Path, sha256: str | None) -> bool:
    return sha256 is not None and path.exists() and files.file_digest(path) == sha256


@contextmanager
def _locked(path: Path, target: Path) -> Iterator[IO[bytes] | None]:
    """The file at `path`, for this process alone; None where another one has just made `target` of it."""
    while True:
        with path.open("ab+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                console.say(f"{target}: another process is fetching it; waiting")
                fcntl.flock(file, fcntl.LOCK_EX)
            if files.is_at(file, path):
                try:
                    yield file
                finally:
                    if files.is_at(file, path) and os.fstat(file.fileno()).st_size == 0:
                        path.unlink()
                return
            if files.is_at(file, target):
                yield None
                return


def _download(url: str, part: IO[bytes], note: Path, limit: int) -> None:
    """Complete `part`. After an error what has arrived stays in it, where it can be gone on from.

    Raises:
        UserError: no answer, a truncated one, or a file larger than `limit`.
    """
    start, validator = _arrived(url, part, note)
    try:
        with _open(url, {"Range": f"bytes={start}-", "If-Range": validator} if start else {}) as answer:
            if answer.status == http.HTTPStatus.PARTIAL_CONTENT:
                if not start:
                    raise _BrokenError("it is a part of the file, which nobody asked for")
                if _range(answer)[0] != start or _validator(answer) not in (None, validator):
                    _empty(part, note)
                    return _download(url, part, note, limit)
            else:  # all of it, as the server has another version or knows no ranges
                start = 0
                _empty(part, note)
                if (version := _validator(answer)) is not None:
                    files.write_text(note, json.dumps({"url": url, "validator": version}))
            _receive(answer, part, _total(answer, start), limit)
    except _RefusedError as error:
        _empty(part, note)
        raise UserError(f"{error}") from None
    except urllib.error.HTTPError as error:
        error.close()
        if start and error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            _empty(part, note)
            return _download(url, part, note, limit)
        reason = " ".join(f"{error}".split())  # urllib has one of several lines
        raise UserError(f"data.url: {url} could not be fetched: {reason}") from error
    except _BrokenError as error:
        kept = ""
        if note.exists() and (size := part.seek(0, os.SEEK_END)):
            kept = f"; {size} bytes have arrived, and the same command goes on from there"
        else:
            _empty(part, note)
        raise UserError(f"data.url: {url} could not be fetched: {error}{kept}") from error
    return None


class _BrokenError(Exception):
    """The connection failed."""


class _RefusedError(Exception):
    """A file that nobody wants."""


def _receive(answer: Any, part: IO[bytes], total: int | None, limit: int) -> None:
    """Append the answer to `part`."""
    too_large = f"run.max_download_gib: {answer.url} has {{}} bytes, more than {limit / GIB:g} GiB"
    if total is not None and total > limit:
        raise _RefusedError(too_large.format(total))
    while part.tell() != total and (chunk := _read(answer)):
        part.write(chunk)
        if part.tell() > limit:
            raise _RefusedError(too_large.format(f"at least {part.tell()}"))
    part.flush()
    if total is not None and part.tell() != total:
        raise _BrokenError(f"the answer ended after {part.tell()} of {total} bytes")


def _open(url: str, headers: dict[str, str]) -> Any:
    with _connected():
        return _opener().open(urllib.request.Request(url, headers=headers), timeout=TIMEOUT_S)


def _read(answer: Any) -> bytes:
    with _connected():
        chunk: bytes = answer.read1(_CHUNK)  # what is there: the rest may never come
        return chunk


@contextmanager
def _connected() -> Iterator[None]:
    """Errors of the connection, which are not to be taken for errors of the disk."""
    try:
        yield
    except urllib.error.HTTPError:
        raise
    except (OSError, ValueError, http.client.HTTPException) as error:  # ValueError: a URL that cannot be sent
        raise _BrokenError(f"{error or type(error).__name__}") from error


def _arrived(url: str, part: IO[bytes], note: Path) -> tuple[int, str]:
    """How many bytes of this URL are in `part`, and of which version; 0 if nobody knows."""
    size = part.seek(0, os.SEEK_END)
    try:
        about = json.loads(note.read_text(encoding="utf-8"))
        if size and about["url"] == url and isinstance(about["validator"], str):
            return size, about["validator"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        pass
    return 0, ""


def _empty(part: IO[bytes], note: Path) -> None:
    part.seek(0)
    part.truncate()
    note.unlink(missing_ok=True)


def _validator(answer: Any) -> str | None:
    """What tells versions of a file apart: a strong ETag, or else the time of the last change."""
    tag = answer.headers.get("ETag") or ""
    found: str | None = tag if tag.startswith('"') else answer.headers.get("Last-Modified")
    return found


def _range(answer: Any) -> tuple[int, int | None]:
    """Start and size of the whole file, as a partial answer says."""
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", answer.headers.get("Content-Range") or "")
    if match is None:
        return -1, None
    return int(match[1]), None if match[2] == "*" else int(match[2])


def _total(answer: Any, start: int) -> int | None:
    """Bytes of the whole file, where the server says."""
    length = answer.headers.get("Content-Length") or ""
    of_range = _range(answer)[1] if start else None
    return of_range if of_range is not None else start + int(length) if length.isdecimal() else None


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Only to where `data.url` may point itself: urllib would follow one to ftp."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if urllib.parse.urlsplit(newurl).scheme not in ("http", "https"):
            raise urllib.error.HTTPError(newurl, code, f"redirected to {newurl}, which is not followed", headers, fp)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener() -> urllib.request.OpenerDirector:
    """urllib's, without those for ftp and data."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.UnknownHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPErrorProcessor,
        urllib.request.FileHandler,
        _Redirects,
    ):
        opener.add_handler(handler())
    return opener
