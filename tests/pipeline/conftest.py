from __future__ import annotations

from pathlib import Path

import pytest
from projects import copy_outputs, make_params
from runs import Run, run_all


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to run stages in: the current one."""
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of all stages."""
    return run_all(tmp_path_factory.mktemp("finished"), make_params())


@pytest.fixture
def copied(finished: Run, project: Path) -> Run:
    """The finished run's files in the current folder, to be spoiled."""
    copy_outputs(finished.folder, project)
    return Run(project, finished.params, finished.written)
