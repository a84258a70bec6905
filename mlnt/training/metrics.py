"""The metrics of steps, from the scalars of each to the columns of a row in the history."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mlnt.training.state import Metrics


def metrics_table(steps: Sequence[Metrics], names: Sequence[str], device: torch.device) -> Tensor:
    """A row a step, a column a name, float64 [S, len(names)]; NaN where a step has left a name out.

    Raises:
        ValueError: a step has returned a name that is not among `names`.
    """
    if unknown := set().union(*steps) - set(names):
        raise ValueError(f"a step returned {', '.join(sorted(unknown))}, expected names among {', '.join(names)}")
    table = torch.full((len(steps), len(names)), math.nan, dtype=torch.float64, device=device)
    for column, name in enumerate(names):
        rows = [row for row, metrics in enumerate(steps) if name in metrics]
        if rows:
            table[rows, column] = torch.stack([steps[row][name] for row in rows]).double()
    return table


def total_loss(metrics: Mapping[str, Tensor]) -> Tensor:
    """The sum of everything that ends in `_loss`: it is not finite where one of them is not."""
    others = (value for name, value in metrics.items() if name.endswith("_loss") and name != "class_loss")
    return sum(others, metrics["class_loss"])


def history_columns(table: Tensor, names: Sequence[str], batch_size: int) -> dict[str, float | None]:
    """The columns of one row, from `metrics_table`: each name's mean over the steps that had it, None if none had.

    `<model>_correct`, a number of samples, becomes `<model>_train_accuracy`, a share of the batch.
    """
    columns: dict[str, float | None] = {}
    for name, values in zip(names, table.unbind(dim=1), strict=True):
        known = values[~values.isnan()]
        mean = known.mean().item() if len(known) else None
        if name.endswith("_correct"):
            share = None if mean is None else mean / batch_size
            columns[f"{name.removesuffix('_correct')}_train_accuracy"] = share
        else:
            columns[name] = mean
    return columns
