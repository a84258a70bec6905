"""Imports only descend: which package may import which. A new arrow is a decision, and is made here."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

LIBRARY = {
    "images": set(),
    "noise": set(),
    "networks": set(),
    "seeding": set(),
    "training": {"images", "seeding"},
    "method": {"training"},
    "baselines": {"training", "method"},
}
SHELL = {
    "base": set(),  # which every other may use
    "params": set(),
    "decoding": set(),
    "store": {"decoding", "params"},
    "sources": {"decoding", "store"},
    "training": {"decoding", "store", "params"},
    "before_training": {"store", "params", "training"},
    "systems": {"store", "params", "training"},
    "report": {"store", "systems"},
    "stages": {"decoding", "store", "params", "sources", "training", "before_training", "systems", "report"},
    "paper": {"store", "params", "sources", "training", "before_training", "systems", "report", "stages"},
    "workspace": {"decoding", "store", "params", "sources", "training", "before_training", "systems", "stages"},
    "use": {"decoding", "store", "params", "sources", "training", "systems"},
    "cli": {"params", "systems", "report", "stages", "use", "paper", "workspace"},
    "__main__": {"cli"},
}


def part(module: str) -> str:
    """`mlnt.method.step` → `method`; nothing for the package itself."""
    return (module.split(".")[1:] or [""])[0]


def imports(path: Path) -> Iterator[str]:
    """Modules that a file imports, those inside of functions and for type checkers included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            # `from pipeline import console` names a module, `from pipeline.base.files import GIB` none.
            yield from (
                [f"{node.module}.{alias.name}" for alias in node.names] if "." not in node.module else [node.module]
            )


@pytest.mark.parametrize(("package", "allowed"), [("mlnt", LIBRARY), ("pipeline", SHELL)])
def test_imports_only_descend(package: str, allowed: dict[str, set[str]]) -> None:
    found = set()
    for path in sorted((ROOT / package).rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        if path.name == "__init__.py" and path.parent.name == package:
            continue  # the names that the library exports
        source = part(module.removesuffix(".__init__"))
        assert source in allowed, f"{module}: a new part; give it a row in this table"
        targets = {part(name) for name in imports(path) if name.split(".")[0] == package}
        found |= {(source, target) for target in targets - {source}}
    assert {arrow for arrow in found if arrow[1] not in allowed[arrow[0]] | {"base"}} == set()
    unused = {(source, target) for source, targets in allowed.items() for target in targets} - found
    assert unused == set(), "arrows that nothing needs"


def test_the_library_knows_nothing_of_the_shell() -> None:
    assert not [
        path for path in (ROOT / "mlnt").rglob("*.py") if any(n.split(".")[0] == "pipeline" for n in imports(path))
    ]
