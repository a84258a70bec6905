"""The systems to compare with, and the tables of many runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.flags import Command
from pipeline.cli.shared import PARAMS, Debug, ParamsFile, app, reported, run_training
from pipeline.errors import UserError

BESIDE = "Systems to compare with"


@app.command("baseline", cls=Command, rich_help_panel=BESIDE)
def baseline(
    name: Annotated[str, typer.Argument(help="The system's name; a wrong one lists all names.")],
    params: ParamsFile = PARAMS,
    debug: Debug = False,
) -> None:
    """Train a system to compare with → models/NAME/.

    The paper's: Forward, Joint Optimization (two steps), CNN-CRF; `dvc repro baselines/dvc.yaml` trains them all.
    Today's references: GCE, ELR, SOP, Meta-Weight-Net, Co-teaching, DivideMix; `dvc repro references/dvc.yaml`.
    """
    with reported(debug):
        from pipeline.systems.registry import BASELINES, REFERENCES

        if name not in (names := [system.name for system in (*BASELINES, *REFERENCES)]):
            raise UserError(f"baseline: found {name!r}; expected one of {', '.join(names)}")
        run_training(name, params, debug)


@app.command("sweep", cls=Command, rich_help_panel=BESIDE)
def sweep(
    name: Annotated[str, typer.Argument(help="table1 to table4, figure3 to figure6, noise-kinds, or references.")],
    seeds: Annotated[int, typer.Option(min=1, help="The number of seeds: 0, 1, 2, …")] = 5,
    preset: Annotated[str, typer.Option(help="The recipe; `mlnt preset` lists them.")] = "digits",
    cell: Annotated[
        list[str] | None,
        typer.Option(help="Only this column, such as `r=0.5`; may be given again.", show_default="all"),
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Experiments at a time.")] = 1,
    outdated: Annotated[
        bool, typer.Option("--outdated", metavar="", help="Run again what was made by other code than today's.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", metavar="", help="Only say what would be queued.")] = False,
    debug: Debug = False,
) -> None:
    """Run the experiments of a table or figure, as DVC experiments.

    Finished experiments are not repeated: after a stop, run the same command again. `mlnt tables` shows the results.
    """
    with reported(debug):
        from pipeline.paper import runner

        runner.run(name, seeds, preset, jobs, dry_run, cell or [], outdated)


@app.command("tables", cls=Command, rich_help_panel=BESIDE)
def tables(
    preset: Annotated[str, typer.Option(help="The recipe that the sweeps were run with.")] = "digits",
    out: Annotated[Path | None, typer.Option(help="A folder for the files; reports/PRESET unless given.")] = None,
    debug: Debug = False,
) -> None:
    """Gather finished experiments into the paper's tables and figures → reports/PRESET/index.html, .md, .csv, .svg."""
    with reported(debug):
        from pipeline.paper import tables as writer

        writer.run(preset, out or Path("reports") / preset)
