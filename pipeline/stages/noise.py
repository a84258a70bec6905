"""Stage noise: data/dataset.h5 → data/labels.h5, by splitting off validation samples and injecting noise."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlnt import seeding
from mlnt.noise import by_image, matrices
from pipeline.base import console, files
from pipeline.base.errors import UserError
from pipeline.params.load import values_of
from pipeline.params.schema import Params
from pipeline.sources import corrections, human_labels
from pipeline.sources.places.delimited import DELIMITERS
from pipeline.sources.places.folder import printable
from pipeline.store.dataset import TRAIN, VALIDATION, Dataset, Labels, read_dataset, write_labels
from pipeline.store.record import Record
from pipeline.systems.registry import sections


def run(params: Params) -> str:
    """Write the labels, the realised rates and the matrices; returns a line that says what was realised.

    Raises:
        UserError: parameters or files that do not fit the data set.
    """
    dataset = read_dataset(params.data.root)
    split = _split(dataset, params)
    beside = dataset.true_labels
    true_labels = dataset.labels if beside is None else beside
    labels, intended = _noisy_labels(dataset, split, params)
    noisy = (TRAIN,) if params.noise.validation == "clean" else (TRAIN, VALIDATION)
    labels = np.where(np.isin(split, noisy), labels, true_labels)
    known = dataset.labels_are_true or beside is not None or params.noise.kind != "none"
    result = Labels(labels, true_labels if known else None, split, intended, dataset.digest)
    decided = params.noise.corrections
    if decided is not None:
        result = corrections.corrected(result, dataset, files.resolve(decided))
    digest = write_labels(result)

    train = result.rows(TRAIN)
    metrics: dict[str, Any] = {
        "train_samples": len(train),
        "validation_samples": len(result.rows(VALIDATION)),
        "validation_labels": dataset.validation_labels(params.noise.kind, params.noise.validation),
    }
    if decided is not None:
        metrics["corrections"] = corrections.counts(result)
    rows: list[dict[str, Any]] = []
    if result.true_labels is not None:
        true, found = result.true_labels[train], result.labels[train]
        metrics["realised_rate"] = float((found != true).mean())
        realised = matrices.realised_matrix(true, found, len(dataset.class_names))
        rows = _matrix_rows(dataset.class_names, intended, realised)
    files.write_json(files.NOISE, metrics)
    files.write_csv(files.NOISE_MATRIX, rows)
    own = values_of(params, sections("noise"))
    given = {key: files.file_digest(files.resolve(name)) for key, name in params.noise.files().items()}
    Record.of("noise", own, [__name__], {"dataset": dataset.digest, **given}, {"labels": digest}).write()
    rate = f"realised rate {metrics['realised_rate']:.4f}" if known else "true labels unknown"
    return f"{params.noise.kind}: {len(train)} training samples, {rate}; {len(result.rows(VALIDATION))} for validation"


def _split(dataset: Dataset, params: Params) -> NDArray[np.uint8]:
    """The source's split; without a validation part there, a stratified one is taken off the training part, which keeps
    a sample of every class.

    Raises:
        UserError: no class has a sample to spare.
    """
    if (dataset.split == VALIDATION).any():
        return dataset.split
    split = dataset.split.copy()
    train = np.flatnonzero(split == TRAIN)
    fraction = params.noise.validation_fraction
    generator = seeding.numpy_generator(params.seed, "validation split")
    chosen = matrices.validation_split(dataset.labels[train], fraction, generator)
    if dataset.same_picture is not None:
        chosen = _together(chosen, dataset.same_picture[train], dataset.labels[train])
    if not chosen.any():
        raise UserError(
            f"noise.validation_fraction: found {fraction:g}, but each class has one training sample alone, which stays "
            f"for training; expected a class of two or more: {_more_samples(dataset, params)}"
        )
    split[train[chosen]] = VALIDATION
    _warn_of_another_share(dataset, train, chosen, fraction)
    return split


def _together(chosen: NDArray[np.bool_], groups: NDArray[np.int64], labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Equal images go where the first of them goes, or stay for training where a class would lose its last sample."""
    chosen, equal = chosen.copy(), np.flatnonzero(groups >= 0)
    _, first, group = np.unique(groups[equal], return_index=True, return_inverse=True)
    chosen[equal] = chosen[equal][first][group]
    back = np.isin(labels, np.setdiff1d(labels, labels[~chosen]))
    return chosen & ~back & ~np.isin(groups, groups[back & (groups >= 0)])


def _more_samples(dataset: Dataset, params: Params) -> str:
    remedies = [] if params.data.limit is None else ["raise data.limit"]
    if dataset.source == "imagefolder":
        remedies += ["put images of their own into val/CLASS/ (or rows with the split val into the CSV)"]
    return " or ".join([*remedies, "add training samples"])


def _warn_of_another_share(
    dataset: Dataset, train: NDArray[np.int64], chosen: NDArray[np.bool_], fraction: float
) -> None:
    """Where small classes do not allow the share that was asked for, or none of theirs is chosen."""
    taken, asked = int(chosen.sum()), fraction * len(train)
    labels = dataset.labels[train]
    without = np.setdiff1d(labels, labels[chosen])
    said = [f"{taken} of {len(train)} training samples are taken for validation"]
    if abs(taken - asked) >= max(1, 0.2 * asked):
        said.append(f"{fraction:g} would be {asked:.1f}: of each class a whole number is taken, and one stays")
    if len(without):
        names = ", ".join(dataset.class_names[label] for label in without[:5]) + (", …" if len(without) > 5 else "")
        said.append(f"none of {len(without)} of {len(np.unique(labels))} classes, which are too small: {names}")
    if len(said) > 1:
        console.warn(f"noise.validation_fraction: {'; '.join(said)}")


def _noisy_labels(
    dataset: Dataset, split: NDArray[np.uint8], params: Params
) -> tuple[matrices.Labels, matrices.Matrix | None]:
    """Labels with noise in the training and the validation part, and the matrix that was asked for.

    Raises:
        UserError: parameters or files that do not fit the data set, or noise upon labels that are wrong already.
    """
    kind = params.noise.kind
    if kind == "none":
        return dataset.labels, None
    if dataset.true_labels is not None and (wrong := dataset.true_labels != dataset.labels).any():
        raise UserError(
            f"noise.kind: found {kind}, but {int(wrong.sum())} of {len(wrong)} labels differ from their true_label "
            f"already ({printable(dataset.names[wrong.argmax()])} first); expected none, which trains on the labels as "
            "given, or a CSV without such rows"
        )
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
        usual = matrices.USUAL_ASYMMETRIC
        fitting = [each for each in usual if set(class_names) >= {*each.keys(), *each.values()}]
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
    return _read_matrix(files.resolve(params.noise.matrix_file or ""), class_names)


def _read_matrix(path: Path, class_names: list[str]) -> matrices.Matrix:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = [line for line in file if line.strip() and not line.startswith("#")]
        tables = [list(csv.reader(lines, delimiter=each, skipinitialspace=True)) for each in DELIMITERS]
        tables.append([line.split() for line in lines])  # numbers, as numpy.savetxt writes them
        columns = (len(class_names), len(class_names) + 1)
        table = next((rows for rows in tables if rows and len(rows[0]) in columns), tables[0])
        return matrices.named_matrix(table, class_names)
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(
            f"noise.matrix_file: {path}: {error}; row i holds P(label = j | true label = i), rows and columns in the "
            f"order of the classes ({', '.join(class_names)}), or in any with names in a first row and a first column; "
            "commas, semicolons or tabs separate them, or blanks where all are numbers"
        ) from error


def _instance(
    dataset: Dataset, split: NDArray[np.uint8], params: Params
) -> tuple[matrices.Labels, matrices.Matrix | None]:
    """Labels that depend on the image, and the training part's matrix; a clean validation part is not read."""
    count, size = len(dataset.class_names), int(np.prod(dataset.images.shape[1:]))

    def projection(true: int) -> by_image.Projection:
        return by_image.draw_projection(size, count, seeding.numpy_generator(params.seed, "projection", true))

    def noisy(part: int) -> matrices.Matrix:
        rows, done = np.flatnonzero(split == part), 0

        def images(chosen: NDArray[np.int64]) -> NDArray[np.uint8]:
            nonlocal done
            done += len(chosen)
            bar.at(done - 1)
            return dataset.images[rows[chosen]]

        with console.progress("noise", len(rows)) as bar:
            labels[rows], matrix = by_image.instance_labels(
                images,
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
    chosen = params.noise.human_labels
    other = f"it belongs to other data: noise.human_labels {chosen} is of {human_labels.LABEL_SETS[chosen].of}"
    if human.size and not 0 <= human.min() <= human.max() < len(dataset.class_names):
        raise UserError(
            f"noise.human_file: {path}: its labels go from {human.min()} to {human.max()}, expected 0 to "
            f"{len(dataset.class_names) - 1}: {other}"
        )
    if index.max() >= len(clean):
        raise UserError(
            f"noise.human_file: {path} labels {len(clean)} images, the data set's numbers go to {index.max()}: {other}"
        )
    if (differ := clean[index] != dataset.labels[rows]).any():
        raise UserError(
            f"noise.human_file: {path}: its clean labels differ from the data set's for {int(differ.sum())} of "
            f"{len(rows)} images ({dataset.names[rows[differ.argmax()]]} first): {other}"
        )
    labels = dataset.labels.copy()
    labels[rows] = human[index]
    return labels


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
