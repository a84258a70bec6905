"""`mlnt preset`: whole recipes, merged into params.yaml.

A preset is a file in presets/ beside params.yaml, whose first line describes it; you can add your own.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from pipeline.base import files
from pipeline.base.errors import UserError
from pipeline.params.load import changed, check, leaves, parse_yaml, read_yaml

FOLDER = Path("presets")


def available(folder: Path = FOLDER) -> dict[str, str]:
    """name → the preset's first line.

    Raises:
        UserError: there is no such folder.
    """
    found = {path.stem: path.read_text(encoding="utf-8").partition("\n")[0] for path in sorted(folder.glob("*.yaml"))}
    if not found:
        raise UserError(f"{folder}/: no presets here; run this where params.yaml lies")
    return {name: line.lstrip("# ") for name, line in found.items()}


def apply(name: str, target: Path, instead: Mapping[str, Any] | None = None) -> list[str]:
    """Merge a preset into the parameter file: its keys alone change, comments and order stay. So does a file that the
    preset's network starts from already: it is there because timm's weights cannot be fetched, or others are wanted.

    Returns a line for each change. The result is checked before it is written.

    Args:
        instead: dotted key → the value that takes the place of the preset's.

    Raises:
        UserError: unknown preset, or one that does not fit the schema.
    """
    folder = target.parent / FOLDER
    start = _start_that_stays(leaves(read(name, folder)), leaves(_read_sections(target)))
    changes = changed(_yaml().load((folder / f"{name}.yaml").read_text(encoding="utf-8")), start | dict(instead or {}))
    text, lines = merged(target.read_text(encoding="utf-8"), changes, f"{target} with {name}.yaml")
    if lines:
        files.write_text(target, text)
    return lines or [f"{target} is {name} already"]


def batch_size(values: Mapping[str, Any], train: int, validation: int, found: str = "data.root: found") -> int:
    """`train.batch_size` for so many images: the one given, or less where they do not fill it: half of those that are
    trained on at a time, so that there are two mini-batches, or all of them.

    Args:
        values: parameters by dotted key.
        found: what a message begins with.

    Raises:
        UserError: there are too few to draw labels from neighbours.
    """
    left = train if validation else train - round(values["noise.validation_fraction"] * train)
    if folds := values["train.folds"]:
        left -= math.ceil(left / folds)
    if left >= values["train.batch_size"]:
        return int(values["train.batch_size"])
    if left <= (least := values["mlnt.neighbors"]):
        raise UserError(
            f"{found} {train} training images, of which {left} are left to train on at a time; expected at "
            f"least {least + 1}, and some hundred for results that mean something"
        )
    return left // 2 if left // 2 > least else left


def _start_that_stays(preset: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    if (
        preset.get("model.pretrained")
        and preset.get("model.name") == own.get("model.name")
        and own.get("model.weights")
    ):
        return {"model.pretrained": False, "model.weights": own["model.weights"]}
    return {}


def merged(text: str, changes: Mapping[str, Any], where: str) -> tuple[str, list[str]]:
    """The text of a parameter file with these values merged into it, and a line for each change.

    Args:
        changes: section → parameter → value.
        where: what a message names.

    Raises:
        UserError: the result does not fit the schema.
    """
    yaml = _yaml()
    document = yaml.load(text)
    lines = list(_merge(document, changes))
    buffer = io.StringIO()
    yaml.dump(document, buffer)
    check(parse_yaml(buffer.getvalue()), Path(where))
    return buffer.getvalue(), lines


def _yaml() -> YAML:
    """Round-trip: comments, and the way that a value is written, are part of the document."""
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 200
    return yaml


def read(name: str, folder: Path = FOLDER) -> dict[str, Any]:
    """A preset's values as plain Python.

    Raises:
        UserError: unknown preset, no YAML, or no mapping of sections.
    """
    if name not in (presets := available(folder)):
        raise UserError(f"preset: found {name!r}, expected one of {', '.join(presets)}")
    return _read_sections(folder / f"{name}.yaml")


def _read_sections(path: Path) -> dict[str, Any]:
    found = read_yaml(path)
    if not isinstance(found, dict):
        raise UserError(f"{path}: expected sections such as `train:`, found {type(found).__name__}")
    return found


def _merge(document: Any, changes: Mapping[str, Any]) -> Iterator[str]:
    """Set each parameter of the preset; one that is a mapping itself is replaced as a whole."""
    for key, value in leaves(changes).items():
        section, _, name = key.rpartition(".")
        place = document.setdefault(section, {}) if section else document
        if not isinstance(place, dict) or place.get(name, ...) != value:
            yield f"{key}: {_text(place.get(name) if isinstance(place, dict) else place)} → {_text(value)}"
            place[name] = value


def _text(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
