"""The library as a whole: what it exports, and what its README shows."""

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
