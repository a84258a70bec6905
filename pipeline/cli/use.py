"""What a run has made, in use: predictions, and models and labels for other tools."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from pipeline.base import console
from pipeline.cli.flags import Command, Group
from pipeline.cli.shared import FINAL_MODEL, PARAMS, Debug, ParamsFile, app, checked_params, reported

Model = Annotated[Path, typer.Option(help="The folder of a trained model.", show_default=True)]
USE = "Use of the results"


@app.command("predict", cls=Command, rich_help_panel=USE)
def predict(
    images: Annotated[
        list[Path],
        typer.Argument(metavar="IMAGE|FOLDER|CSV...", help="Image files, folders, CSV files with a column `path`."),
    ],
    model: Model = FINAL_MODEL,
    topk: Annotated[int, typer.Option(min=1, help="Classes for each image.")] = 3,
    out: Annotated[Path, typer.Option(help="The table to write.", show_default=True)] = Path("predictions.csv"),
    debug: Debug = False,
) -> None:
    """Predict the classes of images with a trained model → predictions.csv.

    The model's folder is all that is needed, or a copy of it anywhere. Images that do not decode are named and left
    out; the exit status is then 1.
    """
    with reported(debug):
        from pipeline.use.prediction import predict as command

        if not command.run(images, model, topk, out):
            raise typer.Exit(1)


export = typer.Typer(
    cls=Group,
    help="Hand a trained model or the labels to other tools → exports/FORMAT/.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)
app.add_typer(export, name="export", rich_help_panel=USE)


@export.command("model", cls=Command)
def export_model(
    kind: Annotated[
        Literal["timm", "onnx"], typer.Option("--format", help="timm's folder, or an ONNX file.", show_default=False)
    ],
    model: Model = FINAL_MODEL,
    out: Annotated[Path | None, typer.Option(help="A new folder; exports/FORMAT unless given.")] = None,
    debug: Debug = False,
) -> None:
    """Write a trained model for timm or as ONNX → exports/timm/, exports/onnx/.

    It is read back by timm or by onnxruntime, and its logits are compared, before it is left there.
    """
    with reported(debug):
        from pipeline.use.export import model_formats as command

        console.say(command.run(kind, model, out))


@export.command("labels", cls=Command)
def export_labels(
    kind: Annotated[
        Literal["csv", "hf", "label-studio", "fiftyone", "cleanlab"],
        typer.Option("--format", help="Who shall read them.", show_default=False),
    ],
    policy: Annotated[
        Literal["review", "drop", "relabel"],
        typer.Option(help="What becomes of doubtful labels: kept and marked, left out, or replaced by the model's."),
    ] = "review",
    changed_only: Annotated[
        bool, typer.Option("--changed-only", metavar="", help="Only the samples that the policy is about.")
    ] = False,
    keep_test: Annotated[
        bool, typer.Option("--keep-test", metavar="", help="Leave the test split out of the policy.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="A new folder; exports/FORMAT unless given.")] = None,
    params: ParamsFile = PARAMS,
    debug: Debug = False,
) -> None:
    """Write the labels, and what the final model says of them, for another tool → exports/FORMAT/.

    csv for `data.root`; hf for Hugging Face's datasets; label-studio, fiftyone: to look and decide there; cleanlab:
    pred_probs and features for its Datalab.
    """
    with reported(debug):
        checked = checked_params(params)
        from pipeline.use.export import labels as command

        console.say(command.run(checked, kind, policy, changed_only, out, keep_test))
