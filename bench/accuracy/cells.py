"""Many runs at a time on one machine, without DVC: cells of a table, each over seeds, or settings to choose from.

    python bench/accuracy/cells.py --seeds 0-4 --jobs 2 --work /tmp/work --out results.jsonl \
        --cell "symmetric" --cell "asymmetric noise.kind=\"asymmetric\" noise.rate=0.4"
    python bench/accuracy/cells.py --seeds 100,101 --stages meta1 \
        --cell "eta 0.2 mlnt.eta=0.2" --cell "eta 0.4 mlnt.eta=0.4"

A cell is a name and changed parameters, their values as JSON. A stage that several cells have in common, with the same
parameters before it, runs once; what is in the work folder is not repeated. Each finished training is a line of JSON:
cell, seed, stage, and of both models the accuracies at the best epoch on validation and at the last, in percent; each
finished evaluation is one of its label issues. With `--minutes` nothing begins that would end later.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runs import checked, run_stage

from pipeline.base import files
from pipeline.paper.statistics import accuracy
from pipeline.params.load import changed, read_yaml, values_of
from pipeline.params.schema import Params
from pipeline.systems.registry import BY_STAGE, DEFAULT, GROUPS, sections, stages_before

JUDGED = {
    "evaluate": (DEFAULT, files.EVALUATION),
    **{f"evaluate {name}": (group.systems, group.evaluation) for name, group in GROUPS.items()},
}
"""Evaluation → the systems that it judges, and its metrics."""
ALL = (*(system.stage for system in DEFAULT), "evaluate")


@dataclass(frozen=True)
class Task:
    """A stage with its parameters; `key` is the same for the same result."""

    stage: str
    params: Params
    key: str
    before: tuple[str, ...]


def stages_of(stage: str, params: Params) -> tuple[str, ...]:
    """The stages that a stage's result directly comes from."""
    if stage in JUDGED:
        return tuple(system.stage for system in JUDGED[stage][0])
    return stages_before(stage, params.model.train == "head")


def sections_of(stage: str, params: Params) -> set[str]:
    """The sections of params.yaml that a result depends on, by its stage or one before."""
    own = {"evaluate"} if stage in JUDGED else set(sections(stage))
    return own.union(*(sections_of(each, params) for each in stages_of(stage, params)))


def task(stage: str, params: Params, tasks: dict[str, Task]) -> str:
    """Enter a stage and those before it; return its key."""
    values = json.dumps(values_of(params, sections_of(stage, params)), sort_keys=True)
    key = f"{stage.replace(' ', '-')}-{hashlib.sha256(values.encode()).hexdigest()[:16]}"
    if key not in tasks:
        tasks[key] = Task(stage, params, key, tuple(task(each, params, tasks) for each in stages_of(stage, params)))
    return key


def run(one: Task, work: Path) -> float:
    """The stage in a folder of its own, beside hard links to what the stages before it left; seconds."""
    folder, start = work / one.key, time.perf_counter()
    if not (folder / "done").exists():
        folder.mkdir(parents=True, exist_ok=True)  # a training that was stopped goes on from its checkpoint there
        for key in one.before:
            shutil.copytree(
                work / key,
                folder,
                copy_function=link,
                dirs_exist_ok=True,
                ignore=shutil.ignore_patterns("done", "timings"),
            )
        os.chdir(folder)
        run_stage(one.params, one.stage)
        Path("done").touch()
    return time.perf_counter() - start


def link(source: str, target: str) -> None:
    if not Path(target).exists():
        os.link(source, target)


def found(one: Task, work: Path) -> dict[str, Any]:
    """What a finished training or evaluation has to say."""
    folder = work / one.key
    if one.stage in JUDGED:
        metrics = json.loads((folder / JUDGED[one.stage][1]).read_text())
        return {system: values["label_issues"] for system, values in metrics.items() if "label_issues" in values}
    history = files.read_csv(folder / files.PLOTS / f"{one.stage}.csv")
    result: dict[str, Any] = {}
    for model in ("student", "teacher"):
        for choice in ("best", "last"):
            for split in ("validation", "test"):
                found = accuracy(history, model, choice, split)
                result[f"{model}_{choice}_{split}"] = None if found is None else round(100 * found, 3)
    card = json.loads((folder / files.MODELS / one.stage / "model.json").read_text())
    result |= {key: card[key] for key in ("mentor", "kept_fraction", "kept_purity")}
    return result


def seeds(text: str) -> list[int]:
    """`0-4`, or `0,2,5`."""
    first, _, last = text.partition("-")
    return list(range(int(first), int(last) + 1)) if last else [int(part) for part in text.split(",")]


def parser_of(what: str | None) -> argparse.ArgumentParser:
    """The arguments that say which runs are meant."""
    parser = argparse.ArgumentParser(description=what, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="KEY=VALUE", help="changed in all cells; values are JSON"
    )
    parser.add_argument("--cell", action="append", required=True, metavar="NAME KEY=VALUE…")
    parser.add_argument("--seeds", type=seeds, required=True, help="0-4 or 0,1,2")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--work", type=Path, required=True, help="a folder for data, models and results")
    parser.add_argument("--out", type=Path, required=True, help="JSON, a line each; appended to")
    return parser


def cells(arguments: argparse.Namespace) -> Iterator[tuple[str, Params]]:
    """Each cell's name, and its parameters with each of the seeds."""
    base = read_yaml(arguments.params)
    for text in arguments.cell:
        words = text.split()
        name = " ".join(word for word in words if "=" not in word)
        pairs = [word.partition("=") for word in (*arguments.set, *words) if "=" in word]
        values = changed(base, {key: json.loads(value) if value else None for key, _, value in pairs})
        for seed in arguments.seeds:
            yield name, checked(values, seed)


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--stages", nargs="*", default=list(ALL), choices=[*BY_STAGE, *JUDGED])
    parser.add_argument("--minutes", type=float, default=float("inf"))
    arguments = parser.parse_args()
    tasks: dict[str, Task] = {}
    wanted: dict[str, list[tuple[str, int]]] = {}
    for name, params in cells(arguments):
        for stage in arguments.stages:
            wanted.setdefault(task(stage, params, tasks), []).append((name, params.seed))
    execute(tasks, wanted, arguments)


def execute(tasks: dict[str, Task], wanted: dict[str, list[tuple[str, int]]], arguments: argparse.Namespace) -> None:
    begun, work = time.perf_counter(), arguments.work.resolve()
    ends, longest = begun + 60 * arguments.minutes, 0.0
    left, done, running = dict(tasks), set(), {}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(arguments.jobs, mp_context=context) as pool, arguments.out.open("a") as out:
        while left or running:
            for key, each in list(left.items()):
                if (
                    len(running) < arguments.jobs
                    and done.issuperset(each.before)
                    and time.perf_counter() + longest < ends
                ):
                    running[pool.submit(run, left.pop(key), work)] = each
            if not running:
                break
            finished: set[Future[float]] = wait(running, return_when=FIRST_COMPLETED)[0]
            for future in finished:
                each = running.pop(future)
                if error := future.exception():
                    print(f"{each.key}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
                    continue
                done.add(each.key)
                longest = max(longest, future.result())
                print(
                    f"{time.perf_counter() - begun:.0f} s: {each.key} in {future.result():.0f} s",
                    file=sys.stderr,
                    flush=True,
                )
                if each.key in wanted:
                    results = found(each, work)
                    for name, seed in wanted[each.key]:
                        print(
                            json.dumps({"cell": name, "seed": seed, "stage": each.stage, **results}),
                            file=out,
                            flush=True,
                        )
    print(f"{len(done)} of {len(tasks)} stages done", file=sys.stderr)


if __name__ == "__main__":
    main()
