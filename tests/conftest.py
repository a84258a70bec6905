"""Settings for all tests: one thread, because its number changes the bits; reproducible property tests."""

import browser
import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("repeatable", deadline=None, derandomize=True, database=None, max_examples=60)
settings.load_profile("repeatable")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped = [
        report for report in terminalreporter.stats.get("skipped", []) if browser.LACKING in str(report.longrepr)
    ]
    if skipped:
        terminalreporter.section("NO PAGE WAS TESTED IN A BROWSER", sep="!", red=True, bold=True)
        terminalreporter.write_line(f"{len(skipped)} tests skipped: {browser.LACKING}")
