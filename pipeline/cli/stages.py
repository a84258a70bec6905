"""The stages of the pipeline, a command each, in the order of a run."""

from __future__ import annotations

from typing import Annotated

import typer

from pipeline.base import console
from pipeline.cli import launch
from pipeline.cli.flags import Command
from pipeline.cli.shared import PARAMS, Debug, GroupOption, ParamsFile, app, checked_params, reported, run_training

STAGES = "Stages of the pipeline"


@app.command("look", cls=Command, rich_help_panel=STAGES)
def look(
    code: Annotated[
        bool, typer.Option("--code", metavar="", help="Also write a digest of the code that each stage would run.")
    ] = False,
    params: ParamsFile = PARAMS,
    debug: Debug = False,
) -> None:
    """List your own files, at data.root and elsewhere, with their sums → data/seen/.

    What depends on a file runs again when the file has changed.
    """
    with reported(debug):
        checked = checked_params(params)
        from pipeline.stages import look as stage

        console.say(stage.run(checked, code))


@app.command("download", cls=Command, rich_help_panel=STAGES)
def download(params: ParamsFile = PARAMS, debug: Debug = False) -> None:
    """Get the data set: its source → data/dataset.h5.

    The source is `data.source`: digits (inside scikit-learn), cifar10, cifar100, imagefolder (your own) or clothing1m.
    """
    with reported(debug):
        checked = checked_params(params)
        from pipeline.stages import download as stage

        console.say(stage.run(checked))


@app.command("inject-noise", cls=Command, rich_help_panel=STAGES)
def inject_noise(params: ParamsFile = PARAMS, debug: Debug = False) -> None:
    """Split off validation samples and make labels wrong: data/dataset.h5 → data/labels.h5.

    `noise.kind: none` takes the labels as given. Also writes the realised rate and the noise matrix.
    """
    with reported(debug):
        checked = checked_params(params)
        from pipeline.stages import noise as stage

        console.say(stage.run(checked))


@app.command("embed", cls=Command, rich_help_panel=STAGES)
def embed(params: ParamsFile = PARAMS, debug: Debug = False) -> None:
    """With `model.train: head`, store what the pretrained network sees in every image → data/embeddings.h5.

    Every system then trains a classifier on these rows. Otherwise it does nothing. After a stop it goes on.
    """
    with reported(debug):
        checked = checked_params(params)
        from pipeline.stages import embed as stage

        launch.run(stage.processes(checked), lambda: stage.run(checked))


@app.command("pretrain", cls=Command, rich_help_panel=STAGES)
def pretrain(params: ParamsFile = PARAMS, debug: Debug = False) -> None:
    """Train by plain cross entropy on the noisy labels → models/pretrain/.

    The source of the features, the rows Cross Entropy and CE-EMA of the table, and the first mentor of CE + filter.
    """
    run_training("pretrain", params, debug)


@app.command("extract-features", cls=Command, rich_help_panel=STAGES)
def extract_features(params: ParamsFile = PARAMS, debug: Debug = False) -> None:
    """Store the pre-trained network's features of every image → data/features.h5.

    Synthetic labels are drawn from neighbours by these features.
    """
    with reported(debug):
        checked = checked_params(params)
        from pipeline.stages import features as stage

        launch.run(stage.processes(checked), lambda: stage.run(checked))


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
    run_training(f"{'control' if control else 'meta'}{iteration}", params, debug)


@app.command("evaluate", cls=Command, rich_help_panel=STAGES)
def evaluate(group: GroupOption = None, params: ParamsFile = PARAMS, debug: Debug = False) -> None:
    """Evaluate every model on the test split and list the suspicious labels → metrics/evaluate.json, reports/."""
    with reported(debug):
        checked = checked_params(params)
        from pipeline.stages import evaluate as stage

        launch.run(stage.processes(checked), lambda: stage.run(checked, group))


@app.command("report", cls=Command, rich_help_panel=STAGES)
def report(group: GroupOption = None, params: ParamsFile = PARAMS, debug: Debug = False) -> None:
    """Gather metrics, curves and doubtful images into one page → reports/index.html."""
    with reported(debug):
        checked = checked_params(params)
        from pipeline.stages import report as stage

        console.say(stage.run(checked, group))
