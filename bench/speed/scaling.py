"""How the time and memory of a step grow with M, k and the number of classes, and the time of an epoch with N.

    python bench/speed/scaling.py --out docs/results/scaling_cpu

writes a CSV and a plot: one panel for each variable, measured points over the line that theory gives through the
first point. Theory counts passes, a backward pass as two forward ones: 4 + 5M for `joint`, 5 + 5M for `sequential`,
4 for M = 0. Time and memory are in proportion to k, time to N; classes, and M for memory, make no difference.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from measure import Worker, hardware
from rivals import Setting

from mlnt.images.batches import Augmentation, MemoryImages
from mlnt.images.statistics import input_statistics
from mlnt.method.schedules import Schedule
from mlnt.method.step import MLNTStep
from mlnt.networks import create_model
from mlnt.training.data import LabeledSet, TrainingData
from mlnt.training.loop import Training
from pipeline.base.files import write_csv

mpl.use("Agg")
import matplotlib.pyplot as plt

BASE = Setting("preact_resnet32_narrow", 32, 64, 5)
UPDATES = ("joint", "sequential")


def passes(update: str, num_synthetic: float) -> float:
    return 4.0 if num_synthetic == 0 else (4.0 if update == "joint" else 5.0) + 5.0 * num_synthetic


@dataclass(frozen=True)
class Sweep:
    """One variable: its values, the setting for each, and what time is in proportion to, in theory."""

    name: str
    values: tuple[int, ...]
    setting: Callable[[int], Setting]
    time: Callable[[str, int], float]


SWEEPS = (
    Sweep("M", (0, 1, 2, 5, 10, 15), lambda v: replace(BASE, num_synthetic=v), passes),
    Sweep("k", (16, 32, 64, 128, 256), lambda v: replace(BASE, batch_size=v, num_synthetic=2), lambda _, v: v),
    Sweep("classes", (2, 10, 100, 1000), lambda v: replace(BASE, classes=v, num_synthetic=2), lambda *_: 1.0),
)


def step_rows(sweep: Sweep, device: torch.device, repeats: int) -> list[dict[str, Any]]:
    workers = {(u, v): Worker(u, sweep.setting(v), device) for u in UPDATES for v in sweep.values}
    seconds: dict[tuple[str, int], list[float]] = {key: [] for key in workers}
    for _ in range(repeats):
        for key, worker in workers.items():
            seconds[key].append(worker.ask("step")["seconds"])
    for worker in workers.values():
        worker.end()
    rows = []
    for update in UPDATES:
        first = sweep.values[0]
        start = statistics.median(seconds[update, first]) / sweep.time(update, first)
        for value in sweep.values:
            rows.append(
                {
                    "variable": sweep.name,
                    "value": value,
                    "update": update,
                    "seconds": statistics.median(seconds[update, value]),
                    "theory_seconds": start * sweep.time(update, value),
                    "peak_mib": workers[update, value].peak_mib,
                }
            )
        print(f"{sweep.name}, {update}: done", file=sys.stderr)
    return rows


def epoch_rows(device: torch.device, repeats: int) -> list[dict[str, Any]]:
    """Epochs of a small network over N images, evaluation of N / 10 images included."""
    rows: list[dict[str, Any]] = []
    for n in (1000, 2000, 4000, 8000):
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(256, (n + n // 10, 1, 8, 8), generator=generator, dtype=torch.uint8)
        store = MemoryImages(images, input_statistics(images, "mean_image"), device, channels_last=True)
        labels = torch.randint(10, (len(images),), generator=generator)
        data = TrainingData(
            store,
            LabeledSet(torch.arange(n), labels[:n]),
            {"validation": LabeledSet(torch.arange(n, len(images)), labels[n:])},
            features=torch.randn(n, 32, generator=generator),
        )
        schedule = Schedule(
            0.01, (), 0.1, 0.01, "linear", 0, False, 0.99, 0, 0.99, 0.0, "linear", (1 + repeats) * (n // 64)
        )
        module = create_model("preact_resnet_tiny", num_classes=10, in_chans=1, seed=0).to(device)
        training = Training(
            module.to(memory_format=torch.channels_last),
            MLNTStep(2, 0.5, 10, 0.2, 0.9, 1e-4, update="sequential"),
            data,
            schedule,
            seed=0,
            iteration=1,
            epochs=1 + repeats,
            batch_size=64,
            eval_batch_size=1024,
            augmentation=Augmentation(),
        )
        times: list[float] = []
        start = time.perf_counter()
        for _ in training.epochs():
            times.append(time.perf_counter() - start)
            start = time.perf_counter()
        seconds = statistics.median(times[1:])
        theory = rows[0]["seconds"] * n / rows[0]["value"] if rows else seconds
        rows.append(
            {
                "variable": "N",
                "value": n,
                "update": "sequential",
                "seconds": seconds,
                "theory_seconds": theory,
                "peak_mib": None,
            }
        )
    return rows


def slope(rows: list[dict[str, Any]], key: str) -> float:
    """Of log(key) over log(value), by least squares, without zeros."""
    points = [(math.log(r["value"]), math.log(r[key])) for r in rows if r["value"] > 0]
    mean_x, mean_y = (statistics.mean(axis) for axis in zip(*points, strict=True))
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / sum((x - mean_x) ** 2 for x, _ in points)


def plot(rows: list[dict[str, Any]], path: Path, title: str) -> None:
    variables = list(dict.fromkeys(row["variable"] for row in rows))
    figure, axes = plt.subplots(2, len(variables), figsize=(3.4 * len(variables), 6), squeeze=False)
    for column, variable in enumerate(variables):
        for update, color in zip(UPDATES, ("tab:blue", "tab:orange"), strict=True):
            mine = [r for r in rows if r["variable"] == variable and r["update"] == update]
            if not mine:
                continue
            x = [r["value"] for r in mine]
            axes[0][column].plot(x, [r["seconds"] for r in mine], "o", color=color, label=update)
            axes[0][column].plot(x, [r["theory_seconds"] for r in mine], "-", color=color, label=f"{update}, theory")
            if mine[0]["peak_mib"] is not None:
                axes[1][column].plot(x, [r["peak_mib"] for r in mine], "o-", color=color, label=update)
        for row, label in ((0, "seconds per " + ("epoch" if variable == "N" else "step")), (1, "peak memory, MiB")):
            axis = axes[row][column]
            axis.set_xlabel(variable)
            axis.set_ylabel(label)
            axis.set_ylim(bottom=0)
            if variable == "classes":
                axis.set_xscale("log")
            axis.set_visible(bool(axis.lines))
    axes[0][0].legend(frameon=False)
    figure.suptitle(title)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True, help="without ending: .csv and .png are added")
    args = parser.parse_args()
    device = torch.device(args.device)
    rows = [row for sweep in SWEEPS for row in step_rows(sweep, device, args.repeats)] + epoch_rows(
        device, args.repeats
    )
    write_csv(args.out.with_suffix(".csv"), rows)
    where = hardware(device)
    plot(rows, args.out.with_suffix(".png"), f"{BASE.network}, {where['device']}, torch {where['torch']}")
    print(json.dumps(where))
    for variable in dict.fromkeys(row["variable"] for row in rows):
        for update in UPDATES:
            mine = [r for r in rows if r["variable"] == variable and r["update"] == update]
            if mine:
                measured, theory = slope(mine, "seconds"), slope(mine, "theory_seconds")
                print(f"{variable}, {update}: slope {measured:.2f}, theory {theory:.2f}")


if __name__ == "__main__":
    main()
