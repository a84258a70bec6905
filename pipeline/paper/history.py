"""Finished experiments: which there are, with which parameters, and which of their files belong to those."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from ruamel.yaml import YAML

from pipeline.errors import UserError
from pipeline.paper.grid import ALL_STAGES, PARAMS, Values
from pipeline.params.load import check, leaves

LOCKS = ("dvc.lock", "baselines/dvc.lock")
CHECKPOINTS = Path("checkpoints")
HistoryRows = list[dict[str, str]]


@dataclass(frozen=True)
class Finished:
    """An experiment, or a commit, with the histories of those training stages that belong to its parameters.

    Attributes:
        name: of the experiment, or HEAD.
        commit: its revision.
        time: when it was made, seconds since 1970.
        params: its params.yaml.
        code: stage → digest of the library's modules that it ran.
        histories: stage → rows of plots/<stage>.csv.
    """

    name: str
    commit: str
    time: int
    params: Values
    code: Mapping[str, str]
    histories: Mapping[str, HistoryRows]


class LockLoader(yaml.CSafeLoader):
    """DVC writes YAML 1.2, in which 1e-05 is a number; PyYAML reads 1.1, in a hundredth of the time."""


LockLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


@cache
def relevant_keys(stages: tuple[str, ...]) -> frozenset[str]:
    """The parameters, by dotted name or section, that these stages and all before them depend on: as dvc.yaml says."""
    known: dict[str, Any] = _lock_yaml(Path("dvc.yaml").read_text(encoding="utf-8"))["stages"]
    baseline = _lock_yaml(Path("baselines/dvc.yaml").read_text(encoding="utf-8"))["stages"]["baseline"]
    for name, item in baseline["foreach"].items():
        deps, params = ([str(v) for v in baseline["do"][key]] for key in ("deps", "params"))
        known[name] = {
            "deps": [dep.replace("${item.needs}", item["needs"]) for dep in deps],
            "params": [key.replace("${item.method}", item["method"]) for key in params],
            "outs": [f"models/{name}"],
        }
    producers = {out: stage for stage, entry in known.items() for out in entry["outs"]}
    keys: set[str] = set()
    left, seen = list(stages), set(stages)
    while left:
        entry = known[left.pop()]
        keys |= {key for key in entry.get("params", []) if isinstance(key, str)}
        before = {producers[dep] for dep in entry["deps"] if dep in producers} - seen
        seen |= before
        left += before
    return frozenset(keys)


def identity(params: Values, stages: Sequence[str]) -> str:
    """Equal for parameters with which these stages train the same models, the seed included.

    Raises:
        UserError: parameters that do not fit the schema.
    """
    keys = relevant_keys(tuple(stages))
    flat = leaves(check(params, PARAMS).model_dump(mode="json", by_alias=True))
    chosen = {key: value for key, value in flat.items() if key in keys or key.partition(".")[0] in keys}
    return json.dumps(chosen, sort_keys=True)


def finished() -> list[Finished]:
    """All finished experiments of this repository, of every commit, and HEAD itself; the oldest first.

    A stage that an experiment did not run still lies in its commit, as its parent had it. Only such stages are taken
    whose entry in dvc.lock fits the parameters and the code of the commit, and whose inputs are the outputs of others.

    Raises:
        UserError: no git repository, or one without a commit.
    """
    refs = git("for-each-ref", "--format=%(refname) %(objectname) %(committerdate:unix)", "refs/exps").split("\n")
    found = [("HEAD", *git("log", "-1", "--format=%H %ct").split())]
    for line in filter(None, refs):
        ref, commit, seconds = line.split()
        parts = ref.split("/")
        if len(parts) == 5 and len(parts[2]) == 2:  # refs/exps/<2 digits>/<38 digits of the parent>/<name>
            found.append((parts[4], commit, seconds))
    commits = [commit for _, commit, _ in found]
    contents = _contents((commit, path) for commit in commits for path in ("params.yaml", *LOCKS))
    locks = {commit: _stages_of(contents[commit]) for commit in commits}
    plots = [f"plots/{stage}.csv" for stage in ALL_STAGES]
    code = {commit: _code_paths(locks[commit]) for commit in commits}
    rest = _contents((commit, path) for commit in commits for path in (*plots, *code[commit]))
    experiments: list[Finished] = []
    for name, commit, seconds in found:
        if (text := contents[commit].get("params.yaml")) is None:
            continue
        params = _yaml(text)
        digests = {path: hashlib.md5(rest[commit].get(path, "").encode()).hexdigest() for path in code[commit]}  # noqa: S324
        fresh = set(fresh_stages(locks[commit], params, digests))
        histories = {
            stage: list(csv.DictReader(text.splitlines()))
            for stage in ALL_STAGES
            if stage in fresh
            and (text := rest[commit].get(path := f"plots/{stage}.csv")) is not None
            and _ended_with(locks[commit][stage], path, text)
        }
        versions = {stage: _version(locks[commit][stage]) for stage in histories}
        experiments.append(Finished(name, commit, int(seconds), params, versions, histories))
    return sorted(experiments, key=lambda e: e.time)


def fresh_stages(lock: Mapping[str, Any], params: Values, code: Mapping[str, str]) -> Iterator[str]:
    """Stages whose locked parameters and code are these, and whose inputs are what such stages wrote.

    Args:
        lock: stage → entry of dvc.lock.
        params: parameters as plain values.
        code: path → MD5 of a module as it is now.
    """
    flat = {**params, **leaves(params)}
    producers = {out["path"]: (stage, out.get("md5")) for stage, entry in lock.items() for out in entry.get("outs", [])}
    known: dict[str, bool] = {}

    def input_is_fresh(dep: Mapping[str, Any]) -> bool:
        path, md5 = dep["path"], dep.get("md5")
        if path in producers:
            stage, written = producers[path]
            return bool(written == md5) and fresh(stage)
        return code.get(path, md5) == md5

    def fresh(stage: str) -> bool:
        if stage not in known:
            entry = lock[stage]
            locked = entry.get("params", {}).get("params.yaml", {})
            known[stage] = all(flat.get(key, ...) == value for key, value in locked.items()) and all(
                map(input_is_fresh, entry.get("deps", []))
            )
        return known[stage]

    return filter(fresh, lock)


def fresh_here(params: Values) -> set[str]:
    """The stages whose outputs in this folder belong to these parameters, as far as its dvc.lock knows."""
    texts = {path: Path(path).read_text(encoding="utf-8") for path in LOCKS if Path(path).exists()}
    return set(fresh_stages(_stages_of(texts), params, {}))


def params_at(revisions: Sequence[str]) -> dict[str, Values]:
    """Revision → its params.yaml; one that has none is left out."""
    contents = _contents((revision, "params.yaml") for revision in revisions)
    return {revision: _yaml(found["params.yaml"]) for revision, found in contents.items() if found}


def require_clean() -> None:
    """Refuse a working tree with changes. The lock of the baselines, which nobody has to commit, may lie there.

    Raises:
        UserError: not a git repository, or changes that are not committed.
    """
    changes = git("status", "--porcelain", "--", ":/", f":!{LOCKS[1]}").splitlines()
    if changes:
        shown = ", ".join(line[3:] for line in changes[:4]) + (", …" if len(changes) > 4 else "")
        raise UserError(
            f"the working tree has changes that are not committed ({shown}); an experiment would take them along "
            "unseen; expected a clean tree: commit them, or put them away with `git stash -u`"
        )


def checkpoint_folder() -> Path:
    return Path(os.environ.get("MLNT_CHECKPOINT_DIR", CHECKPOINTS)).resolve()


def git(*arguments: str) -> str:
    """What git prints.

    Raises:
        UserError: it fails, or there is none.
    """
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)  # noqa: S603, S607
    except FileNotFoundError as error:
        raise UserError("git: not installed; experiments need it") from error
    if done.returncode:
        raise UserError(f"git {arguments[0]}: {done.stderr.strip()}; experiments need a git repository with a commit")
    return done.stdout


def _contents(wanted: Iterable[tuple[str, str]]) -> dict[str, dict[str, str]]:
    """commit → path → text, by one process for all; what a commit lacks is left out."""
    pairs = list(wanted)
    done = subprocess.run(
        ["git", "cat-file", "--batch"],  # noqa: S607
        input="".join(f"{commit}:./{path}\n" for commit, path in pairs).encode(),
        capture_output=True,
        check=True,
    )
    data, at = done.stdout, 0
    found: dict[str, dict[str, str]] = {commit: {} for commit, _ in pairs}
    for commit, path in pairs:
        end = data.index(b"\n", at)
        header = data[at:end].split()
        at = end + 1
        if header[-1] == b"missing":
            continue
        size = int(header[2])
        found[commit][path] = data[at : at + size].decode()
        at += size + 1
    return found


def _stages_of(texts: Mapping[str, str]) -> dict[str, Any]:
    """Stage → entry, of both lock files; nothing from one that cannot be read."""
    lock: dict[str, Any] = {}
    for path in LOCKS:
        try:
            stages = (_lock_yaml(texts.get(path, "")) or {}).get("stages", {})
        except (yaml.YAMLError, AttributeError):
            continue
        prefix = "" if path == LOCKS[0] else "baseline@"  # the baselines have an `evaluate` of their own
        lock |= {s.removeprefix(prefix): entry for s, entry in stages.items() if s.startswith(prefix)}
    return lock


def _code_paths(lock: Mapping[str, Any]) -> list[str]:
    deps = {dep["path"] for entry in lock.values() for dep in entry.get("deps", [])}
    return sorted(path for path in deps if path.endswith((".py", ".jinja")))


def _ended_with(entry: Mapping[str, Any], path: str, text: str) -> bool:
    """Whether a stage has ended with this file. A history grows while it trains, and may be committed then."""
    written = {out["path"]: out.get("md5") for out in entry.get("outs", [])}
    return bool(written.get(path) == hashlib.md5(text.encode()).hexdigest())  # noqa: S324


def _version(entry: Mapping[str, Any]) -> str:
    """Of the library's code that a stage ran."""
    return json.dumps(sorted((d["path"], d["md5"]) for d in entry.get("deps", []) if d["path"].startswith("mlnt/")))


def _lock_yaml(text: str) -> Any:
    return yaml.load(text, LockLoader)  # noqa: S506


def _yaml(text: str) -> Any:
    return YAML(typ="safe", pure=True).load(text)
