"""A run of all stages in this process, to look at or to spoil."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from projects import STAGES, digests, run_stage

from pipeline.params.schema import Params


@dataclass(frozen=True)
class Run:
    """A run of all stages, and the files that each of them wrote."""

    folder: Path
    params: Params
    written: dict[str, set[str]]

    def json(self, path: str) -> Any:
        return json.loads((self.folder / path).read_text(encoding="utf-8"))

    def table(self, path: str) -> list[dict[str, str]]:
        with (self.folder / path).open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))

    def text(self, path: str) -> str:
        return (self.folder / path).read_text(encoding="utf-8")


def run_all(folder: Path, params: Params) -> Run:
    written: dict[str, set[str]] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        before: dict[str, str] = {}
        for stage in STAGES:
            run_stage(stage, params)
            after = digests(folder)
            written[stage] = {name for name, digest in after.items() if before.get(name) != digest}
            before = after
    return Run(folder, params, written)
