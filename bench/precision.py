"""What bfloat16 costs in accuracy: the same seeds with `compute.amp: none` and `bfloat16`, compared in pairs.

    python bench/precision.py --seeds 10 --stages all --out docs/results/bfloat16_digits.csv
    python bench/precision.py --params cifar.yaml --seeds 3 --out docs/results/bfloat16_cifar10.csv

Data and noise are the same for both. "best" is the epoch with the highest validation accuracy.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from runs import checked, read_changed, test_accuracies

from pipeline import files
from pipeline.files import write_csv
from pipeline.paper.statistics import paired, standard_error
from pipeline.params.load import changed
from pipeline.stages import download, features, noise, train

STAGES = {"first": ("pretrain", "meta1"), "all": ("pretrain", "meta1", "meta2", "meta3", "control2", "control3")}
PRECISIONS = ("none", "bfloat16")
Cell = tuple[str, str, str]  # stage, model, best or last


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--seeds", type=int, default=5, help="how many: 0, 1, 2, …")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at a time")
    parser.add_argument("--stages", choices=list(STAGES), default="first", help="iteration 1 alone, or all")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="changed parameters")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    values = read_changed(arguments.params, arguments.set)
    with tempfile.TemporaryDirectory() as folder:
        tasks = [
            (values, seed, amp, STAGES[arguments.stages], Path(folder) / f"{seed}-{amp}")
            for seed in range(arguments.seeds)
            for amp in PRECISIONS
        ]
        with ProcessPoolExecutor(arguments.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
            runs = list(pool.map(one_run, tasks))
    table = tabulate(runs[0::2], runs[1::2])
    write_csv(arguments.out, table)
    for row in table:
        print(json.dumps(row))


def one_run(task: tuple[dict[str, Any], int, str, tuple[str, ...], Path]) -> dict[Cell, float]:
    values, seed, amp, stages, folder = task
    values = changed(values, {"compute.amp": amp})
    params = checked(values, seed)
    folder.mkdir(parents=True)
    os.chdir(folder)
    download.run(params)
    noise.run(params)
    found: dict[Cell, float] = {}
    for stage in stages:
        train.run(params, stage)
        if stage == "pretrain":
            features.run(params)
        of_stage = test_accuracies(files.read_csv(files.PLOTS / f"{stage}.csv"))
        found |= {(stage, *cell): value for cell, value in of_stage.items()}
    return found


def tabulate(full: list[dict[Cell, float]], half: list[dict[Cell, float]]) -> list[dict[str, Any]]:
    """Test accuracy in percent, mean over seeds, and the paired difference with its standard error."""
    table = []
    for cell in full[0]:
        left, right = [run[cell] for run in full], [run[cell] for run in half]
        difference = paired(right, left)
        table.append(
            {
                "stage": cell[0],
                "model": cell[1],
                "epoch": cell[2],
                "n": len(full),
                "float32": round(statistics.mean(left), 2),
                "bfloat16": round(statistics.mean(right), 2),
                "difference": round(statistics.mean(difference), 2),
                "difference_se": round(standard_error(difference), 2),
            }
        )
    return table


if __name__ == "__main__":
    main()
