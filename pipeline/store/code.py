"""A digest of the code that a result's numbers depend on: what a module imports, without comments and docstrings, and
the templates and tables beside it."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("mlnt", "pipeline")
NO_NUMBERS = (
    "mlnt",
    "pipeline",
    "pipeline.before_training",
    "pipeline.before_training.estimate",
    "pipeline.before_training.timing",
    "pipeline.before_training.trial",
    "pipeline.base.console",
    "pipeline.base.errors",
    "pipeline.base.locks",
    "pipeline.params",
    "pipeline.params.load",
    "pipeline.params.schema",
    "pipeline.params.systems",
    "pipeline.params.values",
    "pipeline.base.signals",
    "pipeline.store.code",
    "pipeline.store.record",
    "pipeline.store.sizes",
    "pipeline.systems.registry",
    "pipeline.training.processes",
)
"""Modules that are not looked at, nor what they alone import: messages, the schema, the list of all systems, what is
known before training."""

BESIDE = (".jinja", ".js", ".css", ".csv")
"""Ends of the files beside modules that are no Python and that they read."""


def code_digest(*modules: str) -> str:
    """SHA-256 over everything of this project that the modules import, wherever in them an import stands, save those
    for the type checker alone, and over the files beside each module whose names end as in `BESIDE`.

    A comment, a docstring, the way a line is broken or a module that is not imported changes nothing, nor does the
    version of Python that parses it.
    """
    digest = hashlib.sha256()
    found = _closure(modules)
    for module in sorted(found):
        digest.update(f"{module} {_module_digest(module)}\n".encode())
    folders = {_file(module).parent for module in found}
    for path in sorted(path for folder in folders for path in folder.iterdir() if path.suffix in BESIDE):
        digest.update(f"{path.relative_to(ROOT).as_posix()} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def _closure(modules: tuple[str, ...]) -> set[str]:
    found: set[str] = set()
    left = list(modules)
    while left:
        if (module := left.pop()) not in found and module not in NO_NUMBERS:
            found.add(module)
            left += _imported(module)
    return found


def _file(module: str) -> Path:
    path = ROOT.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@cache
def _tree(module: str) -> ast.Module:
    return ast.parse(_file(module).read_text(encoding="utf-8"))


@cache
def _imported(module: str) -> list[str]:
    names: list[str] = []
    tree = _tree(module)
    typed = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    for node in {*ast.walk(tree)}.difference(*map(ast.walk, typed)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return [name for name in names if name.split(".")[0] in PACKAGES and _is_module(name)]


def _is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


@cache
def _module_digest(module: str) -> str:
    return hashlib.sha256("\n".join(_lines(_tree(module))).encode()).hexdigest()


def _lines(node: ast.AST) -> Iterator[str]:
    """The syntax tree in an order of its own, without docstrings: `ast.dump` differs between versions of Python."""
    yield type(node).__name__
    for name, value in ast.iter_fields(node):
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, ast.AST):
                if not (isinstance(item, ast.Expr) and isinstance(item.value, ast.Constant)):
                    yield name
                    yield from _lines(item)
            elif item is not None:
                yield f"{name} {item!r}"
