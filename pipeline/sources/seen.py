"""A look at a person's files: their names, sizes and SHA-256, so that a change of any of them is a change of the data.

The sums are remembered in the user's cache, beside each file's size and times: a file with none of them changed is not
read again. The list itself has no time, and no place of this machine.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import stat
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import NamedTuple

from pipeline.base import console, files
from pipeline.base.errors import UserError
from pipeline.sources.labelled_files.csv_list import rows
from pipeline.sources.places.folder import contents, file_type, printable, readable

THREADS = 8
AT_ONCE = 4096
"""Files that are read before their sums are remembered: a look that is stopped goes on from there."""


class Seen(NamedTuple):
    """A file by its name below the place that was looked at."""

    name: str
    size: int
    sha256: str


def look(place: Path, lists: bool = True) -> list[Seen]:
    """What is there: a file; a folder with all in it; a .csv file with the files that it lists.

    Args:
        lists: whether images are looked for: in a folder, or those that a .csv file lists. If not, it is one file.

    Raises:
        UserError: nothing is there, or a folder instead of a file; a file or folder cannot be read; or `rows` fails.
    """
    if not (kind := file_type(place)):
        raise UserError(f"data.root: {place}: no such file or folder")
    if kind == stat.S_IFDIR:
        if not lists:
            raise UserError(f"data.root: {place}: found a folder, expected a file")
        return _sums(place, contents(place)[0])
    found = _sums(place.parent, [place.name])
    if lists and place.suffix.lower() == ".csv":
        folder, samples = rows(place)
        found += _sums(folder, sorted({sample.path for sample in samples} - {place.name}))
    return found


def digest(seen: Iterable[Seen]) -> str:
    """One SHA-256 for all of them: what `data.sha256` is for a folder."""
    found = hashlib.sha256()
    for each in seen:
        found.update(f"{printable(each.name)},{each.size},{each.sha256}\n".encode())
    return found.hexdigest()


def content(place: Path, lists: bool = True) -> str:
    """What is there, whatever the place is called: the SHA-256 of a file, `digest` of a folder or a list of images.

    Args:
        lists: as in `look`.

    Raises:
        UserError: as `look` does.
    """
    found = look(place, lists)
    is_file = file_type(place) == stat.S_IFREG and not (lists and place.suffix.lower() == ".csv")
    return found[0].sha256 if is_file else digest(found)


def check_folder(place: Path, expected: str | None) -> None:
    """Compare a folder, or a .csv file with what it lists, with `data.sha256`; None takes anything.

    Raises:
        UserError: it is another one.
    """
    if expected is not None and (found := digest(look(place))) != expected:
        raise UserError(
            f"data.sha256: {place} has {found}, over the names, sizes and sums of all its files; expected {expected}"
        )


def _sums(root: Path, names: list[str]) -> list[Seen]:
    with closing(_Memory(root)) as memory:
        known = memory.read()
        about = {name: _size_and_times(os.path.join(root, name)) for name in names}  # noqa: PTH118 (of a million)
        new = [name for name in names if known.get(name, ("", ""))[:2] != about[name]]
        sums: dict[str, str] = {}
        with ThreadPoolExecutor(THREADS) as pool, console.progress("look", len(new), "file") as bar:
            for at in range(0, len(new), AT_ONCE):
                part = new[at : at + AT_ONCE]
                found = dict(zip(part, pool.map(lambda name: _sha256(root / name), part), strict=True))
                memory.write([(name, *about[name], found[name]) for name in part])
                sums |= found
                bar.at(len(sums) - 1)
    return [Seen(name, about[name][0], sums.get(name) or known[name][2]) for name in names]


def _size_and_times(path: str) -> tuple[int, str]:
    """The second time, of any change, is set by the system alone: `cp -p` and archives bring the first one along."""
    with readable(path):
        found = os.stat(path)  # noqa: PTH116
    return found.st_size, f"{found.st_mtime_ns} {found.st_ctime_ns}"


def _sha256(path: Path) -> str:
    with readable(path):
        return files.file_digest(path)


class _Memory:
    """What was seen of a folder before; a cache that cannot be used costs time alone."""

    def __init__(self, root: Path) -> None:
        self._database: sqlite3.Connection | None = None
        name = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:16]
        with suppress(OSError, sqlite3.Error, RuntimeError):  # RuntimeError: there is no home
            cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mlnt"
            cache.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(cache / f"seen-{name}.sqlite", timeout=60)
            self._database.execute("CREATE TABLE IF NOT EXISTS seen (name BLOB PRIMARY KEY, size, time, sha256)")

    def read(self) -> dict[str, tuple[int, str, str]]:
        if self._database is None:
            return {}
        with suppress(sqlite3.Error):
            rows = self._database.execute("SELECT name, size, time, sha256 FROM seen")
            return {os.fsdecode(name): (size, time, sha256) for name, size, time, sha256 in rows}
        return {}

    def write(self, rows: list[tuple[str, int, str, str]]) -> None:
        if self._database is not None and rows:
            with suppress(sqlite3.Error), self._database:
                encoded = [(os.fsencode(name), *rest) for name, *rest in rows]
                self._database.executemany("INSERT OR REPLACE INTO seen VALUES (?, ?, ?, ?)", encoded)

    def close(self) -> None:
        if self._database is not None:
            self._database.close()
