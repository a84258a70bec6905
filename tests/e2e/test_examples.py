"""examples/: each runs, and shows what it is there to show."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from projects import ROOT, environment
from threadpoolctl import threadpool_limits


def example(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_step_on_a_data_set_of_ones_own() -> None:
    found = example("own_dataset").main()
    assert found["MLNT student"] > found["Cross Entropy"] + 0.1
    assert found["MLNT teacher"] > found["Cross Entropy"] + 0.1


def test_label_issues_from_ones_own_predictions() -> None:
    with threadpool_limits(1):
        quality = example("label_issues").main()
    assert quality.precision > 0.9
    assert quality.recall > 0.9


def test_the_whole_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment(HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path / "hub")).items():
        monkeypatch.setenv(name, value)
    found = example("whole_loop").main(tmp_path)
    assert found["found"] > 0.7
    assert found["after"] > found["before"]
    assert found["zeros"] > 0.8
