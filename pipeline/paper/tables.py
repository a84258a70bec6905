"""`mlnt tables`: finished experiments → the paper's tables and figures, as Markdown, CSV, SVG and one HTML page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.base import console, files
from pipeline.base.errors import UserError
from pipeline.paper import figure7, figures, history, pages
from pipeline.paper.grid import PARAMS, SWEEPS, SYSTEM_TABLES, Sweep, Values, read_bases, source_of, sweep_named
from pipeline.paper.pages import CHOICES, Entry, Section, SystemTable
from pipeline.paper.statistics import (
    CROSS_ENTROPY,
    ROWS,
    Mean,
    Row,
    Runs,
    beside_cross_entropy,
    beside_first_of_noise,
    best_row,
    differences,
    mean_of,
    p_value,
    runs_of,
)
from pipeline.params.load import changed, leaves, load, read_yaml
from pipeline.report.numbers import Published, published
from pipeline.systems.registry import FINAL

STUDENT_OF = {"figure6": "meta2"}
NUMBERS = "Test accuracy in percent: mean ± standard error (n seeds)."
OF_SYSTEMS = (
    "↑ better, ↓ worse than Cross Entropy by a paired t-test over the seeds, Holm's correction within the column, "
    "p < 0.05. Bold: the highest, where it is better than the runner-up of another system (p < 0.05, uncorrected)."
)
ALONG_AN_AXIS = (
    "↑ better, ↓ worse than the first column of the same noise by a paired t-test over the seeds, Holm's correction "
    "within the row and the noise, p < 0.05."
)
PAPER = (
    "The paper's numbers are those on its own data; in brackets ours minus the paper's, in points and, where both are "
    "known, in standard errors."
)


def run(preset: str, out: Path, also: Sequence[str] = ()) -> None:
    """Write the tables and figures of every sweep that has a finished experiment.

    Args:
        also: stages of systems that the tables of systems show beside their own.

    Raises:
        UserError: unknown preset or system, no repository, or no finished experiment.
        RunError: a file could not be written.
    """
    base, chosen = read_bases(preset)
    finished = history.finished()
    sections: list[Section] = []
    for name in SWEEPS:
        sweep = sweep_named(name, also if name in SYSTEM_TABLES else ())
        if sweep.source not in (None, source_of(base, chosen)):
            console.say(f"{name}: not run; it needs the data set {sweep.source}")
            continue
        cells = {cell.label: runs_of(sweep, cell, finished, base, chosen, preset) for cell in sweep.cells}
        if not any(runs.by_seed for runs in cells.values()):
            console.say(f"{name}: not run; `mlnt sweep {name} --preset {preset}` runs it")
            continue
        paper = _paper(sweep, source_of(base, chosen))
        section = _section(name, sweep, cells, preset, paper)
        sections.append(section)
        files.write_csv(out / f"{name}.csv", _records(sweep, cells, paper))
        count = sum(len(runs.by_seed) for runs in cells.values())
        console.say(f"{name}: {count} experiments → {out / name}.md, .csv" + (", .svg" if section.drawing else ""))
    if not sections:
        raise UserError(
            f"tables: no experiment of the preset {preset} has finished; `mlnt sweep table1 --preset {preset}` runs "
            "some"
        )
    if (filtered := _figure7(base, chosen, preset)) is not None:
        sections.append(filtered)
    for section in sections:
        files.write_text(out / f"{section.name}.md", pages.markdown(section))
        if section.drawing:
            files.write_text(out / f"{section.name}.svg", section.drawing + "\n")
    files.write_text(out / "index.html", pages.page(sections, preset))
    console.say(f"all of them in one page: {out / 'index.html'}")


def _figure7(base: Values, chosen: Values, preset: str) -> Section | None:
    """Figure 7 for the run in this folder; None, with a message, where it has other data than the preset, or where
    models/ has no finished run of params.yaml."""
    current = load(PARAMS)
    if base["data"] != changed(base, leaves(chosen))["data"]:
        console.say(f"figure7: left out; the run in this folder has other data than the preset {preset}")
        return None
    if not history.belongs_here(FINAL.mentor or "", read_yaml(PARAMS)):
        console.say("figure7: left out; models/ has no finished run of params.yaml (`dvc repro` makes one)")
        return None
    try:
        images = figure7.filtered(current)
    except UserError as error:
        console.say(f"figure7: left out ({error})")
        return None
    what = f"{current.data.source}, {current.noise.kind} noise {current.noise.rate:g}, seed {current.seed}"
    note = (
        "Above the given label, below the mentor's, each with the mentor's probability; ✓: the mentor's label is "
        "the true one, otherwise the true one stands in brackets."
    )
    title = f"Figure 7: images that the mentor of iteration 3 filters out ({what})"
    about = "The run of params.yaml in this folder."
    return Section("figure7", title, about, [], figures.gallery(images), [note])


def _section(name: str, sweep: Sweep, cells: Mapping[str, Runs], preset: str, paper: Published) -> Section:
    notes = _notes(name, sweep, cells, preset)
    if name == "figure3":
        progress = figures.progress(next(iter(cells.values())))
        return Section(name, sweep.title, f"Preset {preset}.", [], progress, notes)
    rows = ROWS if sweep.axis is None else [row for row in ROWS if row.stage == STUDENT_OF.get(name, "meta1")]
    rows = [row for row in rows if row.stage in sweep.stages]
    tables = [_table(sweep, cells, rows, choice, paper) for choice in CHOICES]
    drawing = None
    if sweep.axis is not None and name != "table3":
        drawing = figures.by_value(_lines(sweep, cells, rows[0]), sweep.axis)
    about = [f"Preset {preset}.", NUMBERS, OF_SYSTEMS if sweep.axis is None else ALONG_AN_AXIS]
    about += [PAPER] if any(table.has_paper for table in tables) else []
    return Section(name, sweep.title, " ".join(about), tables, drawing, notes)


def _table(sweep: Sweep, cells: Mapping[str, Runs], rows: Sequence[Row], choice: str, paper: Published) -> SystemTable:
    columns = {
        label: {row: values for row in rows if (values := runs.accuracies(row.stage, row.model, choice))}
        for label, runs in cells.items()
    }
    marks = beside_cross_entropy(columns) if sweep.axis is None else beside_first_of_noise(columns)
    best = {label: best_row(found) for label, found in columns.items()} if sweep.axis is None else {}
    table: list[tuple[Row, list[Entry]]] = []
    for row in rows:
        line = [
            Entry(
                number=mean_of(found.get(row, {}).values()),
                significance=marks.get((label, row.title), ""),
                bold=best.get(label) == row,
                paper=paper.get(row.paper, {}).get(label) if choice == "best" else None,
                older=bool(cells[label].outdated(row.stage)),
            )
            for label, found in columns.items()
        ]
        if any(cell.number for cell in line):
            table.append((row, line))
    return SystemTable(choice, list(cells), table)


def _paper(sweep: Sweep, source: str) -> Published:
    """The paper's numbers for a sweep; none beside CIFAR-100, which others have numbers for, but not the paper."""
    if source.startswith("cifar100"):
        return {}
    return published(sweep.paper) if sweep.axis is None else _order_numbers(sweep)


def _order_numbers(sweep: Sweep) -> Published:
    """The paper's Table 3 in our layout: it has a row for each order, ours a column for each noise and order."""
    rows = {"first": "First-order approx.", "second": "Full"}
    known = published(sweep.paper)
    return {
        "MLNT-student (1st iter.)": {
            f"{noise}, order={order}": number
            for order, method in rows.items()
            for noise, number in known.get(method, {}).items()
        }
    }


def _lines(sweep: Sweep, cells: Mapping[str, Runs], row: Row) -> dict[str, list[tuple[float, Mean]]]:
    """Noise → the points of its line: the student at its best epoch on validation, as in the paper."""
    lines: dict[str, list[tuple[float, Mean]]] = {}
    for cell in sweep.cells:
        number = mean_of(cells[cell.label].accuracies(row.stage, row.model, "best").values())
        if number is not None and sweep.axis is not None:
            noise = cell.label.partition(",")[0]
            lines.setdefault(noise, []).append((float(cell.changes[sweep.axis]), number))
    return lines


def _notes(name: str, sweep: Sweep, cells: Mapping[str, Runs], preset: str) -> list[str]:
    notes: list[str] = []
    for label, runs in cells.items():
        for seed, stages in runs.diverged.items():
            notes += [
                f"{label}, seed {seed}: {stage} diverged ({message}); the whole experiment is missing"
                for stage, message in stages.items()
            ]
    taus = {
        label: {run.params("meta2")["filter.tau"] for run in runs.by_seed.values() if "meta2" in run.histories}
        for label, runs in cells.items()
    }
    if "meta2" in sweep.stages and sweep.axis != "filter.tau" and len(set().union(*taus.values())) > 1:
        each = ", ".join(f"{label} {' or '.join(sorted(map(str, found)))}" for label, found in taus.items() if found)
        chosen = "For the noises of Tables 1 and 2 it was chosen on validation data, for others it is the preset's."
        notes.append(f"The mentor's threshold τ: {each}. {chosen}")
    older = {label: runs.outdated() for label, runs in cells.items()}
    if any(older.values()):
        each = "; ".join(f"{label}: {', '.join(map(str, seeds))}" for label, seeds in older.items() if seeds)
        notes.append(
            f"† Made by other code than today's (seeds {each}); `mlnt sweep {name} --preset {preset} --outdated` runs "
            "them again."
        )
    return notes


def _records(sweep: Sweep, cells: Mapping[str, Runs], paper: Published) -> list[dict[str, Any]]:
    """A line for each number: what the Markdown shows, and what it was computed from."""
    records: list[dict[str, Any]] = []
    for label, runs in cells.items():
        for choice in CHOICES:
            reference = runs.accuracies(CROSS_ENTROPY.stage, CROSS_ENTROPY.model, choice)
            for row in (row for row in ROWS if row.stage in sweep.stages):
                values = runs.accuracies(row.stage, row.model, choice)
                number = mean_of(values.values())
                if number is None:
                    continue
                gain = differences(values, reference)
                theirs, their_error = paper.get(row.paper, {}).get(label, (None, None))
                records.append(
                    {
                        "cell": label,
                        "system": row.title,
                        "epoch": choice,
                        "n": number.n,
                        "of_other_code": len(runs.outdated(row.stage)),
                        "test_accuracy": number.mean,
                        "standard_error": number.error,
                        "minus_cross_entropy": None if gain is None else gain.mean,
                        "minus_cross_entropy_standard_error": None if gain is None else gain.error,
                        "p_value_uncorrected": p_value(values, reference),
                        "paper": theirs if choice == "best" else None,
                        "paper_standard_error": their_error if choice == "best" else None,
                        "seeds": " ".join(f"{seed}:{value:.2f}" for seed, value in values.items()),
                    }
                )
    return records
