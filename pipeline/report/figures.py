"""The report's figures, as SVG text. Every figure is a function of the files of a run."""

from __future__ import annotations

import io
import itertools
import warnings
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pipeline.base.errors import UserError
from pipeline.store import checked
from pipeline.systems.registry import BY_STAGE

# One colour a system, dashed for the student, solid for the teacher: the same in every panel.
CURVES = {"pretrain": "#d1495b", "control3": "#edae49", "meta1": "#66a182", "meta3": "#00539c"}
OTHER_COLORS = (
    *("#8d6a9f", "#c77d3a", "#6b705c", "#2a9d8f", "#b5838d"),
    *("#7f4f24", "#e377c2", "#17a2c4", "#a8b820", "#444444"),
)
"""As many as the larger group has systems."""

LONGEST_TICK = 32
"""Characters of a class name beside a matrix."""

mpl.rcParams.update(
    {
        "svg.hashsalt": "mlnt",  # the same run gives the same bytes
        "svg.fonttype": "none",
        "text.parse_math": False,  # a class name may hold a $
        "font.family": "sans-serif",
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
)


def progress_curves(plots: Path, epochs: int, others: Sequence[str] = ()) -> str:
    """Accuracy by epoch: on the noisy training labels, on validation, on test (the paper's Figure 3).

    Args:
        epochs: that each stage was trained for.
        others: stages to show beside those of the default run.

    Raises:
        UserError: a history is missing or damaged, or of a stage that has not ended.
    """
    curves = CURVES | dict(zip(others, itertools.cycle(OTHER_COLORS), strict=False))
    sets = [("train", "on the noisy training labels"), ("validation", "on validation"), ("test", "on test")]
    histories = {stage: _whole_history(plots / f"{stage}.csv", epochs) for stage in curves}
    present = [(key, title) for key, title in sets if f"student_{key}_accuracy" in histories["pretrain"][0]]
    figure = Figure(figsize=(3.6 * len(present), 3.4), layout="constrained")
    for axes, (key, title) in zip(figure.subplots(1, len(present), squeeze=False)[0], present, strict=True):
        for stage, color in curves.items():
            for (model, label, _), style in zip(BY_STAGE[stage].models, ("--", "-"), strict=True):
                values = [row[f"{model}_{key}_accuracy"] for row in histories[stage]]
                if "" in values:
                    continue
                done = [float(row["epoch"]) for row in histories[stage]]
                axes.plot(done, [100 * float(v) for v in values], style, color=color, lw=1.3, label=label)
        axes.set_title(f"accuracy {title}, %", loc="left")
        axes.set_xlabel("epoch")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    return svg(figure)


def _whole_history(path: Path, epochs: int) -> list[dict[str, str]]:
    """A history grows while its stage trains, and stays as it is where that is stopped."""
    columns = [f"{model}_{of}_accuracy" for model in ("student", "teacher") for of in ("train", "validation")]
    rows = list(checked.table(path, numbers=("epoch", *columns), gaps=True))
    done = float(rows[-1]["epoch"] or 0) if rows else 0.0
    if done < epochs:
        raise UserError(f"{path}: ends with epoch {done:g} of {epochs}: its stage has not ended; `dvc repro` goes on")
    return rows


def noise_matrices(class_names: Sequence[str], matrices: dict[str, NDArray[np.float64]]) -> str:
    """P(label | class) as heat maps side by side: intended, realised, estimated, as far as they are known."""
    figure = Figure(figsize=(3.4 * len(matrices), 3.4), layout="constrained")
    for i, (title, matrix) in enumerate(matrices.items()):
        axes = figure.add_subplot(1, len(matrices), i + 1)
        heat_map(axes, class_names, matrix, title, "label", "predicted class" if title == "estimated" else "true class")
    return svg(figure)


def confusion_matrix(class_names: Sequence[str], counts: NDArray[np.float64]) -> str:
    """Rows sum to 1: where the samples of each class go."""
    figure = Figure(figsize=(4.2, 4.0), layout="constrained")
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    heat_map(figure.add_subplot(), class_names, shares, "final model on test", "predicted", "true class")
    return svg(figure)


def score_histogram(scores: Sequence[float], wrong: Sequence[bool] | None, threshold: float) -> str:
    """The mentor's probability of the given label; where the truth is known, wrong and correct labels apart."""
    figure = Figure(figsize=(5.6, 2.8), layout="constrained")
    axes = figure.add_subplot()
    bins = np.linspace(0, 1, 41).tolist()
    if wrong is None:
        axes.hist(scores, bins, color="#00539c")
    else:
        marks = np.array(wrong)
        values = np.array(scores)
        axes.hist(
            [values[~marks], values[marks]],
            bins,
            stacked=True,
            color=["#00539c", "#d1495b"],
            label=["label is correct", "label is wrong"],
        )
        axes.legend(frameon=False)
    axes.axvline(threshold, color="black", lw=1, ls=":")
    axes.set_xlabel("probability that the final model gives to the given label (dotted: the threshold)")
    axes.set_ylabel("training samples")
    return svg(figure)


def heat_map(
    axes: Axes, class_names: Sequence[str], matrix: NDArray[np.float64], title: str, xlabel: str, ylabel: str
) -> None:
    axes.imshow(matrix, cmap="Blues", vmin=0, vmax=1)
    axes.set_title(title, loc="left")
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    few = len(class_names) <= 20
    if few:
        ticks = [_short(name) for name in class_names]
        axes.set_xticks(range(len(ticks)), ticks, rotation=90 if max(map(len, ticks)) > 2 else 0)
        axes.set_yticks(range(len(ticks)), ticks)
    if len(class_names) <= 14:
        for (i, j), value in np.ndenumerate(matrix):
            if value >= 0.005:
                color = "white" if value > 0.55 else "black"
                axes.text(j, i, f"{100 * value:.0f}", ha="center", va="center", fontsize=6.5, color=color)


def _short(name: str) -> str:
    """A class name that leaves room for the figure, and holds no characters that XML forbids."""
    shown = "".join(character if character.isprintable() else " " for character in name)
    return shown if len(shown) <= LONGEST_TICK else f"{shown[: LONGEST_TICK - 1]}…"


def svg(figure: Figure) -> str:
    """The figure as SVG text, from the <svg> tag on, without the date and matplotlib's version."""
    buffer = io.StringIO()
    with warnings.catch_warnings():
        # The text stays text and is shown in the browser's fonts, so a glyph that is missing here does no harm.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
