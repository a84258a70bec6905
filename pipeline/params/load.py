"""Reading params.yaml: what is wrong with it, in one line a key."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline.base.errors import UserError
from pipeline.params.schema import Params, leaf_keys


def load(path: Path) -> Params:
    """Read and check a parameter file.

    Raises:
        UserError: no such file, no YAML, or every key that is unknown, missing or out of range.
    """
    return check(read_yaml(path), path)


def read_yaml(path: Path) -> Any:
    """The file as `parse_yaml` reads it.

    Raises:
        UserError: no such file, or no YAML.
    """
    try:
        return parse_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run this where params.yaml lies, or name it with --params") from None
    except (YAMLError, UnicodeDecodeError, OSError) as error:
        raise UserError(f"{path}: not readable as YAML: {error}") from error


def parse_yaml(text: str) -> Any:
    """Plain Python values (YAML 1.2, in which 1e-4 is a number); tags build nothing."""
    # The pure parser: the C one reads YAML 1.1, where 1e-4 is text and `no` a boolean.
    return YAML(typ="safe", pure=True).load(text)


def check(values: Any, path: Path) -> Params:
    """Validate plain values; `path` is named in the message.

    Raises:
        UserError: keys that are unknown, missing or out of range.
    """
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected sections such as `train:`, found {type(values).__name__}")
    try:
        return Params.model_validate(values)
    except ValidationError as error:
        lines = [_explain(dict(item)) for item in error.errors()]
        raise UserError("\n".join(f"{path}: {line}" for line in lines)) from None


def leaves(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys of two levels: section.name → value; a mapping below that is a value."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and not prefix:
            flat |= leaves(value, f"{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def values_of(params: Params, sections: Collection[str]) -> dict[str, Any]:
    """The parameters of these sections by dotted name, as plain values."""
    return leaves(params.model_dump(mode="json", by_alias=True, include=set(sections)))


def changed(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of the values, changed at these dotted keys."""
    result = copy.deepcopy(dict(values))
    for key, value in changes.items():
        section, _, name = key.rpartition(".")
        (result.setdefault(section, {}) if section else result)[name] = value
    return result


def _explain(error: dict[str, Any]) -> str:
    key = ".".join(str(part) for part in error["loc"])
    found = error["input"]
    if error["type"] == "extra_forbidden":
        near = difflib.get_close_matches(key.lower(), [k.lower() for k in leaf_keys()], n=1)
        names = {k.lower(): k for k in leaf_keys()}
        hint = f"; did you mean {names[near[0]]}?" if near else ""
        return f"{key}: no such parameter{hint}"
    if error["type"] == "missing":
        return f"{key}: missing; expected a value, as in the params.yaml that came with the package"
    message = error["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    return (
        f"{key}: found {found!r}; {message}" if key and not isinstance(found, dict) else f"{key or 'params'}: {message}"
    )
