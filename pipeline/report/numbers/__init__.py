"""The numbers that the paper prints, a CSV a table."""

from __future__ import annotations

import csv
from importlib import resources

Published = dict[str, dict[str, tuple[float, float | None]]]
"""method → column → accuracy and its standard error, in percent."""


def published(file: str | None) -> Published:
    """One of the paper's tables; empty for None."""
    if file is None:
        return {}
    text = resources.files(__name__).joinpath(file).read_text(encoding="utf-8")
    found: Published = {}
    for row in csv.DictReader(text.splitlines()):
        first, *others = row
        found[row[first]] = {
            key: (float(row[key]), float(error) if (error := row.get(f"stderr_{key}")) else None)
            for key in others
            if row[key] and not key.startswith("stderr_")
        }
    return found
