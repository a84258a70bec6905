"""What a run will do, in words, and how long it will take here: said by `mlnt preset` and `mlnt doctor`."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.base.console import duration
from pipeline.base.errors import UserError
from pipeline.params.schema import Params
from pipeline.systems.registry import BY_STAGE, DEFAULT
from pipeline.training.plan import System

OTHERS = 3
"""Stages that take little but their start: download, noise, embed, whose images are counted apart."""


def plan(params: Params, stage: str | None = None) -> str:
    """What `dvc repro` will do, or `dvc repro STAGE`."""
    model, epochs = params.model, params.train.epochs
    command = f"dvc repro {stage}" if stage else "dvc repro"
    systems = f"{', '.join(system.title for system in _systems(stage))}, {epochs} epochs each"
    if params.train.folds:
        systems += f", each also without each of {params.train.folds} parts of the training images"
    size = params.data.crop or params.data.resize
    images = f"images of {size}×{size} pixels" if size else "images"
    if model.train == "head":
        return (
            f"`{command}` will embed all {images} once by {model.name}, and train linear classifiers on that: {systems}"
        )
    how = "fine-tune" if model.starts_trained else "train"
    start = model.weights or ("its trained weights" if model.pretrained else "nothing")
    return f"`{command}` will {how} {model.name} from {start} on {images}: {systems}"


def _systems(stage: str | None) -> Sequence[System]:
    return DEFAULT if stage is None else [BY_STAGE[stage]]


def time(params: Params, stage: str | None = None) -> str:
    """How long that will take here, from a few steps of the network on random images of the data's shape.

    Raises:
        UserError: the data cannot be looked at, or nothing can be timed with these parameters.
    """
    from pipeline.before_training import estimate
    from pipeline.stages.download import sizes
    from pipeline.store.sizes import Sizes
    from pipeline.training.device import prepare

    data, systems = params.data, _systems(stage)
    unknown = data.has_image_files and data.root is None
    found, size = None if unknown else sizes(params), data.crop or data.resize
    if unknown and size is not None:
        found = Sizes((1 if data.channels == 1 else 3, size, size), 10, train=800, validation=100, test=100)
    if found is None:
        return "how long a run takes is not known before the data are there: `mlnt download`"
    measured = estimate.measure(params, found, systems, prepare(params.compute))
    seconds = measured.run(systems, OTHERS, evaluated=stage is None)
    if unknown:
        return f"about {duration(seconds)} here for a thousand images; with data.root, `mlnt doctor` says it for yours"
    _, height, width = found.shape
    return f"about {duration(seconds)} here, for {found.train} training images of {width}×{height}"


def lines(params: Params, stage: str | None = None) -> list[str]:
    """Both, for a preset that was chosen; the time where it is of a person's own images."""
    if params.data.source != "imagefolder":
        return [plan(params, stage), "`mlnt doctor` says how long that takes here"]
    try:
        return [plan(params, stage), time(params, stage)]
    except (UserError, RuntimeError, ValueError) as error:  # it is but an estimate
        return [plan(params, stage), f"how long that takes is not known: {error}"]
