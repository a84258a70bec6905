"""Getting an archive from a URL."""

from __future__ import annotations

import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath

from pipeline.base import console
from pipeline.base.errors import RunError, UserError
from pipeline.base.files import GIB, MIB

TIMEOUT_S = 60
SCHEMES = ("http", "https", "file")


def fetch(url: str, known_hash: str | None, folder: Path, limit: int, name: str | None = None) -> Path:
    """Download `url` into `folder` unless it is there already; return the path of the complete file.

    With a known hash, a file of that name with this hash is used as it is. Without one, a file that came from the same
    URL before is used, even if the server has another one now: remove it to have it fetched again.

    Args:
        known_hash: "sha256:…", which is `data.sha256`, or "md5:…".
        limit: bytes; a larger file is refused.
        name: name of the file; None takes the URL's, or without a hash a name that no other URL has.

    Raises:
        UserError: another scheme, no answer or a truncated one, a file that is too large or has another hash.
        RunError: the folder cannot be written.
    """
    try:
        parts = urllib.parse.urlsplit(url)
    except ValueError as error:
        raise UserError(f"data.url: found {url}: {error}") from error
    last = PurePosixPath(parts.path).name
    if parts.scheme not in SCHEMES or last in ("", ".."):
        raise UserError(f"data.url: found {url}, expected {'://, '.join(SCHEMES)}://…/FILE")

    import pooch
    import requests

    pooch.get_logger().setLevel("ERROR")
    if name is None and known_hash is not None:
        name = last
    try:
        found = pooch.retrieve(url, known_hash, name, folder, downloader=partial(_download, limit))
    except requests.RequestException as error:
        raise UserError(f"data.url: {url} could not be fetched: {error}") from error
    except ValueError as error:
        key = "data.sha256" if (known_hash or "").startswith("sha256") else "data.url"
        raise UserError(f"{key}: {url}: {error}") from error
    except OSError as error:
        raise RunError(f"{folder / last}: {url} could not be written there: {error}") from error
    return folder / Path(found).name


def _download(limit: int, url: str, output_file: str, _: object) -> None:
    """Download into the temporary file of `pooch`, which calls this.

    Raises:
        UserError: the file is larger than `limit`.
    """
    console.say(f"fetching {url}")
    with _opened(url) as (size, chunks), Path(output_file).open("wb") as file:
        _check_size(url, size, limit)
        with console.progress("fetching", size // MIB, "MiB") as bar:
            for chunk in chunks:
                _check_size(url, file.tell() + len(chunk), limit)
                file.write(chunk)
                bar.at(file.tell() // MIB - 1)
    Path(output_file).chmod(0o644)  # pooch makes a file for its owner alone


@contextmanager
def _opened(url: str) -> Iterator[tuple[int, Iterable[bytes]]]:
    """Yield the size, 0 where the server does not say, and the content. An answer that ends too early is an error."""
    import requests

    if url.startswith("file:"):
        path = Path(urllib.request.url2pathname(urllib.parse.urlsplit(url).path))
        if not path.is_file():  # a pipe would never end
            raise UserError(f"data.url: {url} could not be fetched: no such file")
        with path.open("rb") as file:
            yield path.stat().st_size, iter(lambda: file.read(MIB), b"")
        return
    # Ask for no compression, so that Content-Length and the limit mean the size of the file.
    with requests.get(url, headers={"Accept-Encoding": "identity"}, stream=True, timeout=TIMEOUT_S) as answer:
        answer.raise_for_status()
        yield int(answer.headers.get("Content-Length", 0)), answer.iter_content(MIB)


def _check_size(url: str, size: int, limit: int) -> None:
    if size > limit:
        raise UserError(f"run.max_download_gib: {url} has {size} bytes or more, more than {limit / GIB:g} GiB")
