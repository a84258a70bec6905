"""docs/methods.md: the method that it writes step by step is one, in a copy of the code."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from projects import ROOT, write_params

from pipeline.systems.registry import GROUPS, SYSTEMS

PAGE = (ROOT / "docs/methods.md").read_text(encoding="utf-8")
RUN = """
from pathlib import Path
from pipeline.params.load import load
from pipeline.stages import download, evaluate, noise, train
params = load(Path("params.yaml"))
download.run(params), noise.run(params), train.run(params, "bootstrapping"), evaluate.run(params, "references")
"""


def changed(path: Path, *pairs: tuple[str, str]) -> None:
    text = path.read_text(encoding="utf-8")
    for old, new in pairs:
        assert text.count(old) == 1, (path, old)
        text = text.replace(old, new)
    path.write_text(text, encoding="utf-8")


def test_the_example_becomes_a_system_that_is_trained_and_judged(tmp_path: Path) -> None:
    for name in ("mlnt", "pipeline"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    library, entry, section = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    (parameters,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "mlnt/baselines/bootstrapping.py").write_text(library, encoding="utf-8")
    (tmp_path / "pipeline/systems/bootstrapping.py").write_text(entry, encoding="utf-8")
    changed(
        tmp_path / "pipeline/systems/registry.py",
        ("REFERENCES = (", "REFERENCES = (*bootstrapping.SYSTEMS, "),
        ("from pipeline.systems import (", "from pipeline.systems import (\n    bootstrapping,"),
    )
    with (tmp_path / "pipeline/params/systems.py").open("a", encoding="utf-8") as file:
        file.write(f"\n\n{section}")
    changed(
        tmp_path / "pipeline/params/schema.py",
        ("class Params(Section):\n", "class Params(Section):\n    bootstrapping: systems.Bootstrapping\n"),
    )
    write_params(tmp_path, train__epochs=1)
    with (tmp_path / "params.yaml").open("a", encoding="utf-8") as file:
        file.write(parameters)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", RUN]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    judged = json.loads((tmp_path / "metrics/references.json").read_text(encoding="utf-8"))["bootstrapping"]
    assert 0 < judged["student"]["last"]["test_accuracy"] < 1
    assert 0 < judged["label_issues"]["auc"] <= 1
    with (tmp_path / "reports/references_label_issues.csv").open(encoding="utf-8") as file:
        assert sum(line.startswith("bootstrapping,") for line in file) > 200
    (record,) = json.loads((tmp_path / "records/bootstrapping.json").read_text(encoding="utf-8"))
    assert record["params"]["bootstrapping.beta"] == 0.95


def test_the_page_has_every_system_beside_the_default_run_with_its_file() -> None:
    for group in GROUPS.values():
        for system in (each for each in group.systems if each.in_tables):
            (line,) = (line for line in PAGE.splitlines() if f"| `{system.name}` |" in line)
            (file,) = re.findall(r"`(mlnt/baselines/\w+\.py)`", line)
            assert (ROOT / file).is_file()
            assert (f"| {system.prior} |" in line) == (system.prior != "the distribution of the true classes")
    assert all(system.title in PAGE or system.title.rstrip(" 123") in PAGE for system in SYSTEMS if system.default)
