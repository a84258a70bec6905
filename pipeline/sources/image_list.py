"""A CSV file that lists images: path, label and, where it has the column, split."""

from __future__ import annotations

import csv
import os
import re
import stat
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from pipeline import console
from pipeline.errors import UserError
from pipeline.places.folder import file_type, first_few, printable, readable
from pipeline.sources.listing import SPLIT_NAMES, Sample

DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab"}

_BLANK_AFTER_QUOTE = re.compile(r'(?<!")" +(?=[,;\t\r\n]|$)')
"""What the strict reader, which alone finds a quote that nobody closes, would refuse."""


def read_table(path: Path) -> list[Sample]:
    """As `rows`, without those that list a file again under the same label and split, of which it warns.

    Raises:
        UserError: as `rows`.
    """
    return _once(path, rows(path))


def rows(path: Path) -> list[Sample]:
    """The rows of a CSV file.

    The columns may be separated by commas, semicolons or tabs, and have blanks around them.

    Raises:
        UserError: no such file, one that cannot be read, other columns, or a row that has other fields or names no
            file, class or split.
    """
    with _opened(path) as file:
        return list(_samples(path, file))


def paths(path: Path) -> list[str]:
    """The column `path` of a CSV file, whatever other columns it has.

    Raises:
        UserError: as `rows`.
    """
    with _opened(path) as file:
        return [record["path"] for _, record in _records(path, file, ("path",))]


@contextmanager
def _opened(path: Path) -> Iterator[TextIO]:
    if file_type(path) not in (0, stat.S_IFREG):
        raise UserError(
            f"data.root: {path}: ends in .csv and is no file; expected a table with the columns path,label, or a "
            "folder of another name"
        )
    try:
        with readable(path), path.open(encoding="utf-8-sig", newline="") as file:
            yield file
    except UnicodeDecodeError as error:
        raise UserError(
            f"data.root: {path}: not readable as CSV: found another encoding ({error}), expected UTF-8; save it as that"
        ) from error
    except (ValueError, csv.Error) as error:  # no path at all, or a quote that nobody closes
        raise UserError(
            f"data.root: {path}: not readable as CSV: {error}; a field with a quote in it stands in quotes, and the "
            "quote in it twice"
        ) from error


def _samples(path: Path, lines: Iterable[str]) -> Iterator[Sample]:
    for here, record in _records(path, lines, ("path", "label")):
        split = record.get("split", "train")
        if split not in SPLIT_NAMES or not record["label"]:
            raise UserError(
                f"data.root: {path}, line {here}: found {record}, expected a path, a label and, in a column split, one "
                f"of {', '.join(SPLIT_NAMES)}"
            )
        yield Sample(record["path"], record["label"], SPLIT_NAMES[split], -1)


def _records(path: Path, lines: Iterable[str], needed: Collection[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows that are not empty, each with the number of its line; the file that a row names exists."""
    numbered = enumerate((_BLANK_AFTER_QUOTE.sub('"', line) for line in lines), start=1)
    first, header = next(((number, line) for number, line in numbered if line.strip()), (0, ""))
    delimiter, columns = _columns(path, header, needed)
    reader = csv.reader((line for _, line in numbered), delimiter=delimiter, skipinitialspace=True, strict=True)
    last = first
    for row in reader:
        last, here = first + reader.line_num, last + 1
        fields = [field.strip() for field in row]
        if not any(fields):
            continue
        if len(fields) != len(columns):
            raise UserError(
                f"data.root: {path}, line {here}: found {len(fields)} fields, {fields}, expected {len(columns)}, "
                f"{columns}; a {DELIMITERS[delimiter]} that belongs to a field needs quotes around the field"
            )
        record = dict(zip(columns, fields, strict=True))
        if not (name := record["path"]):
            raise UserError(f"data.root: {path}, line {here}: found {record}, expected a path")
        if not os.path.isfile(path.parent / name):  # noqa: PTH113 (pathlib raises for a long path)
            raise UserError(f"data.root: {path}, line {here}: no such file: {printable(name)}")
        yield here, record


def _columns(path: Path, header: str, needed: Collection[str]) -> tuple[str, list[str]]:
    """The delimiter that makes the needed columns, and all columns."""
    found = {
        delimiter: [name.strip() for name in next(csv.reader([header], delimiter=delimiter, skipinitialspace=True), [])]
        for delimiter in DELIMITERS
    }
    for delimiter, columns in found.items():
        if set(needed) <= set(columns):
            if twice := sorted({name for name in columns if name and columns.count(name) > 1}):
                raise UserError(
                    f"data.root: {path}: found more than one column called {' and '.join(twice)}, expected one of "
                    "each; rename or remove the others"
                )
            return delimiter, columns
    wanted = "the columns path,label[,split]" if "label" in needed else "a column path"
    raise UserError(
        f"data.root: {path}: expected {wanted}, found {printable(header.strip())} in its first "
        "line; commas, semicolons or tabs separate them"
    )


def _once(path: Path, samples: list[Sample]) -> list[Sample]:
    """Without those that come again; another label or split for the same file stays, to be found among equal images."""
    known: set[tuple[str, int, str]] = set()
    again: list[str] = []
    left: list[Sample] = []
    for sample, place in zip(samples, _places(path.parent, samples), strict=True):
        if (entry := (sample.label, sample.split, place)) in known:
            again.append(sample.path)
        else:
            known.add(entry)
            left.append(sample)
    if again:
        console.warn(
            f"data.root: {path}: {len(again)} rows list a file again with the same label, and are left out: "
            f"{first_few(map(printable, again))}; remove them"
        )
    return left


def _places(root: Path, samples: Sequence[Sample]) -> Iterator[str]:
    """Where each file is, however its path is written. Only where two may be the same one all of the path is looked
    at."""
    keys = []
    for sample in samples:
        about = (root / sample.path).stat()
        keys.append((about.st_dev, about.st_ino))
    counts: dict[tuple[int, int], int] = {}
    for key in keys:
        counts[key] = counts.get(key, 0) + 1
    for sample, key in zip(samples, keys, strict=True):
        yield os.path.realpath(root / sample.path) if counts[key] > 1 else sample.path
