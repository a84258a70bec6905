"""Downloads from a server that does what servers on bad days do."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from projects import digests

from pipeline import console, files
from pipeline.errors import RunError, UserError
from pipeline.sources import fetch as module
from pipeline.sources.archives import GIB
from pipeline.sources.fetch import fetch

CONTENT = np.random.default_rng(0).bytes(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
VERSION = {"ETag": '"one"'}
PART, NOTE = ".a.zip.part", ".a.zip.part.json"


@dataclass
class Behaviour:
    """How the server answers; changed by tests between two downloads."""

    content: bytes = CONTENT
    headers: dict[str, str] = field(default_factory=lambda: dict(VERSION))
    ranges: bool = True
    break_after: int | None = None
    length: int | None = None
    redirect: str | None = None
    status: int | None = None
    range_start: int | None = None
    pause: threading.Event | None = None
    asked: list[tuple[str | None, str | None]] = field(default_factory=list)

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        wanted = request.headers.get("Range")
        self.asked.append((wanted, request.headers.get("If-Range")))
        if self.redirect is not None and request.path != "/b.zip":
            request.send_response(302)
            request.send_header("Location", self.redirect)
            request.end_headers()
            return
        same = request.headers.get("If-Range") in self.headers.values()
        start = int(wanted[6:-1]) if wanted and self.ranges and same else 0
        if start >= len(self.content):
            request.send_error(416)
            return
        request.send_response(self.status or (206 if start else 200))
        if start:
            shown = start if self.range_start is None else self.range_start
            request.send_header("Content-Range", f"bytes {shown}-{len(self.content) - 1}/{len(self.content)}")
        for name, value in self.headers.items():
            request.send_header(name, value)
        if self.length != -1:
            request.send_header("Content-Length", str(self.length or len(self.content) - start))
        request.end_headers()
        body = self.content[start:]
        request.wfile.write(body[: self.break_after])
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


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Behaviour, str]]:
    monkeypatch.setenv("no_proxy", "*")
    behaviour = Behaviour()
    with serving(behaviour) as url:
        yield behaviour, url


Server = tuple[Behaviour, str]


def fails(url: str, folder: Path, *expected: str, sha256: str | None = None, limit: int = GIB) -> None:
    with pytest.raises(UserError) as caught:
        fetch(url, sha256, folder, limit)
    assert all(part in str(caught.value) for part in expected), caught.value
    assert "\n" not in str(caught.value)


def names(folder: Path) -> list[str]:
    return sorted(digests(folder))


@pytest.mark.parametrize("length", [None, -1])
@pytest.mark.parametrize("sha256", [None, SHA256])
def test_a_file_is_fetched_and_nothing_else_is_left(
    server: Server, sha256: str | None, length: int | None, tmp_path: Path
) -> None:
    server[0].length = length
    assert fetch(server[1], sha256, tmp_path, GIB).read_bytes() == CONTENT
    assert names(tmp_path) == ["a.zip"]
    fetch(server[1], sha256, tmp_path, GIB)
    assert len(server[0].asked) == (2 if sha256 is None else 1)  # only a checksum says that a copy is intact


@pytest.mark.parametrize("headers", [VERSION, {"Last-Modified": "Tue, 01 Jan 2019 00:00:00 GMT"}])
def test_a_truncated_download_is_an_error_and_goes_on_from_there(
    server: Server, headers: dict[str, str], tmp_path: Path
) -> None:
    behaviour, url = server
    behaviour.headers, behaviour.break_after = headers, 100_000
    fails(url, tmp_path, "data.url", url, "ended after 100000 of 300000 bytes; 100000 bytes", sha256=SHA256)
    assert names(tmp_path) == [PART, NOTE]
    fails(url, tmp_path, "ended after 200000 of 300000 bytes")
    behaviour.break_after = None
    assert fetch(url, SHA256, tmp_path, GIB).read_bytes() == CONTENT
    validator = next(iter(headers.values()))
    assert behaviour.asked == [(None, None), ("bytes=100000-", validator), ("bytes=200000-", validator)]
    assert names(tmp_path) == ["a.zip"]


def start(server: Server, folder: Path, size: int = 100_000) -> None:
    """The first bytes of a download, and then the end of it."""
    server[0].break_after = size
    fails(server[1], folder, "ended after")
    server[0].break_after = None
    server[0].asked.clear()


OTHER = CONTENT[::-1]


@pytest.mark.parametrize(
    ("change", "requests"),
    [
        ({"content": OTHER, "headers": {"ETag": '"two"'}}, 1),
        ({"content": OTHER, "ranges": False}, 1),
        ({"content": OTHER, "range_start": 99_999}, 2),
        ({"content": OTHER[:90_000]}, 2),
    ],
    ids=["another version", "no ranges", "another range", "shorter now"],
)
def test_a_download_that_cannot_go_on_begins_anew(
    server: Server, change: dict[str, Any], requests: int, tmp_path: Path
) -> None:
    start(server, tmp_path)
    for key, value in change.items():
        setattr(server[0], key, value)
    assert fetch(server[1], None, tmp_path, GIB).read_bytes() == server[0].content
    assert len(server[0].asked) == requests
    assert names(tmp_path) == ["a.zip"]


@pytest.mark.parametrize("headers", [{}, {"ETag": 'W/"weak"'}])
def test_a_download_without_a_version_begins_anew(server: Server, headers: dict[str, str], tmp_path: Path) -> None:
    """Nobody can know that the rest belongs to the beginning."""
    server[0].headers = headers
    start(server, tmp_path)
    assert names(tmp_path) == []
    assert fetch(server[1], None, tmp_path, GIB).read_bytes() == CONTENT
    assert server[0].asked == [(None, None)]


@pytest.mark.parametrize("note", ["{", "[]", "{}", '{"url": "http://other/a.zip", "validator": "\\"one\\""}'])
def test_a_part_of_something_else_is_not_gone_on_from(server: Server, note: str, tmp_path: Path) -> None:
    start(server, tmp_path)
    (tmp_path / NOTE).write_text(note, encoding="utf-8")
    assert fetch(server[1], SHA256, tmp_path, GIB).read_bytes() == CONTENT
    assert server[0].asked == [(None, None)]


def test_a_part_that_was_spoiled_is_found_by_the_checksum_and_removed(server: Server, tmp_path: Path) -> None:
    start(server, tmp_path)
    (tmp_path / PART).write_bytes(bytes(100_000))
    fails(server[1], tmp_path, "data.sha256", f"expected {SHA256}", sha256=SHA256)
    assert names(tmp_path) == []
    assert fetch(server[1], SHA256, tmp_path, GIB).read_bytes() == CONTENT


def test_an_old_copy_stays_until_the_new_one_is_whole(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"old")
    start(server, tmp_path)
    assert (tmp_path / "a.zip").read_bytes() == b"old"
    fetch(server[1], SHA256, tmp_path, GIB)
    assert (tmp_path / "a.zip").read_bytes() == CONTENT


@pytest.mark.parametrize("length", [None, -1], ids=["by its length", "while it comes"])
def test_a_file_that_is_too_large_is_refused(server: Server, length: int | None, tmp_path: Path) -> None:
    server[0].length = length
    fails(server[1], tmp_path, "run.max_download_gib", server[1], "300000 bytes, more than", limit=299_999)
    assert names(tmp_path) == []
    assert fetch(server[1], None, tmp_path, 300_000).read_bytes() == CONTENT


@pytest.mark.parametrize(
    "target", ["file:///etc/passwd", "ftp://127.0.0.1/a.zip", "data:text/plain,x", "gopher://127.0.0.1/x"]
)
def test_redirects_to_other_schemes_are_not_followed(server: Server, target: str, tmp_path: Path) -> None:
    server[0].redirect = target
    fails(server[1], tmp_path, "data.url", server[1], target)
    assert names(tmp_path) == []


def test_redirects_to_another_page_are_followed_and_gone_on_from(server: Server, tmp_path: Path) -> None:
    server[0].redirect = "/b.zip"
    start(server, tmp_path)
    assert fetch(server[1], SHA256, tmp_path, GIB).name == "a.zip"
    assert server[0].asked == [("bytes=100000-", '"one"')] * 2


def test_redirects_in_a_circle_end(server: Server, tmp_path: Path) -> None:
    server[0].redirect = "/a.zip"
    fails(server[1], tmp_path, "data.url", "could not be fetched")


@pytest.mark.parametrize("status", [404, 500, 206])
def test_answers_that_are_none(server: Server, status: int, tmp_path: Path) -> None:
    server[0].status = status
    fails(server[1], tmp_path, "data.url", server[1], "could not be fetched")
    assert names(tmp_path) == []


def test_a_server_that_is_gone_leaves_what_has_arrived(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    with serving(Behaviour(break_after=100_000)) as url:
        fails(url, tmp_path, "ended after")
    fails(url, tmp_path, "data.url", "refused", "100000 bytes have arrived")
    assert (tmp_path / PART).read_bytes() == CONTENT[:100_000]


def test_a_silent_server_is_given_up(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TIMEOUT_S", 0.2)
    server[0].break_after, server[0].pause = 100_000, threading.Event()
    fails(server[1], tmp_path, "timed out", "the same command goes on")
    server[0].pause.set()
    assert 0 < (tmp_path / PART).stat().st_size <= 100_000


def test_two_at_once_fetch_one_file(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second waits for the first and takes its file."""
    behaviour, url = server
    said: list[str] = []
    monkeypatch.setattr(console, "say", said.append)
    behaviour.pause = threading.Event()
    with ThreadPoolExecutor(2) as pool:
        running = [pool.submit(fetch, url, SHA256, tmp_path, GIB) for _ in range(2)]
        while not said:
            assert not any(future.done() for future in running)
            time.sleep(0.01)
        assert "another process is fetching it" in said[0]
        behaviour.pause.set()
        assert [future.result(timeout=20).read_bytes() for future in running] == [CONTENT] * 2
    assert len(behaviour.asked) == 1
    assert names(tmp_path) == ["a.zip"]


def test_a_disk_without_room_is_no_error_of_the_url(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module, "_receive", full)
        with pytest.raises(RunError, match=r"a\.zip: could not be written: .*No space left"):
            fetch(server[1], None, tmp_path, GIB)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(RunError, match="could not be written"):
        fetch(server[1], None, tmp_path / "file" / "raw", GIB)


def test_the_note_says_where_a_part_is_from(server: Server, tmp_path: Path) -> None:
    start(server, tmp_path)
    note = json.loads((tmp_path / NOTE).read_text(encoding="utf-8"))
    assert note == {"url": server[1], "validator": '"one"'}
    assert files.file_digest(tmp_path / PART) == hashlib.sha256(CONTENT[:100_000]).hexdigest()


@pytest.mark.parametrize("url", ["file:///dev/zero", "http://127.0.0.1/x/..", "http://127.0.0.1/"])
def test_urls_of_what_is_no_file(url: str, tmp_path: Path) -> None:
    fails(url, tmp_path, "data.url", url)
    assert names(tmp_path) == []


def test_an_address_that_cannot_be_sent_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^data\.url: http://127\.0\.0\.1:9/ü\.zip could not be fetched"):
        fetch("http://127.0.0.1:9/ü.zip", None, tmp_path, GIB)
    assert list(tmp_path.iterdir()) == []
