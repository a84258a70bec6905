"""`mlnt show`: the table of the last run, on the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from pipeline import files
from pipeline.report.rows import baseline_metrics, percent, rows


def show() -> None:
    """Print the table of the last run.

    Raises:
        UserError: there is no finished run.
    """
    metrics = {**files.read_json(files.EVALUATION), **baseline_metrics()}
    console = Console(highlight=False)
    samples = metrics["samples"]
    table_rows = rows(metrics, {})
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
