"""The commands: they read params.yaml, call a stage, and turn errors into one message and an exit status.

Stages and the schema are imported inside the commands, so that `mlnt --help` waits for neither torch nor pydantic.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline import console
from pipeline.errors import RunError, UserError
from pipeline.flags import Command, Group

if TYPE_CHECKING:
    from pipeline.params.schema import Params


app = typer.Typer(
    name="mlnt",
    cls=Group,
    help="Train image classifiers on partly wrong labels, and find those labels (MLNT, CVPR 2019).\n\n"
    "`dvc repro` runs the stages in order; the commands here run one of them, or help with experiments and results.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)

ParamsFile = Annotated[Path, typer.Option("--params", help="The parameter file.", show_default=True)]
Debug = Annotated[bool, typer.Option("--debug", metavar="", help="Show the traceback of an error.")]
Baselines = Annotated[
    bool, typer.Option("--baselines", metavar="", help="The baselines that were trained, into files of their own.")
]
PARAMS = Path("params.yaml")
STAGES = "Stages of the pipeline"
BESIDE = "Systems to compare with"
HELPERS = "Helpers"


def _load(path: Path) -> Params:
    from pipeline.params.load import load

    return load(path)


@contextmanager
def _errors(debug: bool) -> Iterator[None]:
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


@app.command("look", cls=Command, rich_help_panel=STAGES)
def look(params: ParamsFile = PARAMS, debug: Debug = False) -> None:
    """List your own files, at data.root and elsewhere, with their sums → data/seen/.

    What depends on a file runs again when the file has changed.
    """
    with _errors(debug):
        checked = _load(params)
        from pipeline.stages import look as stage

        console.say(stage.run(checked))


@app.command("download", cls=Command, rich_help_panel=STAGES)
def download(params: ParamsFile = PARAMS, debug: Debug = False) -> None:
    """Get the data set: its source → data/dataset.h5.

    The source is `data.source`: digits (inside scikit-learn), cifar10, imagefolder (your own) or clothing1m.
    """
    with _errors(debug):
        checked = _load(params)
        from pipeline.stages import download as stage

        console.say(stage.run(checked))


@app.command("inject-noise", cls=Command, rich_help_panel=STAGES)
def inject_noise(params: ParamsFile = PARAMS, debug: Debug = False) -> None:
    """Split off validation samples and make labels wrong: data/dataset.h5 → data/labels.h5.

    `noise.kind: none` takes the labels as given. Also writes the realised rate and the noise matrix.
    """
    with _errors(debug):
        checked = _load(params)
        from pipeline.stages import noise as stage

        console.say(stage.run(checked))


@app.command("embed", cls=Command, rich_help_panel=STAGES)
def embed(params: ParamsFile = PARAMS, debug: Debug = False) -> None:
    """With `model.train: head`, store what the pretrained network sees in every image → data/embeddings.h5.

    Every system then trains a classifier on these rows. Otherwise it does nothing. After a stop it goes on.
    """
    with _errors(debug):
        checked = _load(params)
        from pipeline.stages import embed as stage

        console.say(stage.run(checked))


@app.command("pretrain", cls=Command, rich_help_panel=STAGES)
def pretrain(params: ParamsFile = PARAMS, debug: Debug = False) -> None:
    """Train by plain cross entropy on the noisy labels → models/pretrain/.

    The source of the features, the rows Cross Entropy and CE-EMA of the table, and the first mentor of CE + filter.
    """
    _train("pretrain", params, debug)


@app.command("extract-features", cls=Command, rich_help_panel=STAGES)
def extract_features(params: ParamsFile = PARAMS, debug: Debug = False) -> None:
    """Store the pre-trained network's features of every image → data/features.h5.

    Synthetic labels are drawn from neighbours by these features.
    """
    with _errors(debug):
        checked = _load(params)
        from pipeline.stages import features as stage

        console.say(stage.run(checked))


@app.command("meta-train", cls=Command, rich_help_panel=STAGES)
def meta_train(
    iteration: Annotated[int, typer.Option(min=1, max=3, help="Which iteration; 2 and 3 need the one before.")],
    control: Annotated[
        bool,
        typer.Option(
            "--control", metavar="", help="The control CE + filter: the same mentor rule and tau, no meta update."
        ),
    ] = False,
    params: ParamsFile = PARAMS,
    debug: Debug = False,
) -> None:
    """Train one iteration of MLNT → models/meta1/, meta2/, meta3/ (with --control: control2/, control3/).

    From iteration 2 on, the best model of the iteration before, the mentor, filters the labels and joins the target.
    """
    if control and iteration == 1:
        console.fail(
            "--control: found --iteration 1, expected 2 or 3; iteration 1 without meta update is `mlnt pretrain`"
        )
        raise typer.Exit(2)
    _train(f"{'control' if control else 'meta'}{iteration}", params, debug)


@app.command("evaluate", cls=Command, rich_help_panel=STAGES)
def evaluate(baselines: Baselines = False, params: ParamsFile = PARAMS, debug: Debug = False) -> None:
    """Evaluate every model on the test split and list the suspicious labels → metrics/evaluate.json, reports/."""
    with _errors(debug):
        checked = _load(params)
        from pipeline.stages import evaluate as stage

        console.say(stage.run(checked, baselines))


@app.command("report", cls=Command, rich_help_panel=STAGES)
def report(baselines: Baselines = False, params: ParamsFile = PARAMS, debug: Debug = False) -> None:
    """Gather metrics, curves and doubtful images into one page → reports/index.html."""
    with _errors(debug):
        checked = _load(params)
        from pipeline.stages import report as stage

        console.say(stage.run(checked, baselines))


@app.command("baseline", cls=Command, rich_help_panel=BESIDE)
def baseline(
    name: Annotated[str, typer.Argument(help="The baseline's name; a wrong one lists all names.")],
    params: ParamsFile = PARAMS,
    debug: Debug = False,
) -> None:
    """Train a system that the paper compares with → models/NAME/.

    Forward, Joint Optimization (two steps), CNN-CRF; `dvc repro baselines/dvc.yaml` trains them all.
    """
    with _errors(debug):
        from pipeline.systems.registry import BASELINES

        if name not in (names := [system.name for system in BASELINES]):
            raise UserError(f"baseline: found {name!r}; expected one of {', '.join(names)}")
        _train(name, params, debug)


@app.command("sweep", cls=Command, rich_help_panel=BESIDE)
def sweep(
    name: Annotated[str, typer.Argument(help="table1 to table4, figure3 to figure6, or noise-kinds.")],
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
    """Run the experiments of one of the paper's tables or figures, as DVC experiments.

    Finished experiments are not repeated: after a stop, run the same command again. `mlnt tables` shows the results.
    """
    with _errors(debug):
        from pipeline.paper import runner

        runner.run(name, seeds, preset, jobs, dry_run, cell or [], outdated)


@app.command("tables", cls=Command, rich_help_panel=BESIDE)
def tables(
    preset: Annotated[str, typer.Option(help="The recipe that the sweeps were run with.")] = "digits",
    out: Annotated[Path | None, typer.Option(help="A folder for the files; reports/PRESET unless given.")] = None,
    debug: Debug = False,
) -> None:
    """Gather finished experiments into the paper's tables and figures → reports/PRESET/index.html, .md, .csv, .svg."""
    with _errors(debug):
        from pipeline.paper import tables as writer

        writer.run(preset, out or Path("reports") / preset)


@app.command("show", cls=Command, rich_help_panel=HELPERS)
def show(debug: Debug = False) -> None:
    """Print the table of results of the last run."""
    with _errors(debug):
        from pipeline.report.terminal import show as print_table

        print_table()


@app.command("preset", cls=Command, rich_help_panel=HELPERS)
def preset(
    name: Annotated[str | None, typer.Argument(help="The preset's name; without one, all are listed.")] = None,
    params: ParamsFile = PARAMS,
    debug: Debug = False,
) -> None:
    """Merge a preset into params.yaml, its comments kept, and say what `dvc repro` will do; without a name, list the
    presets."""
    with _errors(debug):
        from pipeline.params import presets

        if name is None:
            for key, what in presets.available().items():
                typer.echo(f"{key:20} {what}")
        else:
            for line in presets.apply(name, params):
                typer.echo(line)
            from pipeline import outlook

            for line in outlook.lines(_load(params)):
                typer.echo(line)


@app.command("prune", cls=Command, rich_help_panel=HELPERS)
def prune(
    dry_run: Annotated[bool, typer.Option("--dry-run", metavar="", help="Only say what would be removed.")] = False,
    debug: Debug = False,
) -> None:
    """Remove checkpoints and notes of divergence that nothing will continue: those of other code than today's."""
    with _errors(debug):
        from pipeline import prune as helper

        console.say(helper.run(dry_run))


@app.command("doctor", cls=Command, rich_help_panel=HELPERS)
def doctor(params: ParamsFile = PARAMS, debug: Debug = False) -> None:
    """Look at this machine and project: what would run, what is missing, what to do. Exit status 2 if it cannot run."""
    with _errors(debug):
        from pipeline import doctor as examination

        if not examination.examine(params):
            raise typer.Exit(2)


def _train(stage: str, params: Path, debug: bool) -> None:
    with _errors(debug):
        checked = _load(params)
        from pipeline.stages import train

        console.say(train.run(checked, stage))
