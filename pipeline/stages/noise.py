"""Stage noise: data/dataset.h5 → data/labels.h5, by splitting off validation samples and injecting noise."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlnt import seeding
from mlnt.noise import by_image, matrices
from pipeline import files
from pipeline.errors import UserError
from pipeline.params.load import values_of
from pipeline.params.schema import Params
from pipeline.sources import human_labels
from pipeline.store.dataset import TRAIN, VALIDATION, Dataset, Labels, read_dataset, write_labels
from pipeline.store.record import Record
from pipeline.systems.registry import sections

METRICS = files.METRICS / "noise.json"
MATRIX = files.REPORTS / "noise_matrix.csv"


def run(params: Params) -> str:
    """Write the labels, the realised rates and the matrices; returns a line that says what was realised.

    Raises:
        UserError: parameters or files that do not fit the data set.
    """
    dataset = read_dataset(params.data.root)
    split = _split(dataset, params)
    true_labels = dataset.labels
    labels, intended = _noisy_labels(dataset, split, params)
    if params.noise.validation == "clean":
        labels = np.where(split == TRAIN, labels, true_labels)
    known = dataset.labels_are_true or params.noise.kind != "none"
    result = Labels(labels, true_labels if known else None, split, intended, dataset.digest)
    digest = write_labels(result)
    own = values_of(params, sections("noise"))
    given = {key: files.file_digest(path) for key, path in _files_of(params).items()}
    Record.of("noise", own, [__name__], {"dataset": dataset.digest, **given}, {"labels": digest}).write()

    train = result.rows(TRAIN)
    metrics: dict[str, Any] = {
        "train_samples": len(train),
        "validation_samples": len(result.rows(VALIDATION)),
        "validation_labels": _validation_labels(dataset, params),
    }
    rows: list[dict[str, Any]] = []
    if known:
        metrics["realised_rate"] = float((labels[train] != true_labels[train]).mean())
        realised = matrices.realised_matrix(true_labels[train], labels[train], len(dataset.class_names))
        rows = _matrix_rows(dataset.class_names, intended, realised)
    files.write_json(METRICS, metrics)
    files.write_csv(MATRIX, rows)
    rate = f"realised rate {metrics['realised_rate']:.4f}" if known else "true labels unknown"
    return f"{params.noise.kind}: {len(train)} training samples, {rate}; {len(result.rows(VALIDATION))} for validation"


def _files_of(params: Params) -> dict[str, Path]:
    """The files that the noise comes from, by the names of their parameters."""
    noise = params.noise
    wanted = {"matrix": ("noise.matrix_file", noise.matrix_file), "human": ("noise.human_file", noise.human_file)}
    key, name = wanted.get(noise.kind, ("", None))
    return {} if name is None else {key: files.resolve(name)}


def _split(dataset: Dataset, params: Params) -> NDArray[np.uint8]:
    """The source's split; without a validation part there, a stratified one is taken off the training part, which keeps
    a sample of every class."""
    if (dataset.split == VALIDATION).any():
        return dataset.split
    split = dataset.split.copy()
    train = np.flatnonzero(split == TRAIN)
    generator = seeding.numpy_generator(params.seed, "validation split")
    chosen = matrices.stratified_split(dataset.labels[train], params.noise.validation_fraction, generator, leave=1)
    split[train[chosen]] = VALIDATION
    return split


def _noisy_labels(
    dataset: Dataset, split: NDArray[np.uint8], params: Params
) -> tuple[matrices.Labels, matrices.Matrix | None]:
    """Labels with noise in the training and the validation part, and the matrix that was asked for."""
    kind = params.noise.kind
    if kind == "none":
        return dataset.labels, None
    if kind == "human":
        return _human(dataset, params), None
    if kind == "instance":
        return _instance(dataset, split, params)
    matrix = _matrix(dataset.class_names, params)
    labels = dataset.labels.copy()
    for part in (TRAIN, VALIDATION):
        rows = np.flatnonzero(split == part)
        generator = seeding.numpy_generator(params.seed, "noise", part)
        if kind == "symmetric":
            labels[rows] = matrices.symmetric_labels(
                dataset.labels[rows],
                len(dataset.class_names),
                params.noise.rate,
                params.noise.symmetric_excludes_true,
                params.noise.sampling,
                generator,
            )
        else:
            labels[rows] = matrices.replace_labels(dataset.labels[rows], matrix, params.noise.sampling, generator)
    return labels, matrix


def _matrix(class_names: list[str], params: Params) -> matrices.Matrix:
    rate, count = params.noise.rate, len(class_names)
    if params.noise.kind == "symmetric":
        return matrices.symmetric_matrix(count, rate, params.noise.symmetric_excludes_true)
    if params.noise.kind == "pairflip":
        return matrices.pairflip_matrix(count, rate)
    if params.noise.kind == "asymmetric":
        known = (matrices.CIFAR10_ASYMMETRIC, matrices.DIGITS_ASYMMETRIC)
        fitting = [usual for usual in known if set(class_names) >= {*usual.keys(), *usual.values()}]
        mapping = params.noise.mapping or (fitting[0] if fitting else {})
        if not mapping:
            raise UserError(
                "noise.mapping: found nothing, expected CLASS: CLASS pairs for asymmetric noise; "
                f"the classes are {', '.join(class_names)}"
            )
        try:
            return matrices.mapping_matrix(class_names, mapping, rate)
        except ValueError as error:
            raise UserError(f"noise.mapping: {error}") from error
    return _read_matrix(files.resolve(params.noise.matrix_file or ""), count)


def _read_matrix(path: Path, num_classes: int) -> matrices.Matrix:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # an empty file: its shape is refused below
            matrix = np.loadtxt(path, delimiter=",", ndmin=2)
        matrices.check_matrix(matrix, num_classes)
    except (OSError, ValueError) as error:
        raise UserError(f"noise.matrix_file: {path}: {error}; row i holds P(label = j | true label = i)") from error
    return matrix


def _instance(
    dataset: Dataset, split: NDArray[np.uint8], params: Params
) -> tuple[matrices.Labels, matrices.Matrix | None]:
    """Labels that depend on the image, and the training part's matrix; a clean validation part is not read."""
    count, size = len(dataset.class_names), int(np.prod(dataset.images.shape[1:]))

    def projection(true: int) -> by_image.Projection:
        return by_image.draw_projection(size, count, seeding.numpy_generator(params.seed, "projection", true))

    def noisy(part: int) -> matrices.Matrix:
        rows = np.flatnonzero(split == part)
        labels[rows], matrix = by_image.instance_labels(
            lambda chosen: dataset.images[rows[chosen]],
            dataset.labels[rows],
            params.noise.rate,
            count,
            projection,
            seeding.numpy_generator(params.seed, "noise", part),
        )
        return matrix

    labels = dataset.labels.copy()
    if params.noise.validation == "noisy":
        noisy(VALIDATION)
    return labels, noisy(TRAIN)


def _human(dataset: Dataset, params: Params) -> matrices.Labels:
    """Human labels of the training part (its validation samples included), found by `source_index`."""
    path = files.resolve(params.noise.human_file or "")
    try:
        clean, human = human_labels.load_human_labels(path, params.noise.human_labels)
    except FileNotFoundError:
        raise UserError(f"noise.human_file: {path}: no such file") from None
    except (ValueError, OSError) as error:
        raise UserError(f"noise.human_file: {path}: {error}") from error
    rows = np.flatnonzero(dataset.split == TRAIN)
    index = dataset.source_index[rows]
    if human.size and not 0 <= human.min() <= human.max() < len(dataset.class_names):
        raise UserError(
            f"noise.human_file: {path}: its labels go from {human.min()} to {human.max()}, expected 0 to "
            f"{len(dataset.class_names) - 1}: it belongs to other data"
        )
    if index.max() >= len(clean):
        raise UserError(
            f"noise.human_file: {path} labels {len(clean)} images, the data set's numbers go to {index.max()}: "
            "it belongs to other data"
        )
    if (differ := clean[index] != dataset.labels[rows]).any():
        raise UserError(
            f"noise.human_file: {path}: its clean labels differ from the data set's for {int(differ.sum())} of "
            f"{len(rows)} images ({dataset.names[rows[differ.argmax()]]} first): it belongs to other data"
        )
    labels = dataset.labels.copy()
    labels[rows] = human[index]
    return labels


def _validation_labels(dataset: Dataset, params: Params) -> str:
    """Which labels choose the best models: `clean`, `noisy`, or `as given` where their quality is unknown."""
    if params.noise.kind == "none":
        # Clothing1M: its owners had the images of validation and test labelled again by hand.
        return "clean" if dataset.labels_are_true or dataset.source == "clothing1m" else "as given"
    return params.noise.validation


def _matrix_rows(
    class_names: list[str], intended: matrices.Matrix | None, realised: matrices.Matrix
) -> list[dict[str, Any]]:
    return [
        {
            "true": true,
            "label": label,
            "intended": None if intended is None else intended[i, j],
            "realised": realised[i, j],
        }
        for i, true in enumerate(class_names)
        for j, label in enumerate(class_names)
    ]
