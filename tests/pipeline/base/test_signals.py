"""A signal that waits until work is saved."""

from __future__ import annotations

import os
import signal

import pytest

from pipeline.base import signals


def test_the_first_signal_waits_with_its_echo_and_a_second_ctrl_c_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    with signals.deferred() as stop:
        assert stop.requested == 0
        for _ in range(2):  # a terminal's own, and what a launcher passes on
            os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested == signal.SIGINT
        monkeypatch.setattr(signals, "AGAIN_S", 0.0)
        with pytest.raises(SystemExit) as caught:
            os.kill(os.getpid(), signal.SIGINT)
    assert caught.value.code == 130


def test_a_batch_system_may_repeat_its_signal_however_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "AGAIN_S", 0.0)
    with signals.deferred() as stop:
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)
    assert stop.requested == signal.SIGTERM
