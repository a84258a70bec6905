"""A person's folder: what is in it, whether it may be read, and how to show its names."""

from __future__ import annotations

import os
import re
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from pipeline.base.errors import UserError

SHOWN = 5

_DRIVE = re.compile(r"[A-Za-z]:")


def contents(root: Path) -> tuple[list[str], list[str]]:
    """The files below `root`, and what is there without being a file or folder: pipes, links that lead nowhere.

    Both are relative to `root` and sorted. Links are followed wherever they lead, as people link data from other disks.

    Raises:
        UserError: a folder cannot be read; otherwise its images would be missing unnoticed.
    """
    files: list[str] = []
    others: list[str] = []
    left = [(root, "", frozenset[tuple[int, int]]())]
    while left:
        folder, prefix, above = left.pop()
        with readable(folder):
            about = folder.stat()
            if (key := (about.st_dev, about.st_ino)) in above:  # a link to a folder that it lies in
                continue
            with os.scandir(folder) as entries:
                for entry in entries:
                    name = prefix + entry.name
                    # An entry knows its type, but of a link to itself it raises, where a path says no.
                    found = Path(entry.path) if entry.is_symlink() else entry
                    if found.is_dir():
                        left.append((folder / entry.name, f"{name}/", above | {key}))
                    else:
                        (files if found.is_file() else others).append(name)
    return sorted(files), sorted(others)


def require(root: Path, names: Sequence[str]) -> None:
    """Check that files exist before hours of decoding begin. Only regular files count: a pipe would never end.

    Raises:
        UserError: files are missing.
    """
    if missing := [name for name in names if not os.path.isfile(root / name)]:  # noqa: PTH113 (pathlib raises for a long path)
        raise UserError(
            f"data.root: {root}: {len(missing)} of {len(names)} listed files are missing: {first_few(missing)}"
        )


def read_start(path: Path, most: int) -> bytes:
    """The first `most` bytes of a file.

    Raises:
        UserError: the file cannot be read.
    """
    with readable(path), path.open("rb") as file:
        return file.read(most)


@contextmanager
def readable(path: Path | str, key: str = "data.root") -> Iterator[None]:
    """Turn an OSError of the block into a message that names the parameter and the path.

    Raises:
        UserError: the file or folder does not exist or cannot be read.
    """
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{key}: {path}: no such file") from None
    except OSError as error:
        raise UserError(f"{key}: {path}: not readable ({error})") from error


def file_type(path: Path) -> int:
    """The type of what is there, as in `stat.S_IFMT`; 0 for nothing.

    Raises:
        UserError: the folder above may not be searched. (From Python 3.14 on, pathlib would report nothing there.)
    """
    with readable(path):
        try:
            return stat.S_IFMT(path.stat().st_mode)
        except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: no path at all
            return 0


def first_few(names: Iterable[str], separator: str = "; ") -> str:
    """The first five names, and how many more there are."""
    listed = list(names)
    more = f"{separator}and {len(listed) - SHOWN} more" if len(listed) > SHOWN else ""
    return separator.join(listed[:SHOWN]) + more


def is_hidden(name: str) -> bool:
    """Whether a name looks like what file managers leave behind, such as macOS's __MACOSX/…/._name.png."""
    parts = (part for part in PurePosixPath(name).parts if part != "..")
    return any(part.startswith(".") or part == "__MACOSX" for part in parts)


def is_text(name: str) -> bool:
    """Whether a name is UTF-8. Other names come as lone surrogates, which no table or page can hold."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def is_inside(name: str) -> bool:
    r"""Whether a name stays below its root on every system: relative, without `..`, a drive or `\`."""
    return not (name.startswith("/") or "\\" in name or _DRIVE.match(name) or ".." in name.split("/"))


def printable(name: str) -> str:
    """The name as any terminal can show it in one line."""
    return name if name.isprintable() else ascii(name)


def repeated(names: Iterable[str]) -> list[str]:
    """The names that occur more than once, however they are written (a/b, a//b, a/./b)."""
    counts = Counter(str(PurePosixPath(name)) for name in names)
    return [name for name, count in counts.items() if count > 1]
