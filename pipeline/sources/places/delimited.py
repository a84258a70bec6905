"""A table of text that a person or a spreadsheet saved: UTF-8, with commas, semicolons or tabs between its columns."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from pipeline.base.errors import UserError
from pipeline.sources.places.folder import printable, readable

DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab"}

_QUOTED = re.compile(r'(?<![^,;\t])( *"[^"]*(?:""[^"]*)*") *(?=[,;\t\r\n]|$)')
"""A quoted field with the blanks after it, which the strict reader, which alone finds a quote that nobody closes, would
refuse."""


def rows(
    path: Path, key: str, needed: Sequence[str], optional: Sequence[str] = ()
) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the line and the fields, by column, of each row that is not empty. Other columns are left out; a column's
    name may have capital letters.

    Args:
        key: the parameter that names the file, for messages.

    Raises:
        UserError: no such file, one that cannot be read, needed columns that are missing, or a row that has more or
            fewer fields than the first line.
    """
    try:
        with readable(path, key), path.open(encoding="utf-8-sig", newline="") as file:
            yield from _rows(f"{key}: {path}", file, needed, optional)
    except UnicodeDecodeError as error:
        raise UserError(
            f"{key}: {path}: not readable as CSV: found another encoding ({error}), expected UTF-8; save it as that"
        ) from error
    except (ValueError, csv.Error) as error:  # no path at all, or a quote that nobody closes
        raise UserError(
            f"{key}: {path}: not readable as CSV: {error}; a field with a quote in it stands in quotes, and the "
            "quote in it twice"
        ) from error


def _rows(
    place: str, lines: Iterable[str], needed: Sequence[str], optional: Sequence[str]
) -> Iterator[tuple[int, dict[str, str]]]:
    numbered = enumerate((_QUOTED.sub(r"\1", line) for line in lines), start=1)
    first, header = next(((number, line) for number, line in numbered if line.strip()), (0, ""))
    delimiter, columns = _columns(place, header, needed, optional)
    at = {name: columns.index(name) for name in (*needed, *optional) if name in columns}
    reader = csv.reader((line for _, line in numbered), delimiter=delimiter, skipinitialspace=True, strict=True)
    last = first
    for fields in reader:
        last, here = first + reader.line_num, last + 1
        if not any(field.strip() for field in fields):
            continue
        if len(fields) != len(columns):
            raise UserError(
                f"{place}, line {here}: found {len(fields)} fields, {fields}, expected {len(columns)}, "
                f"{columns}; a {DELIMITERS[delimiter]} that belongs to a field needs quotes around the field"
            )
        yield here, {name: fields[i] for name, i in at.items()}


def _columns(place: str, header: str, needed: Sequence[str], optional: Sequence[str]) -> tuple[str, list[str]]:
    """The delimiter that makes the needed columns, and all columns."""
    found = {
        delimiter: [
            name.strip().lower() for name in next(csv.reader([header], delimiter=delimiter, skipinitialspace=True), [])
        ]
        for delimiter in DELIMITERS
    }
    for delimiter, columns in found.items():
        if set(needed) <= set(columns):
            if twice := [name for name in (*needed, *optional) if columns.count(name) > 1]:
                raise UserError(
                    f"{place}: found more than one column called {' and '.join(twice)}, expected one of "
                    "each; rename or remove the others"
                )
            return delimiter, columns
    expected = ",".join(needed) + "".join(f"[,{name}]" for name in optional)
    raise UserError(
        f"{place}: expected the columns {expected}, found {printable(header.strip()) or 'nothing'} in its first line; "
        "commas, semicolons or tabs separate them"
    )
