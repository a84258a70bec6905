"""reports/review.html: the doubtful images one by one, with what speaks against their labels, for people to decide.

The page is one file that holds its pictures. What is decided is kept by the browser, and saved as the CSV file that
`noise.corrections` takes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jinja2 import Environment
from numpy.typing import NDArray

from pipeline.base import console
from pipeline.report.pictures import PICTURE, SMALL_PICTURE, encoded, pixelated
from pipeline.report.votes import Vote
from pipeline.store import hdf5
from pipeline.store.dataset import DECISIONS, SPLITS, Dataset, Labels, Names


@dataclass(frozen=True)
class Doubtful:
    """What the page shows.

    Attributes:
        open: samples to decide about, the most suspicious first.
        decided: samples that people have decided about.
        entries: row → its line of the table of label issues, for those of both that have one.
        left_out: how many more there are to decide about.
    """

    open: list[int]
    decided: list[int]
    entries: Mapping[int, Mapping[str, str]]
    left_out: int

    @property
    def rows(self) -> list[int]:
        """All of them, in the order of the page."""
        return [*self.open, *self.decided]


def choose(issues: Iterable[Mapping[str, str]], labels: Labels, most: int) -> Doubtful:
    """The first `most` of the table of label issues, and all samples that people have decided about."""
    decided = [] if labels.decisions is None else np.flatnonzero(labels.decisions).tolist()
    entries: dict[int, Mapping[str, str]] = {}
    opened: list[int] = []
    listed, before = 0, set(decided)
    for entry in issues:
        row, doubted = int(entry["index"]), entry["is_label_issue"] == "True"
        listed += doubted
        if doubted and len(opened) < most:
            opened.append(row)
        elif row not in before:
            continue
        entries[row] = entry
    return Doubtful(opened, decided, entries, listed - len(opened))


def page(
    templates: Environment,
    dataset: Dataset,
    labels: Labels,
    doubtful: Doubtful,
    votes: Mapping[int, Vote],
    *,
    most: int,
    threads: int,
    originals: str | None,
) -> str:
    """The page as text; the same inputs give the same bytes.

    Args:
        votes: of the neighbours of all of them.
        most: so many have a picture; those that are open come first.
        threads: that decode and encode pictures.
        originals: where the images' files lie, as an address that their names follow; None where they have none.

    Raises:
        UserError: an image's file has changed, or the data set is damaged.
    """
    rows, given = doubtful.rows, labels.given
    shown = sorted({other for row in rows[:most] for other in votes[row].against})
    sizes = dict.fromkeys(shown, SMALL_PICTURE) | dict.fromkeys(rows[:most], PICTURE)
    pictures = list(console.counted(encoded(dataset, sizes, threads), "review", len(sizes)))
    at = {row: i for i, row in enumerate(sizes)}
    items = [
        {
            "path": dataset.names[row],
            "given": int(given[row]),
            "picture": at.get(row),
            "split": SPLITS[labels.split[row]] if labels.split[row] < len(SPLITS) else "",
            "asked": votes[row].asked,
            "agree": votes[row].agree,
            "against": [at[other] for other in votes[row].against if other in at],
            **_seen_by_model(doubtful.entries.get(row), dataset.class_names),
            **_decided(labels, row),
        }
        for row in rows
    ]
    data = {
        "key": _key(dataset, given),
        "classes": dataset.class_names,
        "items": items,
        "neighbors": {at[row]: [dataset.names[row], int(labels.labels[row])] for row in shown},
        "ends": np.cumsum([len(text) for text in pictures], dtype=np.int64).tolist(),
        "originals": originals,
    }
    return templates.get_template("review.html.jinja").render(
        data=data,
        pictures="".join(pictures),
        doubtful=doubtful,
        source=dataset.source,
        pixelated=pixelated(dataset),
        unpictured=max(0, len(rows) - most),
    )


def _key(dataset: Dataset, given: NDArray[np.int64]) -> str:
    """What a browser keeps decisions under: the names, classes and labels that they are about, however images are
    stored."""
    names = Names.of(dataset.names)
    arrays: dict[str, NDArray[Any]] = {"names": names.text, "ends": names.ends, "given": given}
    return hdf5.digest(arrays, {"classes": dataset.class_names})[:16]


def _seen_by_model(entry: Mapping[str, str] | None, class_names: list[str]) -> dict[str, Any]:
    """What the table of label issues says; it has no line for samples that people dropped."""
    if entry is None:
        return {}
    return {
        "score": float(entry["label_score"]),
        "suggested": class_names.index(entry["predicted_label"]),
        "sure": float(entry["predicted_score"]),
        "also": entry.get("also_labelled", ""),
    }


def _decided(labels: Labels, row: int) -> dict[str, Any]:
    """What people decided about a sample before this run; a label that they replaced was not scored."""
    if labels.decisions is None or not labels.decisions[row]:
        return {}
    decision = DECISIONS[labels.decisions[row]]
    if decision == "relabel":
        return {"decision": decision, "label": int(labels.labels[row]), "score": None}
    return {"decision": decision, "label": None}
