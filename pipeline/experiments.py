"""DVC's experiments: which have finished with which parameters, queueing new ones, and working the queue off."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from ruamel.yaml import YAML

from pipeline.errors import RunError, UserError
from pipeline.sweeps import ALL_STAGES, Values, leaves
from pipeline.systems import BASELINES

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
        code: digest of the library's modules that its stages ran.
        histories: stage → rows of plots/<stage>.csv.
    """

    name: str
    commit: str
    time: int
    params: Values
    code: str
    histories: Mapping[str, HistoryRows]


@cache
def relevant_keys(stages: tuple[str, ...]) -> frozenset[str]:
    """The parameters, by dotted name or section, that these stages and all before them depend on: as dvc.yaml says."""
    known: dict[str, Any] = yaml.load(Path("dvc.yaml").read_text(encoding="utf-8"), yaml.CSafeLoader)["stages"]
    baseline = yaml.load(Path("baselines/dvc.yaml").read_text(encoding="utf-8"), yaml.CSafeLoader)["stages"]["baseline"]
    for name, item in baseline["foreach"].items():
        deps, params = ([str(v) for v in baseline["do"][key]] for key in ("deps", "params"))
        known[name] = {
            "deps": [dep.replace("${item.needs}", item["needs"]) for dep in deps],
            "params": [key.replace("${item.section}", item["section"]) for key in params],
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
    """Equal for parameters with which these stages train the same models, the seed included."""
    keys = relevant_keys(tuple(stages))
    flat = leaves(params).items()
    return repr(sorted((key, value) for key, value in flat if key in keys or key.partition(".")[0] in keys))


def finished() -> list[Finished]:
    """All finished experiments of this repository, of every commit, and HEAD itself; the oldest first.

    A stage that an experiment did not run still lies in its commit, as its parent had it: only stages whose entry in
    dvc.lock fits the experiment's parameters, and whose inputs are the outputs of such stages, are taken.
    """
    refs = _git("for-each-ref", "--format=%(refname) %(objectname) %(committerdate:unix)", "refs/exps").split("\n")
    found = [("HEAD", *_git("log", "-1", "--format=%H %ct").split())]
    for line in filter(None, refs):
        ref, commit, seconds = line.split()
        parts = ref.split("/")
        if len(parts) == 5 and len(parts[2]) == 2:  # refs/exps/<2 digits>/<38 digits of the parent>/<name>
            found.append((parts[4], commit, seconds))
    paths = ["params.yaml", *LOCKS, *(f"plots/{stage}.csv" for stage in ALL_STAGES)]
    contents = _contents(commit for _, commit, _ in found)(paths)
    experiments = [_experiment(name, commit, int(seconds), contents[commit]) for name, commit, seconds in found]
    return sorted((e for e in experiments if e is not None), key=lambda e: e.time)


def queued() -> list[Values]:
    """The parameters of the experiments that wait in DVC's queue."""
    command = ["git", "log", "-g", "--format=%H", "refs/exps/celery/stash"]  # fails where nothing was ever queued
    log = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    commits = log.stdout.split()
    contents = _contents(commits)(["params.yaml"])
    return [_yaml(contents[commit]["params.yaml"]) for commit in commits if contents[commit].get("params.yaml")]


def require_clean() -> None:
    """
    Raises:
        UserError: not a git repository, or changes that are not committed.
    """
    changes = _git("status", "--porcelain").splitlines()
    if changes:
        shown = ", ".join(line[3:] for line in changes[:4]) + (", …" if len(changes) > 4 else "")
        raise UserError(
            f"the working tree has changes that are not committed ({shown}); an experiment would take them along "
            "unseen; expected a clean tree: commit them, or put them away with `git stash`"
        )


def queue(base: Values, values: Sequence[Values], stages: Sequence[str]) -> None:
    """Queue experiments that differ in their seed alone, to run `stages` and what those need."""
    changed = {k: v for k, v in leaves(values[0]).items() if leaves(base).get(k, ...) != v and k != "seed"}
    seeds = ",".join(str(v["seed"]) for v in values)
    settings = [f"seed={seeds}", *(_setting(key, value) for key, value in changed.items())]
    arguments = [part for setting in settings for part in ("--set-param", setting)]
    _dvc("exp", "run", "--queue", *arguments, *targets(stages))


def targets(stages: Iterable[str]) -> list[str]:
    """What to ask DVC for: the last stage of each chain, and the second dvc.yaml where a baseline is wanted."""
    chosen = set(stages)
    found: list[str] = []
    for chain in (("pretrain", "meta1", "meta2", "meta3"), ("control2", "control3")):
        if wanted := [stage for stage in chain if stage in chosen]:
            found.append(wanted[-1])
    if chosen & set(BASELINES):
        found.append("baselines/dvc.yaml")
    return found


def work_off(jobs: int, on_state: Callable[[Counter[str]], None]) -> Counter[str]:
    """Run what is queued, `jobs` at a time; returns how many tasks ended how.

    The workers are DVC's, apart from this process: if it dies, they go on. An interruption kills them; checkpoints
    lie outside the experiments' folders, so what is queued anew goes on from there.
    """
    here = Path(sys.executable).parent  # whose `python` the stages' commands shall find
    environment = {
        **os.environ,
        "MLNT_CHECKPOINT_DIR": str(checkpoint_folder()),
        "PATH": f"{here}{os.pathsep}{os.environ.get('PATH', '')}",
    }
    before = _states()
    try:
        _start(jobs, environment)
        while True:
            now = _states()
            on_state(now)
            if not now["Queued"] and not now["Running"]:
                break
            time.sleep(10)
    except KeyboardInterrupt:
        _dvc("queue", "stop", "--kill")
        raise
    return Counter({state: now[state] - before[state] for state in ("Success", "Failed")})


def checkpoint_folder() -> Path:
    return Path(os.environ.get("MLNT_CHECKPOINT_DIR", CHECKPOINTS)).resolve()


def _start(jobs: int, environment: dict[str, str]) -> None:
    """Not through a pipe: `dvc queue start` would not return before its workers end."""
    log = Path(".dvc/tmp/sweep.log")
    with log.open("w") as file:
        done = subprocess.run(  # noqa: S603
            [*DVC, "queue", "start", "--jobs", str(jobs)],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            env=environment,
            check=False,
        )
    if done.returncode:
        raise RunError(f"dvc queue start: {log.read_text().strip()}")


def _states() -> Counter[str]:
    """State → number of tasks, from `dvc queue status`, whose last column it is."""
    words = [line.split()[-1] for line in _dvc("queue", "status").splitlines() if line.strip()]
    return Counter(word for word in words if word in ("Queued", "Running", "Success", "Failed"))


DVC = [sys.executable, "-m", "dvc"]


def _dvc(*arguments: str) -> str:
    done = subprocess.run([*DVC, *arguments], capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)  # noqa: S603
    if done.returncode:
        raise RunError(f"dvc {' '.join(arguments[:2])}: {done.stderr.strip().splitlines()[0] if done.stderr else '?'}")
    return done.stdout


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)  # noqa: S603, S607
    if done.returncode:
        raise UserError(f"git {arguments[0]}: {done.stderr.strip()}; experiments need a git repository with a commit")
    return done.stdout


def _contents(commits: Iterable[str]) -> Callable[[Sequence[str]], dict[str, dict[str, str]]]:
    """commit → path → text of a set of files, by one process for all; what a commit lacks is left out."""

    def read(paths: Sequence[str]) -> dict[str, dict[str, str]]:
        wanted = [(commit, path) for commit in commits for path in paths]
        done = subprocess.run(
            ["git", "cat-file", "--batch"],  # noqa: S607
            input="".join(f"{commit}:{path}\n" for commit, path in wanted).encode(),
            capture_output=True,
            check=True,
        )
        data, at = done.stdout, 0
        found: dict[str, dict[str, str]] = {commit: {} for commit, _ in wanted}
        for commit, path in wanted:
            end = data.index(b"\n", at)
            header = data[at:end].split()
            at = end + 1
            if header[-1] == b"missing":
                continue
            size = int(header[2])
            found[commit][path] = data[at : at + size].decode()
            at += size + 1
        return found

    return read


def _experiment(name: str, commit: str, seconds: int, files: Mapping[str, str]) -> Finished | None:
    if "params.yaml" not in files:
        return None
    params = _yaml(files["params.yaml"])
    lock: dict[str, Any] = {}
    for path in LOCKS:
        # DVC writes it, in a form that YAML 1.1 and 1.2 read alike.
        for stage, entry in yaml.load(files.get(path, "stages: {}"), yaml.CSafeLoader)["stages"].items():
            lock[stage.removeprefix("baseline@")] = entry
    fresh = set(_fresh_stages(lock, params))
    histories = {
        stage: list(csv.DictReader(files[f"plots/{stage}.csv"].splitlines()))
        for stage in ALL_STAGES
        if stage in fresh and f"plots/{stage}.csv" in files
    }
    code = {d["path"]: d["md5"] for s in fresh for d in lock[s].get("deps", []) if d["path"].startswith("mlnt/")}
    return Finished(name, commit, seconds, params, repr(sorted(code.items())), histories)


def _fresh_stages(lock: Mapping[str, Any], params: Values) -> Iterator[str]:
    """Stages whose locked parameters are these, and whose inputs are what such stages wrote."""
    flat = {**params, **leaves(params)}
    producers = {out["path"]: (stage, out.get("md5")) for stage, entry in lock.items() for out in entry.get("outs", [])}
    known: dict[str, bool] = {}

    def fresh(stage: str) -> bool:
        if stage not in known:
            entry = lock[stage]
            locked = entry.get("params", {}).get("params.yaml", {})
            known[stage] = all(flat.get(key, ...) == value for key, value in locked.items()) and all(
                producers[dep["path"]][1] == dep.get("md5") and fresh(producers[dep["path"]][0])
                for dep in entry.get("deps", [])
                if dep["path"] in producers
            )
        return known[stage]

    return filter(fresh, lock)


def _yaml(text: str) -> Any:
    return YAML(typ="safe", pure=True).load(text)


def _setting(key: str, value: Any) -> str:
    """An argument of `--set-param`; ++ lets a mapping have keys that it has not had."""
    return f"{'++' if isinstance(value, Mapping) else ''}{key}={_hydra(value)}"


def _hydra(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return "'" + value.replace("'", "\\'") + "'"
    if isinstance(value, list):
        return "[" + ",".join(_hydra(item) for item in value) + "]"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_hydra(item)}" for key, item in value.items()) + "}"
    return str(value)
