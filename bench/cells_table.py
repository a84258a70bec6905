"""The results of cells.py as a table: mean ± standard error over the seeds, paired differences to one system.

python bench/cells_table.py results.jsonl --beside "Cross Entropy"
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

from pipeline.paper.statistics import standard_error
from pipeline.systems.registry import BY_STAGE, SYSTEMS

Results = dict[tuple[str, str], dict[int, dict[str, Any]]]
"""(cell, title of a model) → seed → accuracies."""


def read(path: Path) -> Results:
    results: Results = defaultdict(dict)
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row["stage"] in BY_STAGE:
            for model, title, _ in BY_STAGE[row["stage"]].models:
                of_model = {key.removeprefix(f"{model}_"): v for key, v in row.items() if key.startswith(f"{model}_")}
                results[row["cell"], title][row["seed"]] = of_model | {"kept_fraction": row["kept_fraction"]}
    return results


def mean(values: list[float], signed: bool = False) -> str:
    sign = "+" if signed else ""
    error = f" ± {standard_error(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{sign}.1f}{error}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--beside", default="Cross Entropy", help="title of the row that others are compared with")
    parser.add_argument("--split", default="test", choices=["validation", "test"])
    arguments = parser.parse_args()
    results = read(arguments.results)
    for cell in dict.fromkeys(cell for cell, _ in results):
        print(f"\n{cell}\n\n| | n | best on validation | last epoch | last, minus {arguments.beside} | kept |")
        print("|---|---|---|---|---|---|")
        reference = results[cell, arguments.beside]
        for title in (title for system in SYSTEMS for _, title, _ in system.models):
            runs = results.get((cell, title), {})
            if not runs:
                continue
            best, last = ([run[f"{choice}_{arguments.split}"] for run in runs.values()] for choice in ("best", "last"))
            both = [seed for seed in runs if seed in reference]
            paired = [
                runs[seed][f"last_{arguments.split}"] - reference[seed][f"last_{arguments.split}"] for seed in both
            ]
            kept = statistics.mean(run["kept_fraction"] for run in runs.values())
            print(
                f"| {title} | {len(runs)} | {mean(best)} | {mean(last)} | {mean(paired, True)} | {100 * kept:.0f} % |"
            )


if __name__ == "__main__":
    main()
