"""The library as a whole: what it exports, what its packages import of one another, what its README shows."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import mlnt

ROOT = Path(mlnt.__file__).parents[1]
MAY_IMPORT = {
    "images": set(),
    "noise": set(),
    "networks": set(),
    "seeding": set(),
    "training": {"images", "seeding"},
    "method": {"training"},
    "baselines": {"training", "method"},
}
"""By package or module below mlnt: which others."""


def imported(path: Path) -> set[str]:
    """Which packages and modules below mlnt a file imports, inside functions too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "mlnt":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mlnt."):
            found.add(str(node.module).split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("mlnt.")}
    return found


@pytest.mark.parametrize("name", MAY_IMPORT)
def test_imports_descend(name: str) -> None:
    folder = ROOT / "mlnt" / name
    files = list(folder.rglob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]
    assert files
    assert {path.name: imported(path) - {name} - MAY_IMPORT[name] for path in files} == {p.name: set() for p in files}


def test_no_package_is_left_out_above() -> None:
    parts = {path.stem for path in (ROOT / "mlnt").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert parts - {"__init__"} == MAY_IMPORT.keys()


def test_every_exported_name_is_where_the_type_checker_finds_it() -> None:
    tree = ast.parse(Path(mlnt.__file__).read_text(encoding="utf-8"))
    (checked,) = [node for node in tree.body if isinstance(node, ast.If)]
    declared = {alias.name: node.module for node in checked.body for alias in node.names}
    assert declared == mlnt._DEFINED_IN
    for name, module in declared.items():
        assert getattr(mlnt, name) is getattr(sys.modules[module], name)
    with pytest.raises(AttributeError, match="module 'mlnt' has no attribute 'Bach'"):
        _ = mlnt.Bach


def test_what_needs_no_torch_does_not_import_it() -> None:
    code = (
        "import sys, mlnt, mlnt.noise.matrices, mlnt.noise.by_image, mlnt.images.statistics, mlnt.images.worker, "
        "mlnt.seeding, pipeline.cli; "
        "print(mlnt.seeding.numpy_generator(0).random() >= 0, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == ["True", "False"]


def test_the_example_of_the_readme_runs() -> None:
    """As it stands, with a batch of random images, labels and features."""
    section = (ROOT / "README.md").read_text(encoding="utf-8").split("## As a library")[1]
    example = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    assert example
    draw = torch.Generator().manual_seed(0)
    names = {
        "images": torch.randn(16, 3, 8, 8, generator=draw),
        "labels": torch.randint(10, (16,), generator=draw),
        "features": torch.randn(16, 4, generator=draw),
    }
    exec(example[1], names)  # noqa: S102
    assert names["metrics"].keys() == {"class_loss", "meta_loss", "student_correct", "teacher_correct"}
    assert all(value.isfinite() for value in names["metrics"].values())
