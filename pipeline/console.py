"""What people see while a stage runs: messages on standard error, and progress bars if that is a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

_stderr = Console(stderr=True, highlight=False, soft_wrap=True)


def say(text: str) -> None:
    _print(text)


def warn(text: str) -> None:
    _print(f"warning: {text}", style="yellow")


def fail(text: str) -> None:
    _print(f"error: {text}", style="red")


def _print(text: str, style: str | None = None) -> None:
    """Print a text; control characters, which file and class names may hold, are shown escaped."""
    shown = "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)
    _stderr.print(shown, markup=False, style=style)


class Bar:
    """A progress bar; it shows nothing where standard error is no terminal."""

    def __init__(self, progress: Progress | None, task: TaskID | None) -> None:
        self._progress = progress
        self._task = task

    def at(self, step: int) -> None:
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=step + 1)

    def note(self, text: str) -> None:
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, note=text)


@contextmanager
def progress(title: str, total: int) -> Iterator[Bar]:
    """Show a bar of `total` steps while the block runs; show nothing when standard error is no terminal."""
    if not _stderr.is_terminal:
        yield Bar(None, None)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=_stderr, transient=True) as shown:
        yield Bar(shown, shown.add_task(title, total=total, note=""))
