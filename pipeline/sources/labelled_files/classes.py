"""Class names: their order, which is that of the label numbers, and names that look alike."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from decimal import Decimal

from pipeline.base import console
from pipeline.sources.places.folder import first_few, printable

_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?")


def in_order(names: Iterable[str]) -> list[str]:
    """Numbers in counting order (2 before 10), where all are numbers; else by the characters' numbers."""
    found = set(names)
    if all(_NUMBER.fullmatch(name) for name in found):
        return sorted(found, key=lambda name: (Decimal(name), name))
    return sorted(found)


def warn_of_alike(names: Sequence[str]) -> None:
    """Of classes that a person may have meant to be one."""
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(_seen(name), []).append(name)
    if found := [" and ".join(map(ascii, same)) for same in alike.values() if len(same) > 1]:
        console.warn(
            f"data.root: {len(found)} classes have names that differ in case, blanks, zeros or the coding of a "
            f"character alone, and are taken for different ones: {first_few(map(printable, found))}; if they are one, "
            "give them one name"
        )


def _seen(name: str) -> str:
    if _NUMBER.fullmatch(name):
        return str(Decimal(name).normalize())
    return " ".join(unicodedata.normalize("NFKC", name).casefold().split())
