"""The scripts of bench/ run for minutes; that they start is tested here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench"


@pytest.mark.parametrize(
    "script", ["measure", "precision", "profile_epoch", "scaling", "seeds", "select_recipe", "step", "storage"]
)
def test_script_starts(script: str) -> None:
    command = [sys.executable, BENCH / f"{script}.py", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "usage:" in done.stdout
