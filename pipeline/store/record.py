"""What a result came from, written beside it by the stage that made it: records/<stage>.json.

Tables, sweeps and checkpoints decide by these records what is the same experiment. A record holds no time, host or
path, and is committed: it is found in experiments, in branches and in a colleague's clone.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from pipeline.base import files
from pipeline.params.schema import placeless
from pipeline.store.code import code_digest

PACKAGES = ("numpy", "pillow", "scikit-learn", "scipy", "timm", "torch")


@dataclass(frozen=True)
class Record:
    """
    Attributes:
        stage: that made the result.
        params: the parameters that it read, by dotted name, as plain values, without places (`placeless`).
        inputs: digests of what it read, by name; `labels` is what the noise stage names so among its outputs.
        outputs: digests of what others read of it.
        code: digest of the code that its numbers come from (`code_digest`).
        versions: of the packages that numbers come from.
    """

    stage: str
    params: Mapping[str, Any]
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    code: str
    versions: Mapping[str, str]

    @classmethod
    def of(
        cls,
        stage: str,
        params: Mapping[str, Any],
        modules: Iterable[str],
        inputs: Mapping[str, str],
        outputs: Mapping[str, str] | None = None,
    ) -> Record:
        """The record of what this process is making; `modules` are those that the stage runs."""
        versions = {name: metadata.version(name) for name in PACKAGES}
        return cls(stage, placeless(params), dict(inputs), dict(outputs or {}), code_digest(*modules), versions)

    def write(self) -> None:
        """Replace records/<stage>.json."""
        # A list: DVC takes the file for metrics, which are committed and kept in the run cache, and shows no list.
        files.write_text(place(self.stage), json.dumps([asdict(self)], indent=1, sort_keys=True) + "\n")


def place(stage: str) -> Path:
    """The file of a stage's record."""
    return files.RECORDS / f"{stage}.json"


def parse(text: str) -> Record | None:
    """The record in such a file; None for another file, or one of another version of this package."""
    try:
        (found,) = json.loads(text)
        return Record(**found)
    except (ValueError, TypeError):
        return None


def read(stage: str) -> Record | None:
    """The record in this folder; None where there is none."""
    path = place(stage)
    return parse(path.read_text(encoding="utf-8")) if path.exists() else None


def follows(record: Record, before: Iterable[Record]) -> bool:
    """Whether the result was made from what these stages have left: every input that one of them names is that one."""
    known: dict[str, str] = {}
    for each in before:
        known |= each.outputs
    return all(known.get(name, digest) == digest for name, digest in record.inputs.items())
