"""Which files of this project a module needs, found in its import statements: those inside functions too, but not those
for the type checker alone."""

from __future__ import annotations

import ast
from collections.abc import Collection
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("mlnt", "pipeline")


def closure(*start: str, stop: Collection[str] = ()) -> set[str]:
    """Paths, relative to the project, of everything that these files import, themselves included; not what the files
    of `stop` import."""
    found: set[str] = set()
    left = list(start)
    while left:
        path = left.pop()
        if path not in found:
            found.add(path)
            left += [] if path in stop else _imported(path)
    return found


def _imported(path: str) -> list[str]:
    files: list[str] = []
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    tree.body = [
        node for node in tree.body if not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    ]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            if name.split(".")[0] in PACKAGES:
                module = Path(*name.split("."))
                candidates = (
                    module.with_suffix(".py"),
                    *(parent / "__init__.py" for parent in (module, *module.parents)),
                )
                files += [str(candidate) for candidate in candidates if (ROOT / candidate).is_file()]
    return files
