"""The paper's Figures 3 to 7, from finished experiments, as SVG text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pipeline.paper.statistics import Mean, Runs
from pipeline.report.figures import svg

COLORS = ("#d1495b", "#edae49", "#66a182", "#00539c", "#8d6a9f")
CURVES = (
    ("Cross Entropy", "pretrain", "student", COLORS[0]),
    ("MLNT student", "meta1", "student", COLORS[2]),
    ("MLNT teacher", "meta1", "teacher", COLORS[3]),
)


def progress(runs: Runs) -> str:
    """Figure 3: accuracy by epoch on the noisy training labels and on test, mean over the seeds and its range."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    panels = zip(figure.subplots(1, 2), (("train", "noisy training labels"), ("test", "test")), strict=True)
    for axes, (measure, title) in panels:
        for label, stage, model, color in CURVES:
            tables = [run.histories[stage] for run in runs.by_seed.values() if stage in run.histories]
            column = f"{model}_{measure}_accuracy"
            tables = [table for table in tables if column in table[0]]  # data may have no test split
            if not tables:
                continue
            values = [[100 * float(row[column] or "nan") for row in table] for table in tables]
            table = np.array(values)
            epochs = [float(row["epoch"]) for row in tables[0]]
            axes.fill_between(epochs, table.min(0), table.max(0), color=color, alpha=0.15, lw=0)
            axes.plot(epochs, table.mean(0), color=color, lw=1.4, label=f"{label} (n = {len(values)})")
        axes.set_title(f"accuracy on {title}, %", loc="left")
        axes.set_xlabel("epoch")
    figure.axes[0].legend(frameon=False)
    return svg(figure)


def by_value(lines: Mapping[str, Sequence[tuple[float, Mean]]], xlabel: str) -> str:
    """Figures 4 to 6: test accuracy against one parameter, a line for each noise, bars of one standard error."""
    figure = Figure(figsize=(5.4, 3.6), layout="constrained")
    axes = figure.add_subplot()
    for (label, points), color in zip(lines.items(), COLORS, strict=False):
        x = [value for value, _ in points]
        y = [number.mean for _, number in points]
        error = [number.error or 0.0 for _, number in points]
        counts = sorted({number.n for _, number in points})
        n = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]}-{counts[-1]}"
        axes.errorbar(x, y, yerr=error, fmt="o-", color=color, lw=1.3, ms=4, capsize=2, label=f"{label} (n = {n})")
    axes.set_xticks(sorted({value for points in lines.values() for value, _ in points}))
    axes.set_xlabel(xlabel)
    axes.set_ylabel("test accuracy, %")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", frameon=False)
    return svg(figure)


class Filtered(NamedTuple):
    """An image that the mentor filters out: its given label and the mentor's, with their probabilities."""

    image: NDArray[np.uint8]
    given: str
    given_score: float
    predicted: str
    predicted_score: float
    true: str | None


def gallery(images: Sequence[Filtered], columns: int = 8) -> str:
    """Figure 7: given label in red, the mentor's in blue, each with its probability."""
    rows = max(1, -(-len(images) // columns))
    figure = Figure(figsize=(1.15 * columns, 1.55 * rows), layout="constrained")
    for i, entry in enumerate(images):
        axes = figure.add_subplot(rows, columns, i + 1)
        axes.axis("off")
        pixels = entry.image[0] if len(entry.image) == 1 else entry.image.transpose(1, 2, 0)
        axes.imshow(pixels, cmap="gray", interpolation="nearest")
        axes.set_title(f"{entry.given} {entry.given_score:.2f}", color="#c1121f", fontsize=8, pad=2)
        right = "" if entry.true is None else (" ✓" if entry.true == entry.predicted else f" ({entry.true})")
        axes.text(
            0.5,
            -0.03,
            f"{entry.predicted} {entry.predicted_score:.2f}{right}",
            color="#00539c",
            fontsize=8,
            ha="center",
            va="top",
            transform=axes.transAxes,
        )
    return svg(figure)
