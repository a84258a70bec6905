"""What a sweep's experiments have in common: which stages to run once, before them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence

from pipeline.paper.grid import Cell, Values
from pipeline.paper.history import contents, identity_of, plain
from pipeline.paper.sweep.worker import Job
from pipeline.systems.registry import GROUPS, chain

GROUP_TARGETS = {each.stage: f"{group.dvc_yaml}:{group.stage}" for group in GROUPS.values() for each in group.systems}
"""Stage of a group beside the default run → its stages in DVC."""


def jobs(sweep: str, missing: Sequence[tuple[Cell, Sequence[Values]]], stages: Sequence[str]) -> list[Job]:
    """The jobs for these experiments: first the stages that several of them share, each once, then the experiments.

    DVC reads and writes its run cache without a lock. Of two experiments that come to the same stage in the same moment
    both would compute it, and can make each other fail. So a job of its own runs it before; the experiments then find
    it in the run cache.
    """
    values = [each for _, of_cell in missing for each in of_cell]
    flat = [plain(each) for each in values]
    # Experiments that share something → the stages that exactly these share.
    groups: dict[frozenset[int], list[str]] = {}
    for stage in sorted(set().union(*(chain(stage, head=True) for stage in stages))):
        same: dict[str, list[int]] = {}
        for number, params in enumerate(flat):
            same.setdefault(identity_of(params, [stage]), []).append(number)
        for members in same.values():
            if len(members) > 1:
                groups.setdefault(frozenset(members), []).append(stage)
    names = {
        group: f"{sweep}-shared-{of_group[-1]}-{_digest(values[min(group)], of_group)}"
        for group, of_group in groups.items()
    }
    found = [
        Job(
            names[group],
            values[min(group)],
            tuple(groups[group]),
            targets(groups[group]),
            result=False,
            after=frozenset(names[other] for other in groups if other > group),
        )
        for group in sorted(groups, key=lambda group: (-len(group), min(group)))
    ]
    labels = [cell.label for cell, of_cell in missing for _ in of_cell]
    for number, (label, each) in enumerate(zip(labels, values, strict=True)):
        name = f"{sweep}-{_slug(label)}-seed{each['seed']}-{_digest(each, stages)}"
        after = frozenset(names[group] for group in groups if number in group)
        found.append(Job(name, each, tuple(stages), targets(stages), after=after))
    return found


def targets(stages: Iterable[str]) -> tuple[str, ...]:
    """DVC's targets for these stages: those that no other one of them needs."""
    chosen = list(dict.fromkeys(stages))
    needed = set().union(*(chain(stage, head=True) - {stage} for stage in chosen))
    return tuple(_target(stage) for stage in chosen if stage not in needed)


def _target(stage: str) -> str:
    return f"{GROUP_TARGETS[stage]}@{stage}" if stage in GROUP_TARGETS else stage


def _digest(params: Values, stages: Sequence[str]) -> str:
    """Of the parameters and of the files that they name: other files at the same places are another experiment, whose
    result must not be taken for one that is there."""
    text = f"{identity_of(plain(params), stages)} {json.dumps(contents(params))}"
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def _slug(label: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", label.lower()).strip("-.")
