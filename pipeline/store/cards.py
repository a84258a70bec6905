"""models/<stage>/model.json: what the weights beside it are. It needs no torch, so reports start fast."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from pipeline.base import files
from pipeline.base.errors import UserError, unknown


@dataclass(frozen=True)
class ModelCard:
    """models/<stage>/model.json.

    Attributes:
        network: `model.name`.
        system: the stage that trained it, whatever its folder is called now; says what stands around the network.
        class_names: in the order of the outputs.
        shape: of an image, [C, H, W].
        options: how its image files were decoded, by the names of `ImageOptions`; None where there were no files.
        labels_digest: digest of the labels it was trained on.
        mentor: the better model on validation; its best weights are the next iteration's mentor.
        best_epoch, validation_accuracy: by model; 2 is after two epochs, 2.25 within the third.
        kept_fraction: share of the training samples in D′; 1 without a filter.
        kept_purity: share of correct labels among them; None where the true labels are unknown.
        folds: how many networks beside it were trained without a part of the samples, to judge that part's labels.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    network: str
    system: str
    class_names: list[str]
    shape: Annotated[list[int], Field(min_length=3, max_length=3)]
    options: dict[str, Any] | None
    labels_digest: str
    mentor: Literal["student", "teacher"]
    best_epoch: dict[str, float]
    validation_accuracy: dict[str, float]
    kept_fraction: float
    kept_purity: float | None
    folds: int


def folder(stage: str) -> Path:
    return files.MODELS / stage


def is_there(stage: str) -> bool:
    """Whether a stage has left its models."""
    return (folder(stage) / "model.json").exists()


def card_at(path: Path) -> ModelCard:
    """The card in this file, of whatever run.

    Raises:
        UserError: it is missing, damaged, or of another version of this package.
    """
    values = files.read_json(path)
    try:
        return TypeAdapter(ModelCard).validate_python(values)
    except ValidationError as error:
        raise unknown(path, error) from error


def read_card(stage: str, network: str, labels_digest: str) -> ModelCard:
    """Read a stage's card, and check that it fits this network and these labels.

    Raises:
        UserError: the card is missing or damaged, or says that another network or other labels were used.
    """
    path = folder(stage) / "model.json"
    card = card_at(path)
    for what, found, expected in (
        ("with another network", card.network, network),
        ("on other labels", card.labels_digest, labels_digest),
    ):
        if found != expected:
            raise UserError(
                f"{path}: trained {what} ({found[:24]}, expected {expected[:24]}); train again: `dvc repro`, "
                "`dvc repro baselines/dvc.yaml` or `dvc repro references/dvc.yaml`"
            )
    return card
