"""Finished experiments: which there are, and which of their results belong together."""

from __future__ import annotations

import csv
import hashlib
import json
import subprocess
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

from pipeline.base import console, files
from pipeline.base.errors import UserError
from pipeline.base.git import run_git
from pipeline.paper.grid import PARAMS, Values
from pipeline.params.load import check, leaves
from pipeline.params.schema import SOMEWHERE, neutral_values, placeless, places
from pipeline.sources.seen import content
from pipeline.store import record
from pipeline.store.record import Record
from pipeline.systems.registry import BY_STAGE, GROUPS, chain, code_now, sections, stages_before

OTHER_STAGES = ("download", "noise", "embed", "features")
HistoryRows = list[dict[str, str]]


@dataclass(frozen=True)
class Finished:
    """An experiment, or a commit, with what its stages have left.

    Attributes:
        name: of the experiment, or HEAD.
        time: when it was made, seconds since 1970.
        records: of every stage that has one.
        histories: training stage → rows of plots/<stage>.csv.
    """

    name: str
    time: int
    records: Mapping[str, Record]
    histories: Mapping[str, HistoryRows]

    @property
    def seed(self) -> int | None:
        """The seed of its noise, and so of all that belongs to it."""
        return self.records["noise"].params.get("seed") if "noise" in self.records else None

    def belongs(self, stage: str, wanted: Mapping[str, Any]) -> bool:
        """Whether this stage's result is one of these parameters.

        A stage that an experiment did not run still lies in its commit, as its parent had it: all records that the
        result comes from must be there, name each other's outputs as their inputs, and have read these parameters.
        """
        return stage in self.histories and _belongs(self.records, stage, wanted)

    def params(self, stage: str) -> dict[str, Any]:
        """What a stage and all before it have read, by dotted name."""
        found: dict[str, Any] = {}
        for each in self._chain(stage):
            found |= self.records[each].params
        return found

    def outdated(self, stage: str) -> bool:
        """Whether a stage's result, or one that it comes from, was made by other code than today's."""
        return any(self.records[each].code != code_now(each) for each in self._chain(stage))

    def _chain(self, stage: str) -> set[str]:
        return chain(stage, _trains_heads(self.records[stage].params))


def _trains_heads(params: Mapping[str, Any]) -> bool:
    return params.get("model.train") == "head"


def _belongs(records: Mapping[str, Record], stage: str, wanted: Mapping[str, Any]) -> bool:
    head = _trains_heads(wanted)
    for each in chain(stage, head):
        if (found := records.get(each)) is None:
            return False
        if not record.follows(found, (records[before] for before in stages_before(each, head) if before in records)):
            return False
        own = _of(sections(each), wanted)
        if not (_read_these(placeless(found.params), placeless(own)) and _read_there(found, own)):
            return False
    return True


def _read_there(found: Record, wanted: Mapping[str, Any]) -> bool:
    """Whether a stage has read what lies where these parameters say: by its digest, and by the place in records of
    before there was one."""
    given = {key: name for key, name in places().items() if name is not None and wanted.get(key) is not None}
    return all(
        _content(key, wanted[key]) in (None, found.inputs[name])
        if name in found.inputs
        else found.params.get(key) in (SOMEWHERE, wanted[key])
        for key, name in given.items()
    )


@cache
def _content(key: str, place: str) -> str | None:
    """The digest of what is there; None, with a warning, in a clone that has results without what they came from."""
    try:
        return content(files.resolve(place), lists=key == "data.root")
    except UserError:
        console.warn(f"{key}: nothing to read at {place}; results count, whatever was there when they were made")
        return None


def _read_these(recorded: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether parameters are the same; one that was added after the record was written counts as neutral there."""
    neutral = neutral_values()
    return all(recorded.get(key, neutral.get(key, ...)) == value for key, value in wanted.items()) and all(
        key in wanted or value == neutral.get(key, ...) for key, value in recorded.items()
    )


def contents(params: Values) -> dict[str, str | None]:
    """Parameter → the digest of what lies at the place that it names; none of CIFAR, which is the same anywhere.

    Raises:
        UserError: parameters that do not fit the schema.
    """
    flat = plain(params)
    named = {key for key, name in places().items() if name is not None and flat[key] is not None}
    if not check(params, PARAMS).data.has_image_files:
        named.discard("data.root")
    return {key: _content(key, flat[key]) for key in sorted(named)}


def identity_of(flat: Mapping[str, Any], stages: Sequence[str]) -> str:
    """A text that is equal for parameters, the seed included, with which these stages train the same models.

    Args:
        flat: by dotted name, as `plain` gives them.
    """
    return json.dumps(_of(read_by(stages), flat), sort_keys=True)


def read_by(stages: Iterable[str]) -> set[str]:
    """The sections of params.yaml that these stages and all before them read."""
    return {section for stage in stages for each in chain(stage, head=True) for section in sections(each)}


def plain(params: Values) -> dict[str, Any]:
    """All parameters by dotted name, written as records have them.

    Raises:
        UserError: parameters that do not fit the schema.
    """
    return leaves(check(params, PARAMS).model_dump(mode="json", by_alias=True))


class Divergence(NamedTuple):
    """What training notes when a loss is not finite; `params` are all parameters by dotted name."""

    stage: str
    params: dict[str, Any]
    message: str

    def belongs(self, wanted: Mapping[str, Any]) -> bool:
        """Whether the stage read these parameters."""
        read = read_by([self.stage])
        return _read_these(_of(read, self.params), _of(read, wanted))


def divergences() -> list[Divergence]:
    """Those of today's code, from the folder of checkpoints: with other code a stage may not diverge any more."""
    notes = [
        json.loads(path.read_text(encoding="utf-8"))
        for path in sorted(files.checkpoints().glob("*/*/diverged.json"))
        if path.parts[-3] in BY_STAGE  # else of a method that this branch does not have
    ]
    return [Divergence(n["stage"], n["params"], n["message"]) for n in notes if n["code"] == code_now(n["stage"])]


def _of(sections: Collection[str], flat: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in flat.items() if key.partition(".")[0] in sections}


def finished() -> list[Finished]:
    """All finished experiments of this repository, of every commit, and HEAD itself; the oldest first.

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
    kept = [f"{record.place(stage)}" for stage in (*OTHER_STAGES, *BY_STAGE)]
    plots = [f"{files.PLOTS / stage}.csv" for stage in BY_STAGE]
    contents = _contents((commit, path) for _, commit, _ in found for path in (*kept, *plots))
    experiments: list[Finished] = []
    for name, commit, seconds in found:
        texts = contents[commit]
        records = {each.stage: each for path in kept if (each := record.parse(texts.get(path, ""))) is not None}
        histories = {
            stage: list(csv.DictReader(texts[path].splitlines()))
            for stage, path in zip(BY_STAGE, plots, strict=True)
            if path in texts and stage in records and _finished(records[stage], texts[path])
        }
        experiments.append(Finished(name, int(seconds), records, histories))
    return sorted(experiments, key=lambda e: e.time)


def _finished(found: Record, history: str) -> bool:
    """Whether the history is the record's: a stage that is training has only begun to write its own."""
    return found.outputs.get(f"history of {found.stage}") == hashlib.sha256(history.encode()).hexdigest()


def belongs_here(stage: str, params: Values) -> bool:
    """Whether a stage's result in this folder is one of these parameters."""
    wanted = plain(params)
    before = chain(stage, _trains_heads(wanted))
    records = {each: found for each in before if (found := record.read(each)) is not None}
    return _belongs(records, stage, wanted)


def require_clean() -> None:
    """Refuse a working tree with changes, except of the groups' lock files, which need not be committed.

    Raises:
        UserError: not a git repository, or changes that are not committed.
    """
    locks = [f":!{group.name}/dvc.lock" for group in GROUPS.values()]
    changes = git("status", "--porcelain", "--", ":/", *locks).splitlines()
    if changes:
        shown = ", ".join(line[3:] for line in changes[:4]) + (", …" if len(changes) > 4 else "")
        raise UserError(
            f"the working tree has changes that are not committed ({shown}); an experiment would include them "
            "unnoticed; expected a clean tree: commit them, or put them away with `git stash -u`"
        )


def git(*arguments: str) -> str:
    """Run git in this folder, and return what it prints.

    Raises:
        UserError: git fails, or is not installed.
    """
    try:
        done = run_git(*arguments)
    except FileNotFoundError as error:
        raise UserError("git: not installed; experiments need it") from error
    if done.returncode:
        raise UserError(f"git {arguments[0]}: {done.stderr.strip()}; experiments need a git repository with a commit")
    return done.stdout


def _contents(wanted: Iterable[tuple[str, str]]) -> dict[str, dict[str, str]]:
    """commit → path → text, read by one git process; files that a commit lacks are left out."""
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
