"""What a model says of given labels, and which of them are issues."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlnt.method import mentor


@dataclass(frozen=True)
class LabelIssues:
    """A model's view of given labels: of the training split, in sample or out of fold, or of others, held out.

    Attributes:
        rows: rows of the data set.
        given: given labels.
        predicted: the model's labels.
        score: probability of the given label; low is suspicious.
        highest: probability of the model's label.
        threshold: a label is listed whose `score` is not above it; −1, below all, where it never is.
        contradicted: which are of an image that has another label elsewhere in the data.
        known: which people have confirmed or corrected; these are no issues.
        wrong: which given labels are wrong, or None where the true labels are unknown.
    """

    rows: NDArray[np.int64]
    given: NDArray[np.int64]
    predicted: NDArray[np.int64]
    score: NDArray[np.float32]
    highest: NDArray[np.float32]
    threshold: NDArray[np.float64]
    contradicted: NDArray[np.bool_]
    known: NDArray[np.bool_]
    wrong: NDArray[np.bool_] | None

    @classmethod
    def joined(cls, parts: Sequence[LabelIssues]) -> LabelIssues:
        """Those of several splits in one; either all of `parts` know which labels are wrong, or none does."""
        joined: dict[str, Any] = {}
        for name in (each.name for each in fields(cls)):
            arrays = [getattr(part, name) for part in parts]
            joined[name] = None if arrays[0] is None else np.concatenate(arrays)
        return cls(**joined)

    def listed(self) -> NDArray[np.bool_]:
        """Which labels are issues."""
        return ((self.score <= self.threshold) | self.contradicted) & ~self.known

    def order(self) -> NDArray[np.int64]:
        """Most suspicious first: those of which one or the other is certainly wrong lead, those that are known end."""
        return np.lexsort((self.score, ~self.contradicted, self.known))

    def metrics(self) -> dict[str, Any]:
        kept = ~self.listed()
        values: dict[str, Any] = {
            "threshold": float(self.threshold.max(initial=0.0)),
            "found_fraction": float((~kept).mean()),
        }
        if self.wrong is not None:
            quality = mentor.filter_quality(self.score, kept, self.wrong)
            values |= {"precision": quality.precision, "recall": quality.recall, "auc": quality.auc}
        return values


def other_labels(same_picture: NDArray[np.int64] | None, labels: NDArray[np.int64]) -> dict[int, list[int]]:
    """Row → the other labels that equal images have, for those that have some."""
    if same_picture is None:
        return {}
    rows = np.flatnonzero(same_picture >= 0)
    of_group: dict[int, set[int]] = {}
    for row in rows.tolist():
        of_group.setdefault(int(same_picture[row]), set()).add(int(labels[row]))
    others = {row: sorted(of_group[int(same_picture[row])] - {int(labels[row])}) for row in rows.tolist()}
    return {row: found for row, found in others.items() if found}
