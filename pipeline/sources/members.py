"""The names of what is in a container: which nobody can trust, and how to show them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import NamedTuple

SHOWN = 5

_DRIVE = re.compile(r"[A-Za-z]:")


class Members(NamedTuple):
    """What is in a container, by path inside it, with `/`.

    Attributes:
        files: in sorted order.
        others: links in an archive, links that lead nowhere, devices, pipes: things without bytes of their own.
    """

    files: list[str]
    others: list[str]


def first_few(names: Iterable[str], separator: str = "; ") -> str:
    """The first five, and how many more there are."""
    listed = list(names)
    more = f"{separator}and {len(listed) - SHOWN} more" if len(listed) > SHOWN else ""
    return separator.join(listed[:SHOWN]) + more


def is_hidden(name: str) -> bool:
    """What file managers leave behind, such as macOS's __MACOSX/…/._name.png."""
    parts = (part for part in PurePosixPath(name).parts if part != "..")
    return any(part.startswith(".") or part == "__MACOSX" for part in parts)


def is_text(name: str) -> bool:
    """Names in another encoding come as lone surrogates, which no table or page can hold."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def is_inside(name: str) -> bool:
    r"""Whether a name stays below its root on every system: relative, without `..`, a drive or `\`."""
    return not (name.startswith("/") or "\\" in name or _DRIVE.match(name) or ".." in name.split("/"))


def printable(name: str) -> str:
    """As it can be shown in one line of any terminal."""
    return name if name.isprintable() else ascii(name)


def repeated(names: Iterable[str]) -> list[str]:
    """The names that occur more than once, however they are written (a/b, a//b, a/./b)."""
    counts = Counter(str(PurePosixPath(name)) for name in names)
    return [name for name, count in counts.items() if count > 1]
