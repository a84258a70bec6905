"""The default run over several seeds: mean ± standard error of every row of the table, in percent.

    python bench/seeds.py --seeds 5 --out docs/results/digits_symmetric.csv
    python bench/seeds.py --seeds 5 --set train.crop_padding=1 --out docs/results/digits_symmetric_shift.csv

The last column is the paired difference of the final model, MLNT 3 teacher, to the row, over the seeds.
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

from runs import checked, read_changed, run_pipeline

from pipeline.files import write_csv
from pipeline.paper.statistics import paired, standard_error
from pipeline.systems.registry import DEFAULT, FINAL

REFERENCE = (FINAL.name, "teacher")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--seeds", type=int, default=5, help="how many: 0, 1, 2, …")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="seeds at a time")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="changed parameters")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    values = read_changed(arguments.params, arguments.set)
    with tempfile.TemporaryDirectory() as folder:
        tasks = [(values, seed, Path(folder) / str(seed)) for seed in range(arguments.seeds)]
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(arguments.jobs, mp_context=context) as pool:
            runs = list(pool.map(one_seed, tasks))
    table = tabulate(runs)
    write_csv(arguments.out, table)
    print_markdown(table)


def one_seed(task: tuple[dict[str, Any], int, Path]) -> dict[str, Any]:
    values, seed, folder = task
    run_pipeline(checked(values, seed), folder)
    metrics: dict[str, Any] = json.loads((folder / "metrics/evaluate.json").read_text())
    return metrics


def tabulate(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each model, choice and measure; accuracies as percent."""
    table: list[dict[str, Any]] = []
    for system in DEFAULT:
        for model, title, _ in system.models:
            row: dict[str, Any] = {"system": title, "n": len(runs)}
            for choice in ("best", "last"):
                found = accuracies(runs, system.name, model, choice)
                row[f"test_{choice}"] = round(statistics.mean(found), 2)
                row[f"test_{choice}_se"] = round(standard_error(found), 2)
                difference = paired(accuracies(runs, *REFERENCE, choice), found)
                row[f"mlnt_minus_{choice}"] = round(statistics.mean(difference), 2)
                row[f"mlnt_minus_{choice}_se"] = round(standard_error(difference), 2)
            for key in ("kept_fraction", "kept_purity"):
                row[key] = round(100 * statistics.mean(run[system.name][key] for run in runs), 1)
            table.append(row)
    return table


def accuracies(runs: list[dict[str, Any]], system: str, model: str, choice: str) -> list[float]:
    return [100 * run[system][model][choice]["test_accuracy"] for run in runs]


def print_markdown(table: list[dict[str, Any]]) -> None:
    print("| system | test, best | test, last | MLNT 3 teacher minus it, last | kept | correct |")
    print("|---|---|---|---|---|---|")
    for row in table:
        cells = [
            row["system"],
            f"{row['test_best']:.1f} ± {row['test_best_se']:.1f}",
            f"{row['test_last']:.1f} ± {row['test_last_se']:.1f}",
            f"{row['mlnt_minus_last']:+.1f} ± {row['mlnt_minus_last_se']:.1f}",
            f"{row['kept_fraction']:.0f}",
            f"{row['kept_purity']:.0f}",
        ]
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
