"""The experiments behind the paper's tables and figures: which parameters change, which stages have to run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.base.errors import UserError
from pipeline.params import presets
from pipeline.params.load import changed, leaves, read_yaml
from pipeline.systems.registry import BASELINES, BY_STAGE, DEFAULT, FINAL, REFERENCES

Values = dict[str, Any]
PARAMS = Path("params.yaml")
ALL_STAGES = tuple(system.stage for system in (*DEFAULT, *BASELINES))
"""What the paper's tables show."""
FIRST_ITERATION = ("pretrain", "meta1")
SYMMETRIC_RATES = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9)
ASYMMETRIC_RATES = (0.1, 0.2, 0.3, 0.4, 0.5)
FOUR_NOISES = (("symmetric", 0.3), ("symmetric", 0.7), ("asymmetric", 0.2), ("asymmetric", 0.4))


@dataclass(frozen=True)
class Cell:
    """One column of a table, or one point of a figure.

    Attributes:
        label: what the table calls it.
        changes: dotted key → value, set on top of the preset and of the threshold for its noise.
    """

    label: str
    changes: Mapping[str, Any]


@dataclass(frozen=True)
class Sweep:
    """The experiments of one table or figure.

    Attributes:
        title: for people.
        cells: in the order of the columns.
        stages: training stages whose results it shows.
        axis: what differs from cell to cell within a group; None for tables of systems.
        paper: file below pipeline/report/numbers/ with the paper's numbers.
        source: the only `data.source` that it makes sense with; None for any.
    """

    title: str
    cells: tuple[Cell, ...]
    stages: tuple[str, ...]
    axis: str | None = None
    paper: str | None = None
    source: str | None = None


def noise(kind: str, rate: float) -> dict[str, Any]:
    return {"noise.kind": kind, "noise.rate": rate}


def short(kind: str, rate: float) -> str:
    return f"{'SN' if kind == 'symmetric' else 'AN'} r={rate:g}"


def _grid(key: str, symbol: str, values: Iterable[Any], noises: Iterable[tuple[str, float]]) -> tuple[Cell, ...]:
    return tuple(
        Cell(f"{short(*each)}, {symbol}={value}", {**noise(*each), key: value}) for each in noises for value in values
    )


SWEEPS = {
    "table1": Sweep(
        "Table 1: symmetric noise",
        tuple(Cell(f"r={rate:g}", noise("symmetric", rate)) for rate in SYMMETRIC_RATES),
        ALL_STAGES,
        paper="table1_symmetric.csv",
    ),
    "table2": Sweep(
        "Table 2: asymmetric noise",
        tuple(Cell(f"r={rate:g}", noise("asymmetric", rate)) for rate in ASYMMETRIC_RATES),
        ALL_STAGES,
        paper="table2_asymmetric.csv",
    ),
    "table3": Sweep(
        "Table 3: first-order approximation and full optimization, MLNT 1 student",
        _grid("mlnt.order", "order", ("first", "second"), FOUR_NOISES),
        FIRST_ITERATION,
        "mlnt.order",
        "table3_order.csv",
    ),
    "table4": Sweep(
        "Table 4: Clothing1M",
        (Cell("accuracy", {"noise.kind": "none"}),),
        # The true labels of its training images are unknown, and so is their noise matrix.
        tuple(stage for stage in ALL_STAGES if stage not in ("forward", "cnn_crf")),
        paper="table4_clothing1m.csv",
        source="clothing1m",
    ),
    "figure3": Sweep(
        "Figure 3: accuracy as training proceeds, asymmetric noise 0.4",
        (Cell("r=0.4", noise("asymmetric", 0.4)),),
        FIRST_ITERATION,
    ),
    "figure4": Sweep(
        "Figure 4: number of synthetic mini-batches M, MLNT 1 student",
        _grid("mlnt.M", "M", (0, 5, 10, 15), FOUR_NOISES),
        FIRST_ITERATION,
        "mlnt.M",
    ),
    "figure5": Sweep(
        "Figure 5: share ρ of replaced labels, MLNT 1 student",
        _grid("mlnt.rho", "ρ", (0.1, 0.2, 0.3, 0.4, 0.5), (("asymmetric", 0.2), ("asymmetric", 0.4))),
        FIRST_ITERATION,
        "mlnt.rho",
    ),
    "figure6": Sweep(
        "Figure 6: threshold τ of the mentor, MLNT 2 student",
        _grid("filter.tau", "τ", (0.1, 0.2, 0.3, 0.4, 0.5), (("asymmetric", 0.2), ("asymmetric", 0.4))),
        (*FIRST_ITERATION, "meta2"),
        "filter.tau",
    ),
    "noise-kinds": Sweep(
        "Kinds of noise, all at r = 0.4",
        (
            Cell("symmetric", noise("symmetric", 0.4)),
            Cell("symmetric, another class", {**noise("symmetric", 0.4), "noise.symmetric_excludes_true": True}),
            Cell("symmetric, Bernoulli", {**noise("symmetric", 0.4), "noise.sampling": "bernoulli"}),
            Cell("asymmetric", noise("asymmetric", 0.4)),
            Cell("pairflip", noise("pairflip", 0.4)),
            Cell("instance", {**noise("instance", 0.4), "noise.sampling": "bernoulli"}),
        ),
        ALL_STAGES,
    ),
    "references": Sweep(
        "Today's references beside MLNT and its controls",
        (
            Cell("symmetric r=0.5", noise("symmetric", 0.5)),
            Cell("asymmetric r=0.4", noise("asymmetric", 0.4)),
            Cell("instance r=0.4", {**noise("instance", 0.4), "noise.sampling": "bernoulli"}),
        ),
        tuple(system.stage for system in (*DEFAULT, *REFERENCES)),
    ),
}


SYSTEM_TABLES = tuple(name for name, sweep in SWEEPS.items() if FINAL.stage in sweep.stages)
"""The sweeps that compare all systems."""


def sweep_named(name: str, also: Sequence[str] = ()) -> Sweep:
    """A sweep, with the stages of other systems beside its own.

    Raises:
        UserError: there is no such sweep or system, or the sweep does not compare systems.
    """
    if name not in SWEEPS:
        raise UserError(f"sweep: found {name!r}; expected one of {', '.join(SWEEPS)}")
    sweep = SWEEPS[name]
    others = [stage for stage in BY_STAGE if stage not in sweep.stages]
    if unknown := [stage for stage in also if stage not in BY_STAGE]:
        raise UserError(f"--also: found {unknown[0]!r}, expected one of {', '.join(others)}")
    if also and name not in SYSTEM_TABLES:
        raise UserError(f"--also: {name} does not compare systems; expected one of {', '.join(SYSTEM_TABLES)}")
    return replace(sweep, stages=(*sweep.stages, *(stage for stage in others if stage in also)))


# preset → (kind, rate) → filter.tau where it is not the preset's, chosen on validation data
# (bench/accuracy/select_tau.py).
TAU: dict[str, dict[tuple[str, float], float]] = {
    "digits": {
        ("symmetric", 0.1): 0.1,
        ("asymmetric", 0.2): 0.1,
        ("asymmetric", 0.3): 0.1,
        ("asymmetric", 0.4): 0.1,
        ("asymmetric", 0.5): 0.1,
    },
}


def read_bases(preset: str) -> tuple[Values, Values]:
    """params.yaml, and the preset's values, as plain Python.

    Raises:
        UserError: no such preset, or one that is no mapping of sections.
    """
    return read_yaml(PARAMS), presets.read(preset)


def source_of(base: Values, preset: Values) -> str:
    """`data.source` under a preset."""
    return str({**base["data"], **(preset.get("data") or {})}["source"])


def values_of(base: Values, preset: Values, preset_name: str, cell: Cell, seed: int) -> Values:
    """The parameters of one experiment: params.yaml, the preset over it, the threshold for this noise, the cell."""
    changes: dict[str, Any] = {"seed": seed}
    where = (cell.changes.get("noise.kind"), cell.changes.get("noise.rate"))
    if (tau := TAU.get(preset_name, {}).get(where)) is not None:  # type: ignore[arg-type]
        changes["filter.tau"] = tau
    return changed(base, {**leaves(preset), **changes, **cell.changes})
