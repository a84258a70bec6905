from __future__ import annotations

import pytest
from recordings import Recorder


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """What `Training.record` records with."""
    recorder = Recorder()
    monkeypatch.setattr("mlnt.training.cuda_graph.CUDAGraphs", lambda device: recorder)
    return recorder
