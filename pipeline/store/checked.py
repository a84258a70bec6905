"""The tables that stages leave, read again: whole, with the columns and numbers that they should have, of this data."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from pathlib import Path

from pipeline.base import files
from pipeline.base.errors import UserError, damaged
from pipeline.store.dataset import DROPPED, SPLITS, Dataset, Labels

ISSUES = ("index", "name", "split", "is_label_issue", "score_kind", "given_label", "predicted_label")
ISSUE_NUMBERS = ("label_score", "predicted_score")


def table(
    path: Path, texts: Collection[str] = (), numbers: Collection[str] = (), gaps: bool = False
) -> Iterator[dict[str, str]]:
    """Yield the rows of a table.

    Args:
        texts, numbers: columns that it needs.
        gaps: whether a number may be left out.

    Raises:
        UserError: the table is missing, or damaged: a column is not there, a row is cut off, or no number stands where
            one should.
    """
    for count, row in enumerate(files.csv_rows(path), start=1):
        if missing := [name for name in (*texts, *numbers) if name not in row]:
            raise damaged(path, f"lacks the column {missing[0]!r}")
        if None in row or None in row.values():
            raise damaged(path, f"row {count} is cut off")
        for name in numbers:
            if not (_is_number(row[name]) or (gaps and not row[name])):
                raise damaged(path, f"row {count}: {name} is {row[name]!r}, expected a number")
        yield row


def label_issues(dataset: Dataset, labels: Labels) -> Iterator[dict[str, str]]:
    """Yield the rows of reports/label_issues.csv, the most suspicious first: one for each sample that nobody has
    dropped.

    Raises:
        UserError: the table is missing, damaged, incomplete, or was made from other labels.
    """
    path, classes = files.LABEL_ISSUES, {*dataset.class_names}
    dropped = labels.split == DROPPED
    left = ~dropped
    for row in table(path, ISSUES, ISSUE_NUMBERS):
        if not (row["index"].isdecimal() and int(row["index"]) < len(left)) or row["split"] not in SPLITS:
            raise damaged(path, f"found sample {row['index']!r} of the split {row['split']!r}")
        if (listed := row["is_label_issue"].capitalize()) not in (
            "True",
            "False",
        ):  # spreadsheets: TRUE, VRAI
            raise damaged(path, f"{row['name']} has is_label_issue {row['is_label_issue']!r}, expected True or False")
        row["is_label_issue"] = listed
        at = int(row["index"])
        expected = dataset.names[at], dataset.class_names[labels.labels[at]]
        if (row["name"], row["given_label"]) != expected or row["predicted_label"] not in classes:
            raise UserError(
                f"{path}: was made from other labels (sample {row['index']} is {row['name']} with the label "
                f"{row['given_label']!r}, expected {expected[0]} with {expected[1]!r}); run `dvc repro`"
            )
        if dropped[at]:  # since the table was made
            continue
        if not left[at]:
            raise damaged(path, f"has {row['name']} twice")
        left[at] = False
        yield row
    if left.any():
        at = int(left.argmax())
        of = int((~dropped).sum())
        raise damaged(path, f"lacks {int(left.sum())} of {of} samples, {dataset.names[at]} first")


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
