"""The app, what its commands have in common: options, params.yaml, and errors as one message and an exit status."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pipeline.base import console
from pipeline.base.errors import RunError, UserError
from pipeline.cli import launch
from pipeline.cli.flags import Group

if TYPE_CHECKING:
    from pipeline.params.schema import Params


app = typer.Typer(
    name="mlnt",
    cls=Group,
    help="Train image classifiers on partly wrong labels, and find those labels (MLNT, CVPR 2019).\n\n"
    "`mlnt init` begins; `dvc repro` runs the stages in order; the commands here run one of them, or help with "
    "experiments and results.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)

ParamsFile = Annotated[Path, typer.Option("--params", help="The parameter file.", show_default=True)]
Debug = Annotated[bool, typer.Option("--debug", metavar="", help="Show the traceback of an error.")]
GroupOption = Annotated[
    Literal["baselines", "references"] | None,
    typer.Option("--group", help="Those systems beside the default run, into files of their own.", show_default=False),
]
PARAMS = Path("params.yaml")
FINAL_MODEL = Path("models/meta3")


def checked_params(path: Path) -> Params:
    """The parameters of a file; what is wrong with it is a UserError."""
    from pipeline.params.load import load

    return load(path)


@contextmanager
def reported(debug: bool) -> Iterator[None]:
    """Exit status 2 for what the user can mend, 1 for the rest; one message, and no traceback without --debug."""
    try:
        yield
    except (UserError, RunError) as error:
        if debug:
            raise
        console.fail(str(error))
        raise typer.Exit(2 if isinstance(error, UserError) else 1) from None
    except Exception as error:
        if debug or isinstance(error, typer.Exit):
            raise
        console.fail(f"{type(error).__name__}: {error} (--debug shows where)")
        raise typer.Exit(1) from None


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", metavar="", help="Show the version.")] = False) -> None:
    if version:
        from importlib.metadata import version as installed

        typer.echo(f"mlnt {installed('mlnt')}")
        raise typer.Exit


def run_training(stage: str, params: Path, debug: bool) -> None:
    with reported(debug):
        checked = checked_params(params)
        from pipeline.stages import train

        launch.run(train.processes(checked, stage), lambda: train.run(checked, stage))
        if os.environ.get("RANK", "0") == "0":  # of several processes one says it
            _require_unchanged(stage, checked, params)


def _require_unchanged(stage: str, trained: Params, path: Path) -> None:
    """DVC notes the parameters that the file has when a stage ends: those must be the ones that it began with.

    Raises:
        UserError: the file was edited meanwhile, where the stage reads it.
    """
    from pipeline.params.load import load, values_of
    from pipeline.systems.registry import sections

    then, now = (values_of(each, sections(stage)) for each in (trained, load(path)))
    if changes := [f"{key} was {then[key]}, is {now[key]}" for key in then if then[key] != now.get(key)]:
        raise UserError(
            f"{path}: changed while {stage} was training: {'; '.join(changes)}; what it has trained is of the former "
            "values; run it again"
        )
