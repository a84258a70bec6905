"""What helps with workspaces, parameters and results."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from pipeline.base import console
from pipeline.base.errors import UserError
from pipeline.cli.flags import Command
from pipeline.cli.shared import FINAL_MODEL, PARAMS, Debug, ParamsFile, app, checked_params, reported
from pipeline.params.load import read_yaml

HELPERS = "Helpers"


@app.command("init", cls=Command, rich_help_panel=HELPERS)
def init(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="The workspace: a new or an empty folder.", show_default="this one")
    ] = Path(),
    images: Annotated[
        Path | None,
        typer.Option(help="Your images: a folder with train/CLASS/FILE or CLASS/FILE, a .csv file or an archive."),
    ] = None,
    debug: Debug = False,
) -> None:
    """Lay out a workspace, in which `dvc repro` runs → params.yaml, dvc.yaml, presets/, a git and a DVC repository.

    With --images it is for your images: they are looked at first, and you hear what will happen and how long it takes.
    No file that is there is replaced.
    """
    with reported(debug):
        from pipeline.workspace import init as command

        command.run(folder, images)


@app.command("list", cls=Command, rich_help_panel=HELPERS)
def list_images(
    name: Annotated[
        Literal["animal10n", "food101n", "mini-webvision", "tiny-imagenet"],
        typer.Argument(help="Which data set.", show_default=False),
    ],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where it was unpacked.", show_default=False)],
    out: Annotated[Path | None, typer.Option(help="The list; DIR/labels.csv unless given.")] = None,
    debug: Debug = False,
) -> None:
    """List the images of a known data set, as its owners lay it out, with labels and splits → DIR/labels.csv.

    That file is what `mlnt init --images` and data.root take. No image is copied.
    """
    with reported(debug):
        from pipeline.workspace import known_datasets as helper

        console.say(helper.run(name, folder, out))


@app.command("show", cls=Command, rich_help_panel=HELPERS)
def show(debug: Debug = False) -> None:
    """Print the table of results of the last run."""
    with reported(debug):
        from pipeline.report.terminal import show as print_table

        print_table()


@app.command("preset", cls=Command, rich_help_panel=HELPERS)
def preset(
    name: Annotated[str | None, typer.Argument(help="The preset's name; without one, all are listed.")] = None,
    from_list: Annotated[
        bool,
        typer.Option(
            "--from-list",
            metavar="",
            help="Begin with the classifier of the finished run with `model.train: head`, without the labels it lists.",
        ),
    ] = False,
    params: ParamsFile = PARAMS,
    debug: Debug = False,
) -> None:
    """Merge a preset into params.yaml, its comments kept, and say what `dvc repro` will do; without a name, list the
    presets."""
    with reported(debug):
        from pipeline.params import presets

        if name is None:
            if from_list:
                raise UserError(
                    "--from-list: expected a preset's name before it: `mlnt preset imagefolder --from-list`"
                )
            for key, what in presets.available().items():
                typer.echo(f"{key:20} {what}")
            return
        for line in _from_list(name, params) if from_list else presets.apply(name, params):
            typer.echo(line)
        from pipeline.workspace import outlook

        for line in outlook.lines(checked_params(params), "pretrain" if from_list else None):
            typer.echo(line)
        if from_list:
            typer.echo("next: dvc repro pretrain, then mlnt predict IMAGES --model models/pretrain")


def _from_list(name: str, params: Path) -> list[str]:
    """
    Raises:
        UserError: the last run is not that of these parameters, or nothing can begin with it.
    """
    from pipeline.paper.history import belongs_here
    from pipeline.use import from_list

    if params.resolve().parent != Path.cwd():
        raise UserError(f"--from-list: found --params {params}; expected that of this folder, whose run it begins with")
    if not belongs_here(FINAL_MODEL.name, read_yaml(params)):
        raise UserError(
            f"--from-list: there is no finished run of {params} as it is now, with the files that it names; "
            "expected one: `dvc repro`"
        )
    return from_list.apply(name, params, FINAL_MODEL)


@app.command("prune", cls=Command, rich_help_panel=HELPERS)
def prune(
    dry_run: Annotated[bool, typer.Option("--dry-run", metavar="", help="Only say what would be removed.")] = False,
    debug: Debug = False,
) -> None:
    """Remove checkpoints and notes of divergence that nothing will continue: those of other code than today's."""
    with reported(debug):
        from pipeline.workspace import prune as helper

        console.say(helper.run(dry_run))


@app.command("doctor", cls=Command, rich_help_panel=HELPERS)
def doctor(params: ParamsFile = PARAMS, debug: Debug = False) -> None:
    """Look at this machine and project: what would run, what is missing, what to do. Exit status 2 if it cannot run."""
    with reported(debug):
        from pipeline.workspace import doctor as examination

        if not examination.examine(params):
            raise typer.Exit(2)
