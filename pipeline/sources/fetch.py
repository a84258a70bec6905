"""Getting an archive from a URL."""

from __future__ import annotations

import shutil
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path, PurePosixPath

from pipeline import files
from pipeline.errors import UserError

TIMEOUT_S = 60
SCHEMES = ("http", "https", "file")


def fetch(url: str, sha256: str | None, folder: Path) -> Path:
    """Download `url` into `folder` unless an intact copy is there; return the file.

    Raises:
        UserError: another scheme, no answer, or another SHA-256 than `data.sha256`.
    """
    try:
        parts = urllib.parse.urlsplit(url)
    except ValueError as error:
        raise UserError(f"data.url: found {url}: {error}") from error
    name = PurePosixPath(parts.path).name
    if parts.scheme not in SCHEMES or not name:
        raise UserError(f"data.url: found {url}, expected {'://, '.join(SCHEMES)}://…/FILE")
    target = folder / name
    if target.exists() and sha256 is not None and files.file_digest(target) == sha256:
        return target
    with files.replacing(target) as temporary:
        try:
            with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer, temporary.open("wb") as file:
                shutil.copyfileobj(answer, file)
        except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
            raise UserError(f"data.url: {url} could not be fetched: {error}") from error
        check_sha256(temporary, sha256, url)
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
