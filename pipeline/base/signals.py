"""SIGINT and SIGTERM: they end the process at once, or are remembered until it has saved its work."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM)
AGAIN_S = 1.0
"""After which a second Ctrl-C is one: before, it is the first, which a launcher has passed on as well."""


@dataclass
class Stop:
    """A signal that waits.

    Attributes:
        requested: the number of the signal; 0 before one has come.
    """

    requested: int = 0


def end(number: int) -> NoReturn:
    """End the process, with 128 + the signal's number."""
    raise SystemExit(128 + number)


@contextmanager
def at_once() -> Iterator[None]:
    """Both signals raise SystemExit(128 + number) while the block runs."""

    with _handled(lambda number, _: end(number)):
        yield


def ignore() -> None:
    """From now on, neither signal has any effect."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def deferred() -> Iterator[Stop]:
    """The first signal is only remembered while the block runs. A second Ctrl-C ends the process at once.

    A second SIGTERM does not: batch systems and launchers send several for one stop, seconds apart on a busy machine,
    and kill whom they can't wait for.
    """
    stop, first = Stop(), math.inf

    def remember(number: int, _: FrameType | None) -> None:
        nonlocal first
        if number == stop.requested == signal.SIGINT and time.monotonic() - first > AGAIN_S:
            end(number)
        stop.requested, first = stop.requested or number, min(first, time.monotonic())

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
