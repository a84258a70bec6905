"""A CSV file that lists images: path, label and, where it has the columns, split and true_label."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline.base import console, files
from pipeline.base.errors import UserError
from pipeline.sources.labelled_files.sample import SPLIT_NAMES, Sample
from pipeline.sources.places import delimited
from pipeline.sources.places.folder import file_type, first_few, printable


def read_table(path: Path) -> tuple[Path, list[Sample]]:
    """As `rows`, without those that list a file again under the same labels and split, of which it warns.

    Raises:
        UserError: as `rows`.
    """
    folder, samples = rows(path)
    return folder, _once(path, folder, samples)


def rows(path: Path) -> tuple[Path, list[Sample]]:
    """The rows of a CSV file, as `delimited.rows` reads it, and the folder that their paths start at: its own, or the
    project's one as `files.holding` says, since git may know the list and not the images.

    Raises:
        UserError: as `delimited.rows`, or no file, or a row that names no file, class or split, or no true label where
            others do.
    """
    folder = files.holding(path.parent, (row["path"] for _, row in _rows(path, ("path",), ())))
    samples = list(_samples(path, folder))
    without = [sample.path for sample in samples if sample.true_label is None]
    if 0 < len(without) < len(samples):
        raise UserError(
            f"data.root: {path}: {len(without)} of {len(samples)} rows have no true_label: "
            f"{first_few(map(printable, without))}; expected one in every row, or in none"
        )
    return folder, samples


def paths(path: Path) -> list[str]:
    """The column `path` of a CSV file, whatever other columns it has.

    Raises:
        UserError: as `rows`.
    """
    return [_existing(path, path.parent, line, row) for line, row in _rows(path, ("path",), ())]


def _rows(path: Path, needed: Sequence[str], optional: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    if file_type(path) not in (0, stat.S_IFREG):
        raise UserError(
            f"data.root: {path}: ends in .csv and is no file; expected a table with the columns path,label, or a "
            "folder of another name"
        )
    for line, row in delimited.rows(path, "data.root", needed, optional):
        yield line, {column: field.strip() for column, field in row.items()}


def _samples(path: Path, folder: Path) -> Iterator[Sample]:
    for line, row in _rows(path, ("path", "label"), ("split", "true_label")):
        split = row.get("split", "train").lower()
        if split not in SPLIT_NAMES or not row["label"]:
            raise UserError(
                f"data.root: {path}, line {line}: found {row}, expected a path, a label and, in a column split, one of "
                f"{', '.join(SPLIT_NAMES)}"
            )
        true = row.get("true_label") or None
        yield Sample(_existing(path, folder, line, row), row["label"], SPLIT_NAMES[split], -1, true)


def _existing(path: Path, folder: Path, line: int, row: dict[str, str]) -> str:
    if not row["path"]:
        raise UserError(f"data.root: {path}, line {line}: found {row}, expected a path")
    if not os.path.isfile(folder / row["path"]):  # noqa: PTH113 (pathlib raises for a long path)
        raise UserError(f"data.root: {path}, line {line}: no such file: {printable(row['path'])}")
    return row["path"]


def _once(path: Path, folder: Path, samples: list[Sample]) -> list[Sample]:
    """Without those that come again; another label or split for the same file stays, to be found among equal images."""
    known: set[tuple[str, str | None, int, str]] = set()
    again: list[str] = []
    left: list[Sample] = []
    for sample, place in zip(samples, _places(folder, samples), strict=True):
        if (entry := (sample.label, sample.true_label, sample.split, place)) in known:
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
