"""`mlnt predict`, and the same as a function."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipeline.base import console, files
from pipeline.base.errors import UserError
from pipeline.decoding.decode import Decoded, UndecodableError
from pipeline.sources.labelled_files.to_dataset import warn_of_remarks
from pipeline.sources.places.folder import first_few, is_text, printable
from pipeline.use.prediction.classifier import Classifier
from pipeline.use.prediction.inputs import image_files

BATCH = 64
FIRST_COLUMN = "filename"
SHOWN = 10
"""Predictions of so few images are printed as well."""


class Prediction(NamedTuple):
    """The classes of an image that the model finds most probable, the first one first."""

    path: str
    labels: tuple[str, ...]
    probabilities: tuple[float, ...]


@dataclass(frozen=True)
class Predictions:
    """
    Attributes:
        found: of each image that decodes, in the order that they were named in.
        skipped: path → why, of the others.
        remarks: path → what was left out of an image, or is doubtful.
    """

    found: list[Prediction]
    skipped: Mapping[str, str]
    remarks: Mapping[str, tuple[str, ...]]


def predict(images: Iterable[str | Path], model: str | Path = "models/meta3", topk: int = 1) -> Predictions:
    """What a trained model takes images for.

    Args:
        images: image files, folders with images, CSV files with a column `path`.
        model: the folder of a trained model, or a copy of it; nothing else is read.
        topk: classes for each image; all of them, where there are fewer.

    Raises:
        UserError: there is no model, or something of `images` is not there.
    """
    return _predictions(Classifier.load(model), image_files(images), topk)


def _predictions(classifier: Classifier, paths: Sequence[str], topk: int) -> Predictions:
    found: list[Prediction] = []
    skipped: dict[str, str] = {}
    remarks: dict[str, tuple[str, ...]] = {}
    decoded = _decoded(classifier, console.counted(paths, "predict", len(paths)), skipped)
    while batch := list(islice(decoded, BATCH)):
        remarks |= {path: image.remarks for path, image in batch if image.remarks}
        found += _predicted(classifier, batch, topk)
    return Predictions(found, skipped, remarks)


def run(images: Sequence[str | Path], model: Path, topk: int, out: Path) -> bool:
    """Predict and write the table, in the columns of timm's inference script; returns whether all images decoded.

    Raises:
        UserError: as `predict`; none of the images decodes; or the table would replace what was named, a folder or a
            device.
        RunError: the table cannot be written, which is found before anything is predicted.
    """
    classifier, paths = Classifier.load(model), image_files(images)
    predictions = Predictions([], {}, {})

    def rows() -> Iterator[dict[str, Any]]:
        nonlocal predictions
        predictions = _predictions(classifier, paths, topk)
        if not predictions.found:
            raise UserError(f"none of {len(paths)} images could be read: {_skipped(predictions)}")
        yield from map(_row, predictions.found)

    files.write_csv(_target(out, [*images, *paths]), rows())
    warn_of_remarks("predict", predictions.remarks, len(predictions.found))
    if predictions.skipped:
        console.warn(
            f"{len(predictions.skipped)} of {len(paths)} images could not be read, and are left out: "
            f"{_skipped(predictions)}"
        )
    if len(predictions.found) <= SHOWN:
        for each in predictions.found:
            pairs = zip(each.labels, each.probabilities, strict=True)
            console.say(f"{each.path}: {', '.join(f'{label} {value:.1%}' for label, value in pairs)}")
    console.say(f"predict: {len(predictions.found)} images → {out}")
    return not predictions.skipped


def _target(out: Path, named: Iterable[str | Path]) -> Path:
    """The file that `out` leads to: the table goes there, and a link stays one.

    Raises:
        UserError: it is a folder, a device or a pipe, one of the files to predict, or another file than a table of
            predictions, which alone is replaced.
    """
    if os.path.isdir(out):  # noqa: PTH112 (pathlib raises for a long path)
        raise UserError(f"--out: {out} is a folder; expected the name of a file, such as {out / 'predictions.csv'}")
    if os.path.exists(out):  # noqa: PTH110
        if not out.is_file():
            raise UserError(f"--out: {out} is a device or a pipe; expected the name of a file, such as predictions.csv")
        if any(out.samefile(each) for each in named):
            raise UserError(f"--out: {out} is one of the files to predict, and would be replaced; give it another name")
        if not _is_table(out):
            raise UserError(f"--out: {out} is there, and no table of predictions; give it another name, or remove it")
    return Path(os.path.realpath(out))


def _is_table(path: Path) -> bool:
    """Whether it is what this command writes, or empty."""
    try:
        with path.open("rb") as file:
            return file.read(len(FIRST_COLUMN) + 1) in (b"", f"{FIRST_COLUMN},".encode())
    except OSError:
        return False


def _skipped(predictions: Predictions) -> str:
    return first_few(f"{printable(path)} ({why})" for path, why in predictions.skipped.items())


def _row(prediction: Prediction) -> dict[str, Any]:
    """As timm's script has it with --fullname and --results-separate-col."""
    if len(prediction.labels) == 1:
        label, probability = *prediction.labels, *prediction.probabilities
        return {FIRST_COLUMN: prediction.path, "label": label, "prob": probability}
    labels = {f"label_{i}": label for i, label in enumerate(prediction.labels)}
    return {FIRST_COLUMN: prediction.path} | labels | {f"prob_{i}": p for i, p in enumerate(prediction.probabilities)}


def _decoded(classifier: Classifier, paths: Iterable[str], skipped: dict[str, str]) -> Iterator[tuple[str, Decoded]]:
    """Each image that decodes; the others go into `skipped`, with the reason."""
    for path in paths:
        try:
            if not is_text(path):
                raise UndecodableError("its name is not UTF-8")
            with Path(path).open("rb") as file:
                content = file.read(classifier.options.max_file_bytes + 1)
            yield path, classifier.decode(content)
        except (UndecodableError, UserError, OSError) as error:
            skipped[path] = str(error)


def _predicted(classifier: Classifier, batch: Sequence[tuple[str, Decoded]], topk: int) -> Iterator[Prediction]:
    names = classifier.card.class_names
    probabilities = classifier.probabilities(np.stack([image.pixels for _, image in batch]))
    values, classes = probabilities.topk(min(topk, len(names)), dim=1)
    for (path, _), row, numbers in zip(batch, values.tolist(), classes.tolist(), strict=True):
        yield Prediction(path, tuple(names[number] for number in numbers), tuple(row))
