"""`mlnt preset imagefolder --from-list`, and the training after it, on runs of heads that cells.py has made.

    python bench/accuracy/from_list.py --params quick.yaml --seeds 5-9 --work work --out results.jsonl --cell …
    python bench/accuracy/from_list.py … --cleanlab
    python bench/accuracy/from_list.py … --stages pretrain control2 control3

Parameters, cells and work folder are those that cells.py was given, with the stages up to `evaluate`. Each finished
training is a line of JSON like those of cells.py. With --cleanlab it is the control: left out are the labels that
cleanlab lists, from its logistic regression on the same embeddings; all else is the same.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
from cells import Task, cells, found, link, parser_of, task
from own_images import by_cleanlab, embedded, out_of_fold
from ruamel.yaml import YAML
from runs import run_stage
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from pipeline.base import files
from pipeline.params import presets
from pipeline.params.load import load
from pipeline.params.schema import Params
from pipeline.store import cards
from pipeline.store.dataset import TRAIN, VALIDATION, read_dataset, read_labels
from pipeline.systems.registry import DEFAULT
from pipeline.use import from_list
from pipeline.use.export import labels
from pipeline.use.export.policy import samples

PRESETS = Path(__file__).resolve().parents[2] / presets.FOLDER
PARAMS = Path("params.yaml")


def fine_tuned(evaluated: Path, params: Params, control: bool, stages: Sequence[str]) -> list[dict[str, Any]]:
    """What each training has learnt from the labels that a run's list leaves, in a folder beside that run."""
    folder = evaluated.with_name(f"{name_of(control).replace(' ', '-')}-{evaluated.name}")
    if not (folder / "done").exists():
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(evaluated, folder, copy_function=link, ignore=shutil.ignore_patterns("done", "timings"))
        os.chdir(folder)
        Path(presets.FOLDER).symlink_to(PRESETS)
        YAML().dump(params.model_dump(mode="json", by_alias=True), PARAMS)
        from_list.apply("imagefolder", PARAMS, cards.folder(DEFAULT[-1].stage))
        if control:
            leave_out_by_cleanlab(params)
        for name in (files.DATASET.parent, files.MODELS, files.PLOTS):
            shutil.rmtree(name)
        for each in ("download", "noise"):
            run_stage(load(PARAMS), each)
        Path("done").touch()
    os.chdir(folder)
    for stage in stages:
        if not cards.is_there(stage):
            run_stage(load(PARAMS), stage)
    return [{"training": stage, **found(Task(stage, params, folder.name, ()), folder.parent)} for stage in stages]


def name_of(control: bool) -> str:
    return "from list cleanlab" if control else "from list"


def leave_out_by_cleanlab(params: Params) -> None:
    """Replace the exported list by all labels but those that cleanlab lists."""
    shutil.rmtree(from_list.LABELS)
    labels.run(params, "csv", "review", changed_only=False, out=from_list.LABELS, keep_test=True)
    dataset = read_dataset()
    given = read_labels(dataset)
    rows = np.flatnonzero(np.isin(given.split, (TRAIN, VALIDATION)))
    with threadpool_limits(1):
        x = StandardScaler().fit_transform(embedded(dataset)[rows])
        _, listed = by_cleanlab(given.labels[rows], out_of_fold(x, given.labels[rows])[1])
    left_out = set(rows[listed].tolist())
    path = from_list.LABELS / "labels.csv"
    exported = zip(files.read_csv(path), samples(dataset, given, "review", False, keep_test=True), strict=True)
    files.write_csv(path, [line for line, each in exported if each.row not in left_out])


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--cleanlab", action="store_true", help="the control: without what cleanlab lists")
    parser.add_argument("--stages", nargs="*", default=[DEFAULT[0].stage], help="one after the other")
    arguments = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(arguments.jobs, mp_context=context) as pool, arguments.out.open("a") as out:
        running = {
            pool.submit(
                fine_tuned,
                arguments.work.resolve() / task("evaluate", params, {}),
                params,
                arguments.cleanlab,
                arguments.stages,
            ): (name, params.seed)
            for name, params in cells(arguments)
        }
        for future in as_completed(running):
            name, seed = running[future]
            if error := future.exception():
                print(f"{name} {seed}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
                continue
            for result in future.result():
                line = {"cell": name, "seed": seed, "stage": name_of(arguments.cleanlab), **result}
                print(json.dumps(line), file=out, flush=True)


if __name__ == "__main__":
    main()
