"""How the tables of finished experiments look: cells, Markdown, the HTML page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined

from pipeline.paper.statistics import Mean, Row

CHOICES = {"best": "the epoch of the highest validation accuracy", "last": "the last epoch"}


@dataclass(frozen=True)
class Entry:
    """One number of a table, with all that is known about it. `number` is None where no experiment has finished."""

    number: Mean | None
    significance: str
    bold: bool
    paper: tuple[float, float | None] | None
    older: bool = False

    @property
    def text(self) -> str:
        if self.number is None:
            return ""
        error = "" if self.number.error is None else f" ± {self.number.error:.1f}"
        mark = {"better": " ↑", "worse": " ↓"}.get(self.significance, "")
        return f"{self.number.mean:.1f}{error} ({self.number.n}){mark}{' †' if self.older else ''}"

    @property
    def beside(self) -> str:
        """The paper's number, then ours minus it, in points and in standard errors of the difference."""
        if self.number is None or self.paper is None:
            return ""
        ours, (theirs, their_error) = self.number, self.paper
        points = f"{ours.mean - theirs:+.1f}"
        if ours.error is None or their_error is None or (error := math.hypot(ours.error, their_error)) == 0:
            return f"{theirs:g} ({points})"
        return f"{theirs:g} ({points}; {(ours.mean - theirs) / error:+.0f} se)"


@dataclass(frozen=True)
class SystemTable:
    """Systems by cells, for one choice of the epoch."""

    choice: str
    columns: list[str]
    rows: list[tuple[Row, list[Entry]]]

    @property
    def has_paper(self) -> bool:
        return any(cell.paper for _, cells in self.rows for cell in cells)


@dataclass(frozen=True)
class Section:
    """What the page shows of one sweep."""

    name: str
    title: str
    about: str
    tables: list[SystemTable]
    drawing: str | None
    notes: list[str]


def page(sections: Sequence[Section], preset: str) -> str:
    """All sections as the text of one HTML page."""
    environment = Environment(loader=PackageLoader("pipeline.paper", "."), autoescape=True, undefined=StrictUndefined)
    template = environment.get_template("page.html.jinja")
    return template.render(sections=sections, preset=preset, choices=CHOICES)


def markdown(section: Section) -> str:
    lines = [f"# {section.title}", "", section.about]
    for table in section.tables:
        lines += ["", f"Test accuracy at {CHOICES[table.choice]}:", "", _line(["", *table.columns]), _rule(table)]
        for row, cells in table.rows:
            lines.append(_line([row.title, *(f"**{cell.text}**" if cell.bold else cell.text for cell in cells)]))
        if table.has_paper:
            lines += ["", "The paper's numbers, on its own data:", "", _line(["", *table.columns]), _rule(table)]
            for row, cells in table.rows:
                if any(cell.paper for cell in cells):
                    lines.append(_line([row.title, *(cell.beside for cell in cells)]))
    if section.drawing:
        lines += ["", f"![{section.title}]({section.name}.svg)"]
    lines += ["", *(f"- {note}" for note in section.notes)] if section.notes else []
    return "\n".join(lines) + "\n"


def _rule(table: SystemTable) -> str:
    return "|---" * (len(table.columns) + 1) + "|"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
