"""SIGINT and SIGTERM: they end the process at once, or are remembered until it has saved its work."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass
class Stop:
    """A signal that waits.

    Attributes:
        requested: the number of the signal; None before one has come.
    """

    requested: int | None = None

    def now(self) -> NoReturn:
        """End the process, with 128 + the signal's number."""
        raise SystemExit(128 + (self.requested or 0))


@contextmanager
def at_once() -> Iterator[None]:
    """Both signals raise SystemExit(128 + number) while the block runs."""

    def end(number: int, _: FrameType | None) -> None:
        Stop(number).now()

    with _handled(end):
        yield


@contextmanager
def deferred() -> Iterator[Stop]:
    """The first signal is only remembered while the block runs; the second ends the process at once."""
    stop = Stop()

    def remember(number: int, _: FrameType | None) -> None:
        if stop.requested is not None:
            stop.now()
        stop.requested = number

    with _handled(remember):
        yield stop


@contextmanager
def _handled(handler: signal._HANDLER) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)
