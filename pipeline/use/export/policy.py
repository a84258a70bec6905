"""The labels as they are handed on: those of the data set, and what a policy makes of the doubtful ones."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from pipeline.base import files
from pipeline.base.errors import UserError
from pipeline.params.schema import Params
from pipeline.store import checked
from pipeline.store.dataset import DROPPED, SPLITS, Dataset, Labels

Policy = Literal["review", "drop", "relabel"]


class Doubt(NamedTuple):
    """What the final model says of a label.

    Attributes:
        is_issue: whether the label is probably wrong.
        score: the probability of the given label; low is suspicious.
        predicted: the class that the model finds most probable.
    """

    is_issue: bool
    score: float
    predicted: str


class Sample(NamedTuple):
    """A sample of the data set.

    Attributes:
        row: of the data set.
        given: its label in data/labels.h5.
        label: after the policy.
    """

    row: int
    name: str
    split: str
    given: str
    label: str
    doubt: Doubt

    @property
    def is_issue(self) -> bool:
        return self.doubt.is_issue

    @property
    def judged(self) -> dict[str, Any]:
        """What a person needs to decide: of one kind each in all samples, since some readers guess kinds from them.

        The suggestion is the model's label where it doubts the given one, and the given one elsewhere.
        """
        return {
            "is_label_issue": self.is_issue,
            "label_score": self.doubt.score,
            "given_label": self.given,
            "suggested_label": self.doubt.predicted if self.is_issue else self.given,
        }


@dataclass(frozen=True)
class LabelExport:
    """What a format is made from.

    Attributes:
        folder: the one that is being made.
        out: what it will be called.
    """

    samples: list[Sample]
    dataset: Dataset
    labels: Labels
    params: Params
    folder: Path
    out: Path

    @property
    def place(self) -> Path:
        """`out` without links above it, which paths from there start at."""
        return Path(os.path.realpath(self.out.parent)) / self.out.name

    def of_split(self) -> Iterator[tuple[str, list[Sample]]]:
        for split in SPLITS:
            if found := [each for each in self.samples if each.split == split]:
                yield split, found


def samples(
    dataset: Dataset, labels: Labels, policy: Policy, changed_only: bool, keep_test: bool = False
) -> list[Sample]:
    """All samples but those that people dropped, in the order of the data set.

    Args:
        policy: what becomes of the doubtful ones: `review` leaves their labels, `drop` leaves them out, `relabel` gives
            them the model's label.
        changed_only: the doubtful ones alone; with `relabel` those that get another label.
        keep_test: whether the test split stays as it is, for an accuracy that the policy has no part in.

    Raises:
        UserError: reports/label_issues.csv is missing, damaged or of another run; nothing is left.
    """
    if policy == "drop" and changed_only:
        raise UserError(
            "--changed-only: found --policy drop, which leaves out all that would change; expected review or relabel"
        )
    doubts = _doubts(dataset, labels)
    chosen = [
        each
        for each in _after(dataset, labels, doubts, policy, keep_test)
        if not (policy == "drop" and _concerns(each.doubt, each.split, keep_test))
        and not (changed_only and (not each.is_issue or (policy == "relabel" and each.label == each.given)))
    ]
    if not chosen:
        raise UserError(f"{files.LABEL_ISSUES}: nothing to export: no label is doubted, or all of them are dropped")
    return chosen


def _after(
    dataset: Dataset, labels: Labels, doubts: dict[int, Doubt], policy: Policy, keep_test: bool
) -> Iterator[Sample]:
    for row in np.flatnonzero(labels.split != DROPPED).tolist():
        given, doubt = dataset.class_names[labels.labels[row]], doubts[row]
        split = SPLITS[labels.split[row]]
        label = doubt.predicted if policy == "relabel" and _concerns(doubt, split, keep_test) else given
        yield Sample(row, dataset.names[row], split, given, label, doubt)


def _concerns(doubt: Doubt, split: str, keep_test: bool) -> bool:
    return doubt.is_issue and not (keep_test and split == "test")


def _doubts(dataset: Dataset, labels: Labels) -> dict[int, Doubt]:
    """Row → what the table says of it.

    Raises:
        UserError: as `checked.label_issues`.
    """
    return {
        int(row["index"]): Doubt(row["is_label_issue"] == "True", float(row["label_score"]), row["predicted_label"])
        for row in checked.label_issues(dataset, labels)
    }
