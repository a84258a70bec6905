"""The files of a workspace, made of those of this package.

They lie beside `pipeline/` in the sources, and below this package where a wheel was installed (pyproject.toml).
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

from ruamel.yaml import YAML

from pipeline.base.errors import UserError
from pipeline.sources.places.folder import first_few

INSTALLED = Path(__file__).with_name("files")
SOURCE = INSTALLED if INSTALLED.is_dir() else Path(__file__).parents[2]
PARAMS = "params.yaml"
IGNORED = ".gitignore"
CONFIG = ".dvc/config"
STAGES = ("dvc.yaml", "baselines/dvc.yaml", "references/dvc.yaml")
DVC = (".dvcignore", CONFIG, ".dvc/.gitignore")
"""What makes a folder a DVC repository; one that is there stays as it is."""

CODE = ("mlnt/", "pipeline/")
HEADER = """\
# Made by `mlnt init` for the installed package. The code of a stage is not here: stage look writes a digest of it,
# and with another version of the package `dvc repro` runs what that changes.
#
"""


def original() -> dict[str, str]:
    """The files as the package has them: path → text."""
    presets = sorted(f"presets/{path.name}" for path in (SOURCE / "presets").glob("*.yaml"))
    names = [*DVC, IGNORED, PARAMS, *STAGES, *presets]
    return {name: (SOURCE / name).read_text(encoding="utf-8") for name in names}


def without_code(text: str) -> str:
    """A dvc.yaml for a workspace, which holds no code: a digest of it stands for each stage's folders of code."""
    yaml = YAML()  # round-trip, for the comments
    yaml.preserve_quotes = True
    yaml.width = 150
    yaml.indent(mapping=2, sequence=4, offset=2)
    document = yaml.load(text)
    for name, entry in document["stages"].items():
        stage = entry.get("do", entry)
        if name == "look":
            stage["cmd"] += " --code"
            stage["outs"].append("data/seen/code")
            continue
        deps = stage["deps"]
        for i in reversed(range(len(deps))):  # in place: the list keeps the way that it is written
            if deps[i].startswith(CODE):
                del deps[i]
        deps.append(f"data/seen/code/{'${key}' if 'foreach' in entry else name}.csv")
    buffer = io.StringIO()
    yaml.dump(document, buffer)
    return HEADER + buffer.getvalue()


def missing(folder: Path, wanted: Mapping[str, str], before: Mapping[str, str]) -> dict[str, str]:
    """Which of the wanted files are to be written: those that are not there, or are there as the package has them.

    Args:
        before: the files as the package has them.

    Raises:
        UserError: a file is there with any other content: none is replaced.
    """
    left: dict[str, str] = {}
    others: list[str] = []
    for name, text in wanted.items():
        there = _read(folder / name)
        if there is None:
            left[name] = text
        elif there == before[name] and name not in STAGES:  # a clone's dvc.yaml names the clone's code, as it should
            left |= {name: text} if there != text else {}
        elif there not in (text, before[name]) and name not in DVC:
            others.append(name)
    if others:
        raise UserError(
            f"{folder}: found {first_few(others, ', ')} with other content than `mlnt init` writes; it replaces no "
            "file, and nothing was changed. If this is a workspace, `mlnt preset imagefolder-quick` and then data.root "
            "in params.yaml take your images; otherwise name a new folder, as in `mlnt init NEW`"
        )
    return left


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"{path}: not readable ({error}); name a new folder, as in `mlnt init NEW`") from error
