"""A signal that waits until work is saved."""

from __future__ import annotations

import os
import signal

import pytest

from pipeline.base import signals


def test_the_first_signal_waits_with_its_echo_and_a_second_one_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    with signals.deferred() as stop:
        assert stop.requested == 0
        for number in (signal.SIGTERM, signal.SIGTERM):  # a batch system's own, and what its launcher passes on
            os.kill(os.getpid(), number)
        assert stop.requested == signal.SIGTERM
        monkeypatch.setattr(signals, "AGAIN_S", 0.0)
        with pytest.raises(SystemExit) as caught:
            os.kill(os.getpid(), signal.SIGINT)
    assert caught.value.code == 130
