"""What people see while a stage runs, on standard error: bars on a terminal, elsewhere a line now and then."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

T = TypeVar("T")

NOTES_APART_S = 5.0
"""Without a terminal: seconds between two lines about something that was finished, such as an epoch; the last one is
always there."""

LINES_APART_S = 60.0
"""And between two lines that only tell how far it is."""

_stderr = Console(stderr=True, highlight=False, soft_wrap=True)


def say(text: str) -> None:
    _print(text)


def warn(text: str) -> None:
    _print(f"warning: {text}", style="yellow")


def fail(text: str) -> None:
    _stderr.quiet = False
    _print(f"error: {text}", style="red")


def mute() -> None:
    """Say nothing more but `fail`: another process speaks for this one."""
    _stderr.quiet = True


def _print(text: str, style: str | None = None) -> None:
    """Print a text; control characters, which file and class names may hold, are shown escaped."""
    shown = "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)
    _stderr.print(shown, markup=False, style=style)


def duration(seconds: float) -> str:
    """As people say it: 12 s, 1 min 10 s, 25 min, 3 h 20 min, 5 days."""
    if seconds < 59.5:
        return f"{max(1, round(seconds))} s"
    if seconds < 600:
        return _two(round(seconds, -1), 60, "min", "s")
    if seconds < 59.5 * 60:
        return f"{round(seconds / 60)} min"
    if seconds < 48 * 3600:
        return _two(round(seconds / 60, -1 if seconds >= 36000 else 0), 60, "h", "min")
    return f"{round(seconds / 86400)} days"


def _two(value: float, size: int, large: str, small: str) -> str:
    whole, rest = divmod(round(value), size)
    return f"{whole} {large}" + (f" {rest} {small}" if rest else "")


class Bar(Protocol):
    """How far something is."""

    def at(self, step: int) -> None:
        """Step `step`, counted from 0, has begun or is done."""
        ...

    def note(self, text: str) -> None:
        """Something was finished."""
        ...


class Shown:
    def __init__(self, shown: Progress, task: TaskID) -> None:
        self._shown = shown
        self._task = task

    def at(self, step: int) -> None:
        self._shown.update(self._task, completed=step + 1)

    def note(self, text: str) -> None:
        self._shown.update(self._task, note=text)


class Lines:
    """The same in lines, for a log."""

    def __init__(self, title: str, total: int, unit: str) -> None:
        self._title = title
        self._total = total
        self._unit = unit
        self._first: tuple[int, float] | None = None  # the count that was heard of first, and when
        self._count = 0
        self._last = time.monotonic()

    def at(self, step: int) -> None:
        self._count = step + 1
        now = time.monotonic()
        if self._first is None:
            self._first = (self._count, now)
        if now - self._last >= LINES_APART_S:
            of = f" of {self._total:,}" if self._total else ""  # what is fetched may not say how long it is
            self._line(f"{self._unit} {self._count:,}{of}", now)

    def note(self, text: str) -> None:
        now = time.monotonic()
        if self._count >= self._total or now - self._last >= NOTES_APART_S:
            self._line(text, now)

    def _line(self, text: str, now: float) -> None:
        self._last = now
        left = self._total - self._count
        first, since = self._first or (self._count, now)
        if left > 0 and self._count > first:
            text += f"; {duration(left * (now - since) / (self._count - first))} left"
        say(f"{self._title}: {text}")


@contextmanager
def progress(title: str, total: int, unit: str = "image") -> Iterator[Bar]:
    """How far of `total` the block is: a bar on a terminal, else lines."""
    if not _stderr.is_terminal:
        yield Lines(title, total, unit)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=_stderr, transient=True) as shown:
        yield Shown(shown, shown.add_task(title, total=total, note=""))


def counted(items: Iterable[T], title: str, total: int, unit: str = "image") -> Iterator[T]:
    """The items, with how far they are."""
    with progress(title, total, unit) as shown:
        for number, item in enumerate(items):
            yield item
            shown.at(number)
