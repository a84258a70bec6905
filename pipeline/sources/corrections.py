"""`noise.corrections`: what people decided about labels, as reports/review.html saves it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline.base.errors import UserError
from pipeline.sources.places import delimited
from pipeline.sources.places.folder import first_few
from pipeline.store.dataset import DECISIONS, DROPPED, TRAIN, VALIDATION, Dataset, Labels

KEY = "noise.corrections"
COLUMNS = ("path", "given_label", "decision", "label")


class Decision(NamedTuple):
    """A row of the file.

    Attributes:
        given: the label that was decided about.
        label: what it becomes; for a sample that is dropped, what it was.
    """

    line: int
    path: str
    given: str
    decision: str
    label: str


def corrected(labels: Labels, dataset: Dataset, path: Path) -> Labels:
    """The labels after people's decisions: confirmed, replaced, or their sample in no split any more.

    Where the decisions were made about the source's own labels, what they say is the truth wherever the truth is known;
    where they were made about labels with injected noise, or the source has true labels beside its own, the truth stays
    the source's.

    Raises:
        UserError: the file cannot be read, contradicts itself or belongs to other data, or nothing is left of a class
            in the training split, or of the validation split.
    """
    decided = read(path)
    number = {name: i for i, name in enumerate(dataset.class_names)}
    if unknown := [each for each in decided if not {each.given, each.label} <= number.keys()]:
        raise _refused(
            path,
            f"{len(unknown)} of {len(decided)} rows name classes that the data set lacks",
            (f"line {each.line}: {(each.label if each.given in number else each.given)!r}" for each in unknown),
            f"its classes are {', '.join(dataset.class_names)}",
        )
    source, rows = _rows(path, decided, labels, dataset, number)
    new, split, true = labels.labels.copy(), labels.split.copy(), labels.true_labels
    decided_truth = source and dataset.true_labels is None
    true = true.copy() if true is not None and decided_truth else true
    decisions, reviewed = np.zeros(len(new), np.uint8), (dataset.labels if source else labels.labels)
    for each, found in zip(decided, rows, strict=True):
        decisions[found] = DECISIONS.index(each.decision)
        if each.decision == "drop":
            split[found] = DROPPED
        else:
            new[found] = number[each.label]
            if true is not None and decided_truth:
                true[found] = number[each.label]
    result = replace(labels, labels=new, true_labels=true, split=split, decisions=decisions, reviewed=reviewed)
    _require_enough(path, labels, result, dataset.class_names)
    return result


def counts(labels: Labels) -> dict[str, int]:
    """How many samples people confirmed, relabelled and took out."""
    of = np.bincount(labels.decisions if labels.decisions is not None else [], minlength=len(DECISIONS))
    return {name: int(of[DECISIONS.index(name)]) for name in DECISIONS if name}


def read(path: Path) -> list[Decision]:
    """The rows of the file, each decision once.

    Raises:
        UserError: as `delimited.rows`, or a row that contradicts itself or another one.
    """
    found: dict[tuple[str, str], Decision] = {}
    for line, row in delimited.rows(path, KEY, COLUMNS):
        each = _decision(path, line, row)
        before = found.setdefault((each.path, each.given), each)
        if before[3:] != each[3:]:
            raise UserError(
                f"{KEY}: {path}, lines {before.line} and {line}: contradict each other: {each.path!r} with the label "
                f"{each.given!r} is {_said(before)} and {_said(each)}; remove one of them"
            )
    return list(found.values())


def _decision(path: Path, line: int, row: dict[str, str]) -> Decision:
    decision, given, label = row["decision"].strip(), row["given_label"], row["label"]
    place = f"{KEY}: {path}, line {line}"
    if decision not in DECISIONS[1:] or not row["path"] or not given:
        raise UserError(
            f"{place}: found {row}, expected a path, a given_label, and as its decision one of "
            f"{', '.join(DECISIONS[1:])}"
        )
    if decision == "relabel" and label in ("", given):
        raise UserError(
            f"{place}: relabels {row['path']!r} from {given!r} to {label!r}; expected another class, or keep"
        )
    if decision != "relabel" and label not in ("", given):
        raise UserError(
            f"{place}: contradicts itself: {decision} with the label {label!r}, given {given!r}; expected relabel, or "
            "no label"
        )
    return Decision(line, row["path"], given, decision, label or given)


def _said(each: Decision) -> str:
    return (
        f"relabelled {each.label!r}"
        if each.decision == "relabel"
        else {"keep": "kept", "drop": "dropped"}[each.decision]
    )


def _rows(
    path: Path, decided: Sequence[Decision], labels: Labels, dataset: Dataset, number: dict[str, int]
) -> tuple[bool, list[list[int]]]:
    """Whether the decisions are about the source's labels, not those with noise, and the samples of each.

    Raises:
        UserError: some have no sample.
    """
    named: dict[str, list[int]] = {each.path: [] for each in decided}
    for row, name in enumerate(dataset.names):
        if name in named:
            named[name].append(row)
    if missing := [each for each in decided if not named[each.path]]:
        raise _refused(
            path,
            f"{len(missing)} of {len(decided)} rows name images that the data set lacks",
            (f"line {each.line}: {each.path!r}" for each in missing),
            "the file was made for other data, or these images are gone or left out (data.limit, "
            "data.on_bad_image); remove their rows",
        )
    for table in (dataset.labels, labels.labels):
        found = [[row for row in named[each.path] if table[row] == number[each.given]] for each in decided]
        if all(found):
            return table is dataset.labels, found
    other = [each for each, rows in zip(decided, found, strict=True) if not rows]
    raise _refused(
        path,
        f"{len(other)} of {len(decided)} rows have another given_label than the data set",
        (
            f"line {each.line}: {each.path!r} is {each.given!r} there, and "
            f"{dataset.class_names[labels.labels[named[each.path][0]]]!r} here"
            for each in other
        ),
        "the file was made for other data, or before these labels changed; remove their rows, or decide again",
    )


def _require_enough(path: Path, before: Labels, after: Labels, class_names: Sequence[str]) -> None:
    """
    Raises:
        UserError: a class has no training sample any more, or nothing is left to validate on.
    """
    had, has = (set(each.labels[each.rows(TRAIN)].tolist()) for each in (before, after))
    if had - has:
        lost = (repr(class_names[label]) for label in sorted(had - has))
        raise _refused(path, "no training sample is left of", lost, "keep one, or take the class out of the data")
    if not len(after.rows(VALIDATION)):
        raise UserError(f"{KEY}: {path}: drops all validation samples; keep some")


def _refused(path: Path, what: str, which: Iterable[str], remedy: str) -> UserError:
    return UserError(f"{KEY}: {path}: {what}: {first_few(which)}; {remedy}")
