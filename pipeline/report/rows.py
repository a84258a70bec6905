"""The table of results: the same rows for the terminal and the report."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from importlib import resources
from typing import Any

from pipeline import files
from pipeline.systems.registry import SYSTEMS, model_title

EVALUATE = files.METRICS / "evaluate.json"


@dataclass(frozen=True)
class Row:
    """One model of one system; accuracies as fractions, None where they cannot be known.

    `mentor` marks the better model of the two on validation.
    """

    title: str
    mentor: bool
    validation_best: float
    test_best: float | None
    test_last: float | None
    kept_fraction: float
    kept_purity: float | None
    paper: str


def rows(metrics: dict[str, Any], paper: dict[str, str]) -> list[Row]:
    """From metrics/evaluate.json; `paper` as `paper_column` gives it."""
    table: list[Row] = []
    for system in SYSTEMS:
        values = metrics[system.name]
        for model in ("student", "teacher"):
            best, last = values[model]["best"], values[model]["last"]
            table.append(
                Row(
                    title=model_title(system, model),
                    mentor=values["mentor"] == model,
                    validation_best=best["validation_accuracy"],
                    test_best=best.get("test_accuracy"),
                    test_last=last.get("test_accuracy"),
                    kept_fraction=values["kept_fraction"],
                    kept_purity=values["kept_purity"],
                    paper=paper.get(_paper_method(system.name, model), ""),
                )
            )
    return table


def paper_column(source: str, kind: str, rate: float) -> dict[str, str]:
    """The paper's column for this data and noise, method → "accuracy ± standard error"; empty if it has none.

    Clothing1M is Table 4; other images are set beside CIFAR-10 with the same noise, Tables 1 and 2.
    """
    tables = {
        "symmetric": "table1_symmetric.csv",
        "none": "table1_symmetric.csv",
        "asymmetric": "table2_asymmetric.csv",
    }
    name, column = tables.get(kind), f"r={0 if kind == 'none' else rate:g}"
    if source == "clothing1m":
        name, column = "table4_clothing1m.csv", "accuracy"
    if name is None:
        return {}
    text = resources.files("pipeline.paper.numbers").joinpath(name).read_text(encoding="utf-8")
    found: dict[str, str] = {}
    for row in csv.DictReader(text.splitlines()):
        if row.get(column):
            error = row.get(f"stderr_{column}")
            found[row["method"]] = f"{row[column]} ± {error}" if error else row[column]
    return found


def percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def _paper_method(system: str, model: str) -> str:
    if system == "cross_entropy" and model == "student":
        return "Cross Entropy (reproduced)"
    ordinal = {"mlnt_1": "1st", "mlnt_2": "2nd", "mlnt_3": "3rd"}.get(system)
    return f"MLNT-{model} ({ordinal} iter.)" if ordinal else ""
