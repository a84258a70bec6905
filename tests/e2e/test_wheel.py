"""The wheel, without the sources: `mlnt init`, and what DVC runs after another version of the package was installed."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

import pytest
from projects import ROOT, TINY, digests, dvc, edit_params, run, run_pipeline
from test_dvc import ran

from pipeline.workspace import layout


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The unpacked wheel, first on the path of every process."""
    build = "import sys; from hatchling.build import build_wheel; build_wheel(sys.argv[1])"
    done = run(ROOT, sys.executable, "-c", build, str(tmp_path))
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "site"
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        wheel.extractall(folder)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    return folder


def test_a_workspace_of_the_wheel_runs_what_another_version_changes(site: Path, tmp_path: Path) -> None:
    assert digests(site / "pipeline/workspace/files") == digests(ROOT, *layout.original())
    work = tmp_path / "work"
    done = run_pipeline(tmp_path, "init", "work")
    assert done.returncode == 0, done.stderr
    edit_params(work / "params.yaml", TINY)
    first = dvc(work, "repro", "noise")
    assert first.returncode == 0, first.stderr
    assert ran(first) == ["download", "noise"]
    made_by = (work / "records/noise.json").read_text(encoding="utf-8")
    code = site / "pipeline/stages/noise.py"
    code.write_text(code.read_text(encoding="utf-8") + "# a comment\n", encoding="utf-8")
    assert ran(dvc(work, "repro", "noise")) == []
    code.write_text(code.read_text(encoding="utf-8") + "CHANGED = True\n", encoding="utf-8")
    assert ran(dvc(work, "repro", "noise")) == ["noise"]
    assert (work / "records/noise.json").read_text(encoding="utf-8") != made_by
