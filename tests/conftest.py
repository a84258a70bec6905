"""Settings for all tests: one thread, because its number changes the bits; reproducible property tests."""

import browser
import pytest
import torch
from hypothesis import settings

from pipeline.base import console

torch.set_num_threads(1)
settings.register_profile("repeatable", deadline=None, derandomize=True, database=None, max_examples=60)
settings.load_profile("repeatable")


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a command in this process tells on standard error."""
    lines: list[str] = []
    for name in ("say", "warn", "fail"):
        monkeypatch.setattr(console, name, lines.append)
    return lines


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped = [
        report for report in terminalreporter.stats.get("skipped", []) if browser.LACKING in str(report.longrepr)
    ]
    if skipped:
        terminalreporter.section("NO PAGE WAS TESTED IN A BROWSER", sep="!", red=True, bold=True)
        terminalreporter.write_line(f"{len(skipped)} tests skipped: {browser.LACKING}")
