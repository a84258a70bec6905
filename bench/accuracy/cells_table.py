"""The results of cells.py as tables: mean ± standard error over the seeds, paired differences to a system or a cell.

python bench/accuracy/cells_table.py results.jsonl --beside "Cross Entropy"
python bench/accuracy/cells_table.py results.jsonl --beside float32              # to the same system in this cell
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

CHOICES = ("best", "last")
KEPT = ("kept_fraction", "kept_purity")
Results = dict[tuple[str, str], dict[int, dict[str, Any]]]
"""(cell, title of a model) → seed → accuracies."""


def read(path: Path) -> Results:
    results: Results = defaultdict(dict)
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if row["stage"] in BY_STAGE:
            for model, title, _ in BY_STAGE[row["stage"]].models:
                of_model = {key.removeprefix(f"{model}_"): v for key, v in row.items() if key.startswith(f"{model}_")}
                results[row["cell"], title][row["seed"]] = of_model | {key: row[key] for key in KEPT}
    return results


def mean(values: list[float], signed: bool = False) -> str:
    sign = "+" if signed else ""
    error = f" ± {standard_error(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{sign}.1f}{error}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--beside", default="Cross Entropy", help="a system's title, or the name of a cell")
    parser.add_argument("--split", default="test", choices=["validation", "test"])
    arguments = parser.parse_args()
    results = read(arguments.results)
    for cell in dict.fromkeys(cell for cell, _ in results):
        to = arguments.beside
        print(f"\n{cell}\n")
        print(f"| | n | best on validation | last epoch | best, minus {to} | last, minus {to} | kept | correct |")
        print("|---|---|---|---|---|---|---|---|")
        for title in (title for system in SYSTEMS for _, title, _ in system.models):
            runs = results.get((cell, title), {})
            if not runs:
                continue
            reference = results.get((to, title)) or results.get((cell, to), {})
            columns = [mean([run[f"{choice}_{arguments.split}"] for run in runs.values()]) for choice in CHOICES]
            for choice in CHOICES:
                key = f"{choice}_{arguments.split}"
                paired = [runs[seed][key] - reference[seed][key] for seed in runs if seed in reference]
                columns.append(mean(paired, True) if paired else "")
            for key in KEPT:
                known = [run[key] for run in runs.values() if run[key] is not None]
                columns.append(f"{100 * statistics.mean(known):.0f} %" if known else "")
            print("| " + " | ".join([title, str(len(runs)), *columns]) + " |")


if __name__ == "__main__":
    main()
