"""The table of results: the same rows for the terminal and the report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ValidationError, create_model

from pipeline.base import files
from pipeline.base.errors import unknown
from pipeline.report.numbers import published
from pipeline.store import cards
from pipeline.systems.registry import CROSS_ENTROPY, DEFAULT, MLNT, SYSTEMS, Group


@dataclass(frozen=True)
class Row:
    """One model of one system; accuracies as fractions, None where they cannot be known.

    Attributes:
        prior: what the system is told beside images and labels.
        mentor: whether it is the better model of the two on validation.
        ours: whether it is one of MLNT.
        label_issues: how well the system's best model finds the wrong labels, as metrics/evaluate.json has it.
    """

    system: str
    prior: str
    title: str
    mentor: bool
    ours: bool
    validation_best: float
    test_best: float | None
    test_last: float | None
    kept_fraction: float
    kept_purity: float | None
    paper: str
    label_issues: Mapping[str, Any]


class _Accuracies(BaseModel):
    validation_accuracy: float
    test_accuracy: float | None = None
    test_accuracy_by_class: dict[str, float | None] = {}


class _Choices(BaseModel):
    best: _Accuracies
    last: _Accuracies


class _Issues(BaseModel):
    threshold: float
    found_fraction: float
    precision: float | None = None
    recall: float | None = None
    auc: float | None = None


class _Evaluated(BaseModel):
    """What metrics/evaluate.json has of a system, as far as it is shown."""

    mentor: Literal["student", "teacher"]
    kept_fraction: float
    kept_purity: float | None
    student: _Choices
    teacher: _Choices
    label_issues: _Issues


class _Samples(BaseModel):
    train: int
    validation: int
    test: int


class _Decisions(BaseModel):
    keep: int
    relabel: int
    drop: int


class _Noise(BaseModel):
    """What metrics/noise.json has, as far as it is shown."""

    validation_labels: str
    corrections: _Decisions | None = None
    realised_rate: float | None = None


def evaluation() -> dict[str, Any]:
    """metrics/evaluate.json: every system of the default run, and `samples`.

    Raises:
        UserError: it is missing or damaged, or is not that.
    """
    return _read(files.EVALUATION, {"samples": (_Samples, ...), **{each.name: (_Evaluated, ...) for each in DEFAULT}})


def noise() -> dict[str, Any]:
    """metrics/noise.json.

    Raises:
        UserError: it is missing or damaged, or is not that.
    """
    return _read(files.NOISE, {}, _Noise)


def _read(path: Path, fields: Mapping[str, Any], base: type[BaseModel] = BaseModel) -> dict[str, Any]:
    content: dict[str, Any] = files.read_json(path)
    try:
        create_model(path.stem, __base__=base, **fields).model_validate(content, strict=True)
    except ValidationError as error:
        raise unknown(path, error) from None
    return content


def rows(metrics: Mapping[str, Any], paper: Mapping[str, str]) -> list[Row]:
    """Two rows for each evaluated system, in the order of the registry; `paper` comes from `paper_column`."""
    table: list[Row] = []
    for system in (each for each in SYSTEMS if each.name in metrics):
        values = metrics[system.name]
        for model, title, papers_name in system.models:
            best, last = values[model]["best"], values[model]["last"]
            table.append(
                Row(
                    system=system.title,
                    prior=system.prior,
                    title=title,
                    mentor=values["mentor"] == model,
                    ours=system in MLNT,
                    validation_best=best["validation_accuracy"],
                    test_best=best.get("test_accuracy"),
                    test_last=last.get("test_accuracy"),
                    kept_fraction=values["kept_fraction"],
                    kept_purity=values["kept_purity"],
                    paper=paper.get(papers_name, ""),
                    label_issues=values["label_issues"],
                )
            )
    return table


def metrics_of(group: Group) -> dict[str, Any]:
    """The metrics of a group's systems, if they were evaluated on the labels of this run; otherwise empty.

    Raises:
        UserError: a damaged file.
    """
    if not group.evaluation.exists():
        return {}
    metrics = _read(group.evaluation, {each.name: (_Evaluated | None, None) for each in group.systems})
    if metrics.get("labels_digest") != cards.card_at(cards.folder(CROSS_ENTROPY.stage) / "model.json").labels_digest:
        return {}
    return {system.name: metrics[system.name] for system in group.systems if system.name in metrics}


def paper_column(source: str, kind: str, rate: float) -> dict[str, str]:
    """The paper's column for this data and noise, method → "accuracy ± standard error"; empty if it has none.

    Clothing1M is Table 4; other images are set beside CIFAR-10 with the same noise, Tables 1 and 2; but CIFAR-100,
    which is known by numbers of its own and not in the paper.
    """
    if source.startswith("cifar100"):
        return {}
    tables = {
        "symmetric": "table1_symmetric.csv",
        "none": "table1_symmetric.csv",
        "asymmetric": "table2_asymmetric.csv",
    }
    name, column = tables.get(kind), f"r={0 if kind == 'none' else rate:g}"
    if source == "clothing1m":
        name, column = "table4_clothing1m.csv", "accuracy"
    return {
        method: f"{columns[column][0]:g}" + ("" if (error := columns[column][1]) is None else f" ± {error:g}")
        for method, columns in published(name).items()
        if column in columns
    }


def decided(noise: Mapping[str, Any]) -> str:
    """What people decided, by metrics/noise.json, such as "40 confirmed, 12 relabelled, 3 dropped"; empty without."""
    counts = noise.get("corrections")
    if counts is None:
        return ""
    return f"{counts['keep']} confirmed, {counts['relabel']} relabelled, {counts['drop']} dropped"


def percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"
