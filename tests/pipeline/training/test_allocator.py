from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from pipeline.training.device import keep_freed_memory

FAULTS = """
import resource, sys, torch
from pipeline.training.device import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def use():
    for _ in range(20):
        torch.zeros(8 << 20)  # 32 MiB, freed at once
    torch.empty(3 << 28)  # 3 GiB, not touched: a free end of the heap longer than a threshold of 32 bits
use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library's allocator is another")
def test_freed_memory_is_used_again() -> None:
    faults = [
        int(subprocess.run([sys.executable, "-c", FAULTS, mode], capture_output=True, text=True, check=True).stdout)
        for mode in ("keep", "default")
    ]
    assert faults[0] * 10 < faults[1]


def test_other_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not keep_freed_memory()
