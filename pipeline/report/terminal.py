"""`mlnt show`: the table of the last run, on the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from pipeline.base import files
from pipeline.report.results import decided, evaluation, metrics_of, noise, percent, rows
from pipeline.store import record
from pipeline.systems.registry import DEFAULT, GROUPS, stages_before


def show() -> None:
    """Print the table of the last run; line by line where the terminal is too narrow for all of its numbers.

    Raises:
        UserError: there is no finished run.
    """
    metrics = evaluation()
    for group in GROUPS.values():
        metrics |= metrics_of(group)
    console = Console(highlight=False)
    samples = metrics["samples"]
    table_rows = rows(metrics, {})
    has_test, known = samples["test"] > 0, table_rows[0].kept_purity is not None
    columns = ["validation", *(["test best", "test last"] if has_test else []), "kept", *(["correct"] if known else [])]
    console.print(
        "In percent, of " + ", ".join(f"{samples[name]} {name}" for name in samples if samples[name]) + " samples",
        soft_wrap=True,
    )
    cells = {
        row.title + (" *" if row.mentor else ""): [
            percent(row.validation_best),
            *([percent(row.test_best), percent(row.test_last)] if has_test else []),
            percent(row.kept_fraction),
            *([percent(row.kept_purity)] if known else []),
        ]
        for row in table_rows
    }
    table = _table(columns, cells)
    # Narrower, rich would shorten the numbers, and at last leave them out.
    if Measurement.get(console, console.options.update(max_width=1000), table).minimum <= console.width:
        console.print(table)
    else:
        for title, numbers in cells.items():
            console.print(title, markup=False, soft_wrap=True)
            for column, number in zip(columns, numbers, strict=True):
                console.print(f" {column} {number}", soft_wrap=True)
    if _newer_run():
        console.print(
            "This is the last finished run: stages have run since whose results it lacks; `dvc repro` finishes them.",
            soft_wrap=True,
        )
    elif decisions := decided(noise()):
        console.print(f"Labels that people decided about: {decisions}.", soft_wrap=True)
    console.print(
        "1, 2, 3: iterations. best: the epoch of the highest validation accuracy; last: the last epoch.\n"
        "*: the better of the two on validation, the mentor of the next iteration.\n"
        f"kept: training labels in the class loss{'; correct: share of them that is right' if known else ''}.\n"
        f"{files.REPORT}: curves, noise matrices, and the labels that are probably wrong; {files.REVIEW}: decide about "
        "them.",
        soft_wrap=True,
    )


def _newer_run() -> bool:
    """Whether a training of the default run is missing, or was made from something else than what is here now."""
    for stage in (system.stage for system in DEFAULT):
        found = record.read(stage)
        before = [each for name in stages_before(stage, head=True) if (each := record.read(name))]
        if found is None or not record.follows(found, before):
            return True
    return False


def _table(columns: Sequence[str], cells: Mapping[str, Sequence[str]]) -> Table:
    """Names are broken between words where it is narrow, numbers never."""
    table = Table()
    table.add_column("system", min_width=max(len(word) for title in ("system", *cells) for word in title.split()))
    for column in columns:
        table.add_column(column, justify="right", min_width=len(column))
    for title, numbers in cells.items():
        table.add_row(Text(title), *numbers)
    return table
