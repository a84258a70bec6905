"""Time and memory of one training step, beside rivals and beside the bound that its passes set.

    python bench/speed/step.py                       # all settings; a table for each
    python bench/speed/step.py --setting narrow --rounds 5 --out step.csv
    python bench/speed/step.py --steps "joint, bfloat16"
    python bench/speed/step.py --baseline CE-EMA --steps "joint, classifier" "sequential, classifier" joint

Each step has a process of its own; they take turns, after a warm-up each. "ratio" is the median over rounds of this
step's time divided by that of the baseline, the package's `joint` step, in the same round. Peak memory is what a step
takes beyond the network, the batch and one forward pass without gradient.

The bound: the forward and backward passes that a step needs, one after the other, at the batch size at which this
machine does most images a second. `joint` needs 2 + M forward passes (teacher, student, M at the fast weights) and
1 + 2M backward passes (one for the class loss, for each m one at θ and one at θ′).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from measure import STEPS, Worker, hardware
from rich.console import Console
from rich.table import Table
from rivals import Setting

from pipeline.base.files import write_csv

OPTIONAL = ("joint, bfloat16",)
"""Only when asked for: not exact."""
SETTINGS = {
    "cpu": {
        "digits": Setting("preact_resnet_tiny", 8, 64, 5),
        "wide": Setting("preact_resnet32", 32, 128, 10),
        "narrow": Setting("preact_resnet32_narrow", 32, 128, 10),
        "resnet50": Setting("resnet50", 224, 12, 2),
    },
    "cuda": {
        "digits": Setting("preact_resnet_tiny", 8, 64, 5),
        "wide": Setting("preact_resnet32", 32, 128, 10),
        "narrow": Setting("preact_resnet32_narrow", 32, 128, 10),
        "resnet50": Setting("resnet50", 224, 32, 10),
    },
}


def compare(
    setting_name: str, setting: Setting, device: torch.device, rounds: int, steps: list[str], baseline: str
) -> list[dict[str, Any]]:
    workers: dict[str, Worker] = {}
    for name in steps:
        workers[name] = Worker(name, setting, device)
        print(f"{setting_name}: {name} is warm", file=sys.stderr)
    seconds: dict[str, list[float]] = {name: [] for name in [*steps, "bound"]}
    size = 0
    for number in range(rounds):
        for name, worker in workers.items():
            seconds[name].append(worker.ask("step")["seconds"])
        answer = workers[baseline].ask("bound")
        seconds["bound"].append(answer["seconds"])
        size = int(answer["size"])
        print(f"{setting_name}: round {number + 1} of {rounds}", file=sys.stderr)
    for worker in workers.values():
        worker.end()
    rows = []
    for name, times in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(times, seconds[baseline], strict=True))
        rows.append(
            {
                "setting": setting_name,
                "network": setting.network,
                "k": setting.batch_size,
                "M": setting.num_synthetic,
                "step": f"bound (batches of {size})" if name == "bound" else name,
                "ms": round(1000 * statistics.median(times), 1),
                "baseline": baseline,
                "ratio": round(ratio, 3),
                "baseline / this": round(1 / ratio, 3),
                "peak MiB": None if name == "bound" else round(workers[name].peak_mib),
                "rounds": rounds,
            }
        )
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    table = Table(title=f"{rows[0]['network']}, k = {rows[0]['k']}, M = {rows[0]['M']}, beside {rows[0]['baseline']}")
    for column in ("step", "ms", "ratio", "baseline / this", "peak MiB"):
        table.add_column(column, justify="left" if column == "step" else "right")
    for row in rows:
        memory = "" if row["peak MiB"] is None else f"{row['peak MiB']:.0f}"
        table.add_row(
            row["step"],
            f"{row['ms']:.0f}" if row["ms"] > 100 else f"{row['ms']:.1f}",
            f"{row['ratio']:.2f}",
            f"{row['baseline / this']:.2f}",
            memory,
        )
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--setting", choices=list(SETTINGS["cpu"]), help="one alone; all otherwise")
    default = [name for name in STEPS if name not in OPTIONAL]
    parser.add_argument("--steps", nargs="*", choices=list(STEPS), default=default, help="the baseline is always timed")
    parser.add_argument("--baseline", choices=list(STEPS), default="joint")
    parser.add_argument("--synthetic", type=int, help="M, in place of the setting's")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="a CSV for the tables")
    args = parser.parse_args()
    device = torch.device(args.device)
    settings = {n: s for n, s in SETTINGS[args.device].items() if args.setting in (None, n)}
    print(json.dumps(hardware(device)))
    table: list[dict[str, Any]] = []
    for name, usual in settings.items():
        setting = usual if args.synthetic is None else replace(usual, num_synthetic=args.synthetic)
        steps = list(dict.fromkeys([args.baseline, *args.steps]))
        rows = compare(name, setting, device, args.rounds, steps, args.baseline)
        show(rows)
        table += rows
        if args.out:
            write_csv(args.out, table)


if __name__ == "__main__":
    main()
