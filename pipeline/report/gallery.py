"""The gallery of reports/index.html: the most doubtful labels of each split, with what speaks against them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.report.pictures import PICTURE, SMALL_PICTURE, encoded
from pipeline.report.votes import Vote
from pipeline.store.dataset import Dataset, Labels


@dataclass(frozen=True)
class Neighbor:
    """A training image that has another label."""

    name: str
    label: str
    picture: str


@dataclass(frozen=True)
class Card:
    """A doubtful label.

    Attributes:
        entry: its line of the table of label issues.
        score, sure: the model's probability of the given label, and of the one that it suggests.
        picture: the image, as an address that holds it; so are those of the neighbours.
        vote: of the nearest neighbours.
        against: neighbours with another label.
    """

    entry: Mapping[str, str]
    score: float
    sure: float
    picture: str
    vote: Vote
    against: list[Neighbor]


def cards(
    dataset: Dataset,
    labels: Labels,
    entries: Sequence[Mapping[str, str]],
    votes: Mapping[int, Vote],
    threads: int,
) -> list[Card]:
    """The cards of these lines of the table of label issues, in their order.

    Raises:
        UserError: an image's file has changed, or the data set is damaged.
    """
    rows = [int(entry["index"]) for entry in entries]
    neighbors = {other for row in rows for other in votes[row].against}
    sizes = dict.fromkeys(neighbors, SMALL_PICTURE) | dict.fromkeys(rows, PICTURE)
    pictures = dict(zip(sizes, encoded(dataset, sizes, threads), strict=True))
    address = {row: f"data:image/webp;base64,{text}" for row, text in pictures.items()}

    def neighbor(row: int) -> Neighbor:
        return Neighbor(dataset.names[row], dataset.class_names[labels.labels[row]], address[row])

    return [
        Card(
            entry,
            float(entry["label_score"]),
            float(entry["predicted_score"]),
            address[row],
            votes[row],
            [neighbor(other) for other in votes[row].against],
        )
        for row, entry in zip(rows, entries, strict=True)
    ]
