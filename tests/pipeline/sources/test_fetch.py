"""Downloads from a server that does what servers on bad days do."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from projects import digests

from pipeline.base.errors import RunError, UserError
from pipeline.base.files import GIB
from pipeline.sources.places import fetch as module
from pipeline.sources.places.fetch import fetch

CONTENT = np.random.default_rng(0).bytes(300_000)
SHA256 = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"


@dataclass
class Behaviour:
    """How the server answers; changed by tests between two downloads."""

    content: bytes = CONTENT
    break_after: int | None = None
    says_length: bool = True
    redirect: str | None = None
    status: int = 200
    pause: threading.Event | None = None
    asked: int = 0

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        self.asked += 1
        if self.redirect is not None and request.path != "/b.zip":
            request.send_response(302)
            request.send_header("Location", self.redirect)
            request.end_headers()
            return
        request.send_response(self.status)
        if self.says_length:
            request.send_header("Content-Length", str(len(self.content)))
        request.end_headers()
        request.wfile.write(self.content[: self.break_after])
        if self.pause is not None:
            self.pause.wait(20)


@contextmanager
def serving(behaviour: Behaviour) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            behaviour.answer(self)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/a.zip"
        finally:
            server.shutdown()
            thread.join()


Server = tuple[Behaviour, str]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "*")
    behaviour = Behaviour()
    with serving(behaviour) as url:
        yield behaviour, url


def fails(url: str, folder: Path, *expected: str, known_hash: str | None = None, limit: int = GIB) -> None:
    """One line that says all of this, and nothing in the folder has changed."""
    before = digests(folder)
    with pytest.raises(UserError) as caught:
        fetch(url, known_hash, folder, limit)
    assert all(part in str(caught.value) for part in (url, *expected)), caught.value
    assert "\n" not in str(caught.value)
    assert digests(folder) == before


@pytest.mark.parametrize("says_length", [True, False])
@pytest.mark.parametrize("known_hash", [None, SHA256])
def test_a_file_is_fetched_once_and_nothing_else_is_left(
    server: Server, known_hash: str | None, says_length: bool, tmp_path: Path
) -> None:
    server[0].says_length = says_length
    path = fetch(server[1], known_hash, tmp_path / "raw", GIB)
    assert path.read_bytes() == CONTENT
    assert path.name.endswith("a.zip")
    assert fetch(server[1], known_hash, tmp_path / "raw", GIB) == path
    assert server[0].asked == 1
    assert list((tmp_path / "raw").iterdir()) == [path]


def test_without_a_hash_a_file_of_the_same_name_from_elsewhere_is_another_one(server: Server, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/a.zip").write_bytes(b"other")
    other = fetch((tmp_path / "elsewhere/a.zip").as_uri(), None, tmp_path / "raw", GIB)
    assert fetch(server[1], None, tmp_path / "raw", GIB).read_bytes() == CONTENT
    assert other.read_bytes() == b"other"


def test_a_file_with_another_hash_is_fetched_again(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"old")
    assert fetch(server[1], SHA256, tmp_path, GIB).read_bytes() == CONTENT


@pytest.mark.parametrize("known_hash", [None, SHA256])
def test_a_connection_that_is_cut_leaves_no_file(server: Server, known_hash: str | None, tmp_path: Path) -> None:
    server[0].break_after = 100_000
    fails(server[1], tmp_path, "data.url", "could not be fetched", known_hash=known_hash)
    (tmp_path / "a.zip").write_bytes(b"old")
    fails(server[1], tmp_path, "data.url", "could not be fetched", known_hash=known_hash)
    server[0].break_after = None
    assert fetch(server[1], known_hash, tmp_path, GIB).read_bytes() == CONTENT


def test_a_silent_server_is_given_up(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TIMEOUT_S", 0.2)
    server[0].break_after, server[0].pause = 100_000, threading.Event()
    fails(server[1], tmp_path, "data.url", "timed out")
    server[0].pause.set()


@pytest.mark.parametrize("scheme", ["http", "file"])
def test_a_file_of_another_hash_is_refused(server: Server, scheme: str, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there/a.zip").write_bytes(CONTENT)
    url = server[1] if scheme == "http" else (tmp_path / "there/a.zip").as_uri()
    fails(url, tmp_path / "raw", "data.sha256", SHA256[7:], "0" * 64, known_hash="sha256:" + "0" * 64)


@pytest.mark.parametrize("says_length", [True, False])
def test_a_file_that_is_too_large_is_refused(server: Server, says_length: bool, tmp_path: Path) -> None:
    server[0].says_length = says_length
    fails(server[1], tmp_path, "run.max_download_gib", limit=299_999)
    assert fetch(server[1], None, tmp_path, 300_000).read_bytes() == CONTENT


def test_a_file_that_is_too_large_by_its_length_is_not_waited_for(server: Server, tmp_path: Path) -> None:
    server[0].break_after, server[0].pause = 0, threading.Event()
    fails(server[1], tmp_path, "run.max_download_gib", limit=299_999)
    server[0].pause.set()


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/a.zip", "data:text/plain,x"])
def test_redirects_to_other_schemes_are_not_followed(server: Server, target: str, tmp_path: Path) -> None:
    server[0].redirect = target
    fails(server[1], tmp_path, "data.url", target)


def test_redirects_to_another_page_are_followed(server: Server, tmp_path: Path) -> None:
    server[0].redirect = "/b.zip"
    assert fetch(server[1], SHA256, tmp_path, GIB).name == "a.zip"
    server[0].redirect = "/a.zip"
    fails(server[1], tmp_path, "data.url", "redirects")


@pytest.mark.parametrize("status", [404, 500])
def test_answers_that_are_none(server: Server, status: int, tmp_path: Path) -> None:
    server[0].status = status
    fails(server[1], tmp_path, "data.url", str(status))


def test_a_folder_that_cannot_be_written_is_no_error_of_the_url(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(RunError, match="could not be written"):
        fetch(server[1], None, tmp_path / "file" / "raw", GIB)


@pytest.mark.parametrize(
    "url",
    [
        "ftp://localhost/archive.zip",
        "/data/archive.zip",
        "file:///",
        "file:///nosuch/archive.zip",
        "file:///dev/zero",
        "http://127.0.0.1/x/..",
        "http://127.0.0.1/",
        "http://127.0.0.1:9/ü.zip",
        "http://[::1/archive.zip",
    ],
)
def test_urls_of_what_is_no_file(url: str, tmp_path: Path) -> None:
    fails(url, tmp_path, "data.url")
