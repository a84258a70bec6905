"""The systems to compare with, and the tables of many runs."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from pipeline.base.errors import UserError
from pipeline.cli.flags import Command
from pipeline.cli.shared import PARAMS, Debug, ParamsFile, app, reported, run_training

COMPARISON = "Systems to compare with"


@app.command("baseline", cls=Command, rich_help_panel=COMPARISON)
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


class Executor(StrEnum):
    LOCAL = "local"
    SLURM = "slurm"


Also = Annotated[
    list[str] | None,
    typer.Option(
        metavar="SYSTEM",
        help="One more system in a table of systems, such as elr, or your own; may be given again.",
        show_default="none",
    ),
]


@app.command("sweep", cls=Command, rich_help_panel=COMPARISON)
def sweep(
    name: Annotated[str, typer.Argument(help="table1 to table4, figure3 to figure6, noise-kinds, or references.")],
    seeds: Annotated[int, typer.Option(min=1, help="The number of seeds: 0, 1, 2, …")] = 5,
    preset: Annotated[str, typer.Option(help="The recipe; `mlnt preset` lists them.")] = "digits",
    cell: Annotated[
        list[str] | None,
        typer.Option(help="Only this column, such as `r=0.5`; may be given again.", show_default="all"),
    ] = None,
    also: Also = None,
    part: Annotated[
        str | None, typer.Option(metavar="I/N", help="Only every N-th experiment, from the I-th on, counted from 0.")
    ] = None,
    executor: Annotated[Executor, typer.Option(help="This machine, or SLURM.")] = Executor.LOCAL,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Experiments at a time.", show_default="1; slurm: 100")
    ] = None,
    gpus_per_job: Annotated[int, typer.Option(min=0, help="GPUs of each experiment, where there are any.")] = 1,
    git_remote: Annotated[
        str | None,
        typer.Option(help="Where results are pushed to: a remote, path or URL.", show_default="one of its own"),
    ] = None,
    scratch: Annotated[
        Path | None, typer.Option(help="A folder on a local disk, for the workers' clones.", show_default="$TMPDIR")
    ] = None,
    partition: Annotated[str | None, typer.Option(help="slurm: the partition.", show_default="SLURM's")] = None,
    time: Annotated[
        str, typer.Option(help="slurm: time limit of a job; at its end it is queued again and goes on.")
    ] = "4:00:00",
    slurm: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="slurm: any option of sbatch, such as account=vision; repeatable."),
    ] = None,
    outdated: Annotated[
        bool, typer.Option("--outdated", metavar="", help="Run again what was made by other code than today's.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", metavar="", help="Only say what would run.")] = False,
    debug: Debug = False,
) -> None:
    """Run the experiments of a table or figure, as DVC experiments.

    Each in a clone of its own, here or on a cluster. Finished experiments are not repeated: after a stop, run the same
    command again. `mlnt tables` shows the results.
    """
    with reported(debug):
        from pipeline.paper.sweep.plan import Part
        from pipeline.paper.sweep.run import Where, run

        where = Where(executor, jobs, gpus_per_job, git_remote, scratch, partition, time, slurm or [])
        share = None if part is None else Part.parse(part)
        run(name, seeds, preset, where, dry_run, cell or [], outdated, share, also or [])


@app.command("tables", cls=Command, rich_help_panel=COMPARISON)
def tables(
    preset: Annotated[str, typer.Option(help="The recipe that the sweeps were run with.")] = "digits",
    out: Annotated[Path | None, typer.Option(help="A folder for the files; reports/PRESET unless given.")] = None,
    also: Also = None,
    debug: Debug = False,
) -> None:
    """Gather finished experiments into the paper's tables and figures → reports/PRESET/index.html, .md, .csv, .svg."""
    with reported(debug):
        from pipeline.paper import tables as writer

        writer.run(preset, out or Path("reports") / preset, also or [])
