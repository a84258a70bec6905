"""`mlnt show`: the table of the last run, on the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from pipeline import files
from pipeline.paper.statistics import accuracy
from pipeline.report.rows import EVALUATE, Row, percent, rows
from pipeline.systems.registry import BASELINES


def show() -> None:
    """Print the table of the last run.

    Raises:
        UserError: there is no finished run.
    """
    metrics = files.read_json(EVALUATE)
    console = Console(highlight=False)
    samples = metrics["samples"]
    table_rows = [*rows(metrics, {}), *_baseline_rows()]
    has_test, known = samples["test"] > 0, table_rows[0].kept_purity is not None
    columns = ["validation", *(["test best", "test last"] if has_test else []), "kept", *(["correct"] if known else [])]
    table = Table("system")
    for column in columns:
        table.add_column(column, justify="right")
    for row in table_rows:
        table.add_row(
            row.title + (" *" if row.mentor else ""),
            percent(row.validation_best),
            *([percent(row.test_best), percent(row.test_last)] if has_test else []),
            percent(row.kept_fraction),
            *([percent(row.kept_purity)] if known else []),
        )
    console.print(
        "In percent, of " + ", ".join(f"{samples[name]} {name}" for name in samples if samples[name]) + " samples"
    )
    console.print(table)
    console.print(
        "1, 2, 3: iterations. best: the epoch of the highest validation accuracy; last: the last epoch.\n"
        "*: the better of the two on validation, the mentor of the next iteration.\n"
        f"kept: training labels in the class loss{'; correct: share of them that is right' if known else ''}.\n"
        f"{files.REPORT}: curves, noise matrices, and the labels that are probably wrong.",
        soft_wrap=True,
    )


def _baseline_rows() -> list[Row]:
    """The students of the baselines that were trained on the labels of this run, from their histories."""
    found: list[Row] = []
    labels = files.read_json(files.MODELS / "pretrain" / "model.json")["labels_digest"]
    for name, baseline in BASELINES.items():
        path = files.MODELS / name / "model.json"
        if name == "joint_optimization_1" or not path.exists():
            continue
        card = files.read_json(path)
        if card["labels_digest"] != labels:
            continue
        history = files.read_csv(files.PLOTS / f"{name}.csv")
        found.append(
            Row(
                title=baseline.title,
                mentor=False,
                validation_best=card["validation_accuracy"]["student"],
                test_best=accuracy(history, "student", "best", "test"),
                test_last=accuracy(history, "student", "last", "test"),
                kept_fraction=1.0,
                kept_purity=card["kept_purity"],
                paper="",
            )
        )
    return found
