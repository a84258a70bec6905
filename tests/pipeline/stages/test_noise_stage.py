from __future__ import annotations

import csv
import dataclasses
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from projects import make_params, write_picture

from mlnt import seeding
from mlnt.noise import by_image
from mlnt.noise.matrices import CIFAR10_ASYMMETRIC, CIFAR100_ASYMMETRIC
from pipeline.base import files
from pipeline.base.errors import RunError, UserError
from pipeline.stages import download, noise
from pipeline.store import record
from pipeline.store.dataset import TEST, TRAIN, VALIDATION, Dataset, Labels, read_dataset, read_labels, write_dataset
from pipeline.store.stored_images import StoredImages

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
WHOLE = {"data__limit": None, "data__limit_test": None}


@pytest.fixture(scope="module")
def downloaded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the digits."""
    folder = tmp_path_factory.mktemp("digits")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        download.run(make_params(**WHOLE))
    return folder


@pytest.fixture
def digits(downloaded: Path, project: Path) -> Dataset:
    shutil.copytree(downloaded / "data", project / "data")
    return read_dataset()


def inject(dataset: Dataset, **changes: Any) -> tuple[Labels, dict[str, Any]]:
    """What the stage writes, with parameters such as `kind="pairflip"` of the section noise."""
    seed = changes.pop("seed", 0)
    said = noise.run(make_params(seed=seed, **WHOLE, **{f"noise__{key}": value for key, value in changes.items()}))
    labels, metrics = read_labels(dataset), files.read_json(files.NOISE)
    assert metrics["train_samples"] == len(labels.rows(TRAIN))
    assert metrics["validation_samples"] == len(labels.rows(VALIDATION))
    if "realised_rate" in metrics:
        assert f"realised rate {metrics['realised_rate']:.4f}" in said
    return labels, metrics


def counts(dataset: Dataset, labels: Labels, split: int = TRAIN) -> NDArray[np.int64]:
    """[true class, given class] → samples of a split."""
    size = len(dataset.class_names)
    table = np.zeros((size, size), dtype=np.int64)
    np.add.at(table, (dataset.labels[labels.rows(split)], labels.labels[labels.rows(split)]), 1)
    return table


def wrong(dataset: Dataset, labels: Labels, split: int) -> int:
    table = counts(dataset, labels, split)
    return int(table.sum() - table.trace())


# Kinds


@pytest.mark.parametrize("rate", [0.0, 0.3, 0.5, 1.0])
def test_symmetric_noise_without_the_true_label_is_exact(rate: float, digits: Dataset) -> None:
    labels, metrics = inject(digits, kind="symmetric", rate=rate, symmetric_excludes_true=True)
    size = len(labels.rows(TRAIN))
    expected = int(round(rate * size, 9))
    assert wrong(digits, labels, TRAIN) == expected
    assert metrics["realised_rate"] == pytest.approx(expected / size, abs=1e-6)


@pytest.mark.parametrize("sampling", ["exact", "bernoulli"])
def test_symmetric_noise_realises_less_than_its_rate(sampling: str, digits: Dataset) -> None:
    labels, metrics = inject(digits, kind="symmetric", rate=0.5, sampling=sampling, symmetric_excludes_true=False)
    size = len(labels.rows(TRAIN))
    # r(1 − 1/C), within five standard errors
    assert metrics["realised_rate"] == pytest.approx(0.45, abs=5 * (0.45 * 0.55 / size) ** 0.5)
    assert metrics["realised_rate"] == pytest.approx(wrong(digits, labels, TRAIN) / size, abs=1e-6)
    assert wrong(digits, labels, TRAIN) <= 0.5 * size or sampling == "bernoulli"


def test_pairflip_noise_moves_each_class_to_the_next(digits: Dataset) -> None:
    labels, _ = inject(digits, kind="pairflip", rate=0.4)
    table = counts(digits, labels)
    moved = np.floor(0.4 * table.sum(axis=1) + 1e-9).astype(int)
    expected = np.diag(table.sum(axis=1) - moved)
    expected[np.arange(10), (np.arange(10) + 1) % 10] += moved
    assert np.array_equal(table, expected)


def test_asymmetric_noise_follows_its_mapping(digits: Dataset) -> None:
    labels, metrics = inject(digits, kind="asymmetric", rate=0.4, mapping={"3": "5", "5": "3", "7": "1"})
    table = counts(digits, labels)
    totals = table.sum(axis=1)
    expected = np.diag(totals)
    for source, image in ((3, 5), (5, 3), (7, 1)):
        expected[source, source] -= int(0.4 * totals[source] + 1e-9)
        expected[source, image] += int(0.4 * totals[source] + 1e-9)
    assert np.array_equal(table, expected)
    assert metrics["realised_rate"] == pytest.approx(1 - table.trace() / table.sum(), abs=1e-6)


def test_instance_noise_is_that_of_each_sample_s_own_image(digits: Dataset) -> None:
    labels, metrics = inject(digits, kind="instance", rate=0.4, sampling="bernoulli", validation="noisy")
    size = len(labels.rows(TRAIN))
    assert metrics["realised_rate"] == pytest.approx(0.4, abs=5 * (0.24 / size) ** 0.5)
    assert isinstance(digits.images, StoredImages)
    for part in (TRAIN, VALIDATION):
        rows = labels.rows(part)
        images = digits.images[rows]
        expected, matrix = by_image.instance_labels(
            images.__getitem__,
            digits.labels[rows],
            0.4,
            10,
            lambda true: by_image.draw_projection(64, 10, seeding.numpy_generator(0, "projection", true)),
            seeding.numpy_generator(0, "noise", part),
        )
        assert labels.labels[rows].tolist() == expected.tolist()
        if part == TRAIN:
            assert labels.intended_matrix == pytest.approx(matrix)
    clean, _ = inject(digits, kind="instance", rate=0.4, sampling="bernoulli")
    assert np.array_equal(clean.labels[labels.rows(TRAIN)], labels.labels[labels.rows(TRAIN)])
    assert wrong(digits, clean, VALIDATION) == 0


@pytest.mark.parametrize("delimiter", [",", ";", "\t", " ", "   ", " , "])
def test_a_matrix_from_a_file(delimiter: str, digits: Dataset, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = 0.75 * np.eye(10) + 0.25 * np.roll(np.eye(10), 3, axis=1)
    np.savetxt(project / "matrix.csv", matrix, delimiter=delimiter)
    labels, _ = inject(digits, kind="matrix", matrix_file="matrix.csv")
    table = counts(digits, labels)
    moved = np.floor(0.25 * table.sum(axis=1) + 1e-9).astype(int)
    assert table[np.arange(10), (np.arange(10) + 3) % 10].tolist() == moved.tolist()
    assert table.trace() == table.sum() - moved.sum()
    monkeypatch.setenv("HOME", str(project))
    again, _ = inject(digits, kind="matrix", matrix_file="~/matrix.csv")
    assert np.array_equal(again.labels, labels.labels)


def test_no_noise_keeps_labels_that_are_known_to_be_true(digits: Dataset) -> None:
    labels, metrics = inject(digits, kind="none")
    assert np.array_equal(labels.labels, digits.labels)
    assert labels.true_labels is not None
    assert metrics["realised_rate"] == 0
    assert metrics["validation_labels"] == "clean"


# What every kind shares


def test_the_record_is_written_last(digits: Dataset) -> None:
    """Else a stage that is stopped in between leaves numbers of other labels beside it."""
    inject(digits, rate=0.1)
    before = record.read("noise")
    files.NOISE_MATRIX.unlink()
    files.NOISE_MATRIX.mkdir()
    with pytest.raises(RunError, match=re.escape(str(files.NOISE_MATRIX))):
        inject(digits, rate=0.5)
    assert record.read("noise") == before
    files.NOISE_MATRIX.rmdir()
    inject(digits, rate=0.5)
    assert record.read("noise") != before


KINDS: list[dict[str, Any]] = [
    {"kind": "symmetric", "rate": 0.5},
    {"kind": "symmetric", "rate": 0.5, "sampling": "bernoulli"},
    {"kind": "pairflip", "rate": 0.4},
    {"kind": "asymmetric", "rate": 0.4, "mapping": {"3": "5"}},
    {"kind": "instance", "rate": 0.4, "sampling": "bernoulli"},
    {"kind": "none"},
]


@pytest.mark.parametrize("changes", KINDS, ids=lambda changes: "-".join(map(str, changes.values())))
def test_the_split_does_not_depend_on_the_noise(changes: dict[str, Any], digits: Dataset) -> None:
    labels, _ = inject(digits, **changes)
    other, _ = inject(digits, kind="symmetric", rate=0.1)
    assert np.array_equal(labels.split, other.split)
    assert np.array_equal(labels.split == TEST, digits.split == TEST)
    totals = np.bincount(digits.labels[digits.split == TRAIN])
    assert np.bincount(digits.labels[labels.rows(VALIDATION)]).tolist() == np.round(0.2 * totals).tolist()
    assert labels.dataset_digest == digits.digest
    assert labels.true_labels is not None
    assert np.array_equal(labels.true_labels, digits.labels)
    assert np.array_equal(labels.labels[labels.rows(TEST)], digits.labels[labels.rows(TEST)])


@pytest.mark.parametrize("changes", [*KINDS[:2], KINDS[4]], ids=["exact", "bernoulli", "instance"])
def test_noise_and_split_follow_from_the_seed(changes: dict[str, Any], digits: Dataset) -> None:
    first, _ = inject(digits, **changes)
    again, _ = inject(digits, **changes)
    other, _ = inject(digits, **changes, seed=1)
    assert first.digest == again.digest
    assert not np.array_equal(first.split, other.split)
    assert not np.array_equal(first.labels[first.rows(TRAIN)], other.labels[first.rows(TRAIN)])


@pytest.mark.parametrize("choice", ["clean", "noisy"])
def test_validation_labels_are_clean_or_noisy(choice: str, digits: Dataset) -> None:
    labels, metrics = inject(digits, kind="symmetric", rate=0.5, symmetric_excludes_true=True, validation=choice)
    expected = len(labels.rows(VALIDATION)) // 2 if choice == "noisy" else 0
    assert wrong(digits, labels, VALIDATION) == expected
    assert metrics["validation_labels"] == choice
    assert metrics["realised_rate"] == pytest.approx(0.5, abs=1e-3)  # of the training labels alone


def test_the_matrix_file_holds_what_was_asked_for_and_what_was_counted(digits: Dataset) -> None:
    labels, _ = inject(digits, kind="pairflip", rate=0.4)
    with files.NOISE_MATRIX.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["true"], row["label"]) for row in rows] == [(i, j) for i in "0123456789" for j in "0123456789"]
    table = counts(digits, labels)
    realised = np.array([float(row["realised"]) for row in rows]).reshape(10, 10)
    intended = np.array([float(row["intended"]) for row in rows]).reshape(10, 10)
    assert realised == pytest.approx(table / table.sum(axis=1, keepdims=True), abs=1e-6)
    assert intended == pytest.approx(0.6 * np.eye(10) + 0.4 * np.roll(np.eye(10), 1, axis=1))


def test_the_validation_split_leaves_a_training_sample_of_every_class(digits: Dataset) -> None:
    """Here of classes with one and two images, and more than half of all taken off."""
    train = np.flatnonzero(digits.split == TRAIN)
    rare = np.concatenate([np.flatnonzero(digits.labels[train] == c)[n:] for c, n in ((3, 1), (5, 2))])
    keep = np.setdiff1d(np.arange(len(digits.labels)), train[rare])
    fields = ("images", "labels", "split", "source_index")
    few = {name: np.asarray(getattr(digits, name))[keep] for name in fields}
    write_dataset(dataclasses.replace(digits, **few, names=[digits.names[row] for row in keep]))
    dataset = read_dataset()
    labels, _ = inject(dataset, kind="none", validation_fraction=0.8)
    counted = {split: np.bincount(dataset.labels[labels.rows(split)], minlength=10) for split in (TRAIN, VALIDATION)}
    assert counted[TRAIN].min() == 1
    assert [(counted[TRAIN][c], counted[VALIDATION][c]) for c in (3, 5)] == [(1, 0), (1, 1)]


# What can be wrong


def refused(expected: str, **changes: Any) -> None:
    with pytest.raises(UserError, match=expected):
        noise.run(make_params(**WHOLE, **{f"noise__{key}": value for key, value in changes.items()}))
    assert not files.LABELS.exists()
    assert not files.NOISE.exists()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1,0\n0,1\n", "expected 10 rows of 10 numbers, found shape (2, 2)"),
        ("\n".join([",".join(["0.2"] * 10)] * 10), "found row 1 with sum 2"),
        ("\n".join([",".join(["1.9", "-0.9", *["0"] * 8])] * 10), "negative"),
        ("\n".join([",".join(["nan", *["0"] * 9])] * 10), "non-finite"),
        ("\n".join([",".join("abcdefghij")] * 10), "could not convert string"),
        ("1,0\n0\n", "number of columns changed"),
        ("", "expected 10 rows of 10 numbers"),
        ("|".join("0123456789"), "blanks where all are numbers"),
    ],
    ids=["shape", "sums", "negative", "nan", "text", "ragged", "empty", "bars"],
)
def test_wrong_matrices_are_explained(text: str, expected: str, digits: Dataset, project: Path) -> None:
    (project / "matrix.csv").write_text(text, encoding="utf-8")
    refused("^noise.matrix_file: matrix.csv: .*" + re.escape(expected), kind="matrix", matrix_file="matrix.csv")


def test_a_missing_matrix_is_named(digits: Dataset) -> None:
    refused(r"^noise.matrix_file: nosuch.csv.*", kind="matrix", matrix_file="nosuch.csv")


@pytest.mark.parametrize(
    ("mapping", "expected"),
    [
        ({"3": "cat"}, "'cat' is not a class; the classes are 0, 1, 2"),
        ({"dog": "3"}, "'dog' is not a class"),
        ({"3": "3"}, "'3' is mapped to itself"),
    ],
)
def test_wrong_mappings_are_explained(mapping: dict[str, str], expected: str, digits: Dataset) -> None:
    refused(f"^noise.mapping: {expected}", kind="asymmetric", mapping=mapping)


def test_own_classes_need_a_mapping(digits: Dataset) -> None:
    names = [f"class {name}" for name in digits.class_names]
    write_dataset(dataclasses.replace(digits, class_names=names))
    message = "found nothing, expected CLASS: CLASS pairs for asymmetric noise; the classes are class 0, class 1"
    refused(f"^noise.mapping: {message}", kind="asymmetric", mapping={})


def test_noise_needs_the_data_set(project: Path) -> None:
    refused(r"^data/dataset.h5: no such file; `mlnt download` makes it")


# Small classes, and classes that are numbers


def images(folder: Path, *classes: str, each: int) -> None:
    for i, label in enumerate(classes):
        for j in range(each):
            write_picture(folder / "images" / label / f"{j}.png", i * each + j)
    download.run(make_params(**WHOLE, data__source="imagefolder", data__root="images"))


def test_a_share_of_small_classes_is_the_share_of_all_and_said(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images(project, *(f"c{i:02}" for i in range(40)), each=2)
    labels, _ = inject(read_dataset(), kind="none", validation_fraction=0.1)
    assert len(labels.rows(VALIDATION)) == 8
    said = capsys.readouterr().err
    assert "warning: noise.validation_fraction: 8 of 80 training samples are taken for validation; none of 32" in said
    assert said.count("\n") == 1
    inject(read_dataset(), kind="none", validation_fraction=0.9)
    assert "40 of 80 training samples are taken for validation; 0.9 would be 72.0: of each" in capsys.readouterr().err


def test_rounding_that_takes_another_share_is_said(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images(project, *(f"c{i:02}" for i in range(10)), each=3)
    inject(read_dataset(), kind="none", validation_fraction=0.2)
    assert "10 of 30 training samples are taken for validation; 0.2 would be 6.0: of each" in capsys.readouterr().err


def test_equal_images_are_taken_for_validation_together_or_not_at_all(project: Path) -> None:
    for label, numbers in (("a", [*range(8)] * 2), ("b", [*range(4, 20)]), ("c", [99] * 5)):
        for i, number in enumerate(numbers):
            write_picture(project / "images" / label / f"{i}.png", number)
    download.run(make_params(**WHOLE, data__source="imagefolder", data__root="images"))
    dataset = read_dataset()
    assert dataset.same_picture is not None
    for seed in range(5):
        labels, _ = inject(dataset, kind="none", validation_fraction=0.4, seed=seed)
        for group in range(dataset.same_picture.max() + 1):
            assert len(set(labels.split[dataset.same_picture == group])) == 1
        train, validation = (dataset.labels[labels.rows(part)] for part in (TRAIN, VALIDATION))
        assert set(train) == {0, 1, 2}
        assert set(validation) == {0, 1}  # those of class c are all equal


@pytest.mark.parametrize("limit", [None, 5])
def test_single_images_leave_nothing_for_validation(limit: int | None, project: Path) -> None:
    images(project, *map(str, range(5)), each=1)
    with pytest.raises(UserError) as caught:
        noise.run(make_params(data__limit=limit, noise__kind="none", noise__validation_fraction=0.9))
    said = str(caught.value)
    assert said.startswith("noise.validation_fraction: found 0.9, but each class has one training sample alone")
    assert "val/CLASS/" in said
    assert ("raise data.limit or" in said) == (limit is not None)
    write_picture(project / "images/0/1.png", 99)
    download.run(make_params(**WHOLE, data__source="imagefolder", data__root="images"))
    labels, _ = inject(read_dataset(), kind="none", validation_fraction=0.9)
    assert len(labels.rows(VALIDATION)) == 1


@pytest.mark.parametrize(("named", "delimiter"), [(False, ","), (True, ","), (True, ";"), (True, "\t")])
def test_a_matrix_in_counting_order_meets_classes_that_are_numbers(named: bool, delimiter: str, project: Path) -> None:
    images(project, *map(str, range(11)), each=8)
    matrix = np.eye(11)
    matrix[2, 2], matrix[2, 3] = 0.5, 0.5
    order = np.arange(11)[::-1] if named else np.arange(11)
    rows = [delimiter.join(map(str, [*([i] if named else []), *matrix[i][order]])) for i in order]
    head = [delimiter.join(map(str, ["", *order]))] if named else []
    Path("matrix.csv").write_text("\ufeff" + "\n".join(["# by hand", *head, *rows][not named :]), encoding="utf-8")
    dataset = read_dataset()
    labels, _ = inject(dataset, kind="matrix", matrix_file="matrix.csv", validation="noisy", validation_fraction=0.2)
    changed = np.flatnonzero(labels.labels != dataset.labels)
    assert {dataset.class_names[i] for i in dataset.labels[changed]} == {"2"}
    assert {dataset.class_names[i] for i in labels.labels[changed]} == {"3"}


def test_a_matrix_of_other_classes_is_refused(digits: Dataset, project: Path) -> None:
    rows = ["," + ",".join("012345678x"), *(f"{i}," + ",".join(["0.1"] * 10) for i in range(10))]
    (project / "matrix.csv").write_text("\n".join(rows), encoding="utf-8")
    refused(
        "^noise.matrix_file: matrix.csv: its columns are called 0, .*that lacks 9; row i holds",
        kind="matrix",
        matrix_file="matrix.csv",
    )


# Own images, in the manner of CIFAR-10: numbers for names


@pytest.fixture(scope="module")
def cifar_like(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, NDArray[np.int64]]:
    """Files train/CLASS/NUMBER.png, and the class of each number."""
    folder = tmp_path_factory.mktemp("cifar")
    classes = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 12))
    for number, label in enumerate(classes):
        write_picture(folder / "train" / CIFAR10[label] / f"{number:04}.png", number)
    for label, name in enumerate(CIFAR10):
        write_picture(folder / "test" / name / f"{label:04}.png", label)
    return folder, classes


@pytest.fixture
def own(cifar_like: tuple[Path, NDArray[np.int64]], project: Path) -> Dataset:
    download.run(make_params(**WHOLE, data__source="imagefolder", data__root=str(cifar_like[0])))
    return read_dataset()


@pytest.mark.parametrize("validation", ["clean", "noisy"])
def test_nobody_knows_the_truth_about_own_labels(validation: str, own: Dataset) -> None:
    labels, metrics = inject(own, kind="none", validation=validation)
    assert labels.true_labels is None
    assert labels.intended_matrix is None
    assert np.array_equal(labels.labels, own.labels)
    assert metrics == {"train_samples": 100, "validation_samples": 20, "validation_labels": "as given"}
    assert files.NOISE_MATRIX.read_text(encoding="utf-8").strip() == ""


def test_own_labels_are_the_truth_when_noise_is_injected(own: Dataset) -> None:
    labels, metrics = inject(own, kind="symmetric", rate=0.5, symmetric_excludes_true=True)
    assert labels.true_labels is not None
    assert metrics["realised_rate"] == 0.5


def with_truth(dataset: Dataset, true_labels: NDArray[np.int64]) -> Dataset:
    """The data set with true labels beside its own, as download writes it of a CSV that has both."""
    write_dataset(dataclasses.replace(dataset, true_labels=true_labels))
    return read_dataset()


@pytest.mark.parametrize("validation", ["clean", "noisy"])
def test_true_labels_beside_the_given_ones_are_what_results_are_judged_by(validation: str, own: Dataset) -> None:
    true = np.where(np.arange(len(own.labels)) % 3 == 0, (own.labels + 1) % 10, own.labels)
    dataset = with_truth(own, true)
    labels, metrics = inject(dataset, kind="none", validation=validation)
    plain, _ = inject(with_truth(own, own.labels), kind="none")
    assert labels.true_labels is not None
    assert labels.true_labels.tolist() == true.tolist()
    assert labels.split.tolist() == plain.split.tolist()
    for part, expected in (
        (TRAIN, own.labels),
        (VALIDATION, true if validation == "clean" else own.labels),
        (TEST, true),
    ):
        rows = labels.rows(part)
        assert (own.labels[rows] != true[rows]).any()
        assert labels.labels[rows].tolist() == expected[rows].tolist()
    train = labels.rows(TRAIN)
    assert metrics["realised_rate"] == pytest.approx((own.labels[train] != true[train]).mean(), abs=1e-6)
    assert metrics["validation_labels"] == validation
    assert len(files.read_csv(files.NOISE_MATRIX)) == 100


def test_noise_upon_noise_is_refused(own: Dataset) -> None:
    changes = {"kind": "symmetric", "rate": 0.5, "symmetric_excludes_true": True}
    plain, _ = inject(own, **changes)
    equal, _ = inject(with_truth(own, own.labels), **changes)
    assert np.array_equal(equal.labels, plain.labels)
    true = own.labels.copy()
    true[7] = (true[7] + 1) % 10
    with_truth(own, true)
    before = files.LABELS.read_bytes()
    expected = (
        rf"noise\.kind: found symmetric, but 1 of {len(true)} labels differ .*\({re.escape(own.names[7])} first\)"
    )
    with pytest.raises(UserError, match=expected):
        noise.run(make_params(**WHOLE, noise__kind="symmetric"))
    assert files.LABELS.read_bytes() == before


def test_the_usual_mapping_on_digits_is_that_of_look_alikes(digits: Dataset) -> None:
    labels, _ = inject(digits, kind="asymmetric", rate=0.4, mapping={})
    table = counts(digits, labels)
    flipped = {(str(i), str(j)) for i, j in zip(*np.nonzero(table), strict=True) if i != j}
    assert flipped == {("2", "7"), ("3", "8"), ("5", "6"), ("6", "5"), ("7", "1")}
    assert all(table[i, j] == int(0.4 * table[i].sum()) for i, j in ((2, 7), (3, 8), (5, 6), (6, 5), (7, 1)))


def test_the_paper_s_mapping_is_that_of_cifar10_s_classes(own: Dataset) -> None:
    labels, _ = inject(own, kind="asymmetric", rate=0.4, mapping={})
    table = counts(own, labels)
    expected = np.diag(table.sum(axis=1))
    for source, image in CIFAR10_ASYMMETRIC.items():
        i, j = CIFAR10.index(source), CIFAR10.index(image)
        expected[i, i] -= 4
        expected[i, j] += 4
    assert np.array_equal(table, expected)


@pytest.fixture
def hundred(project: Path) -> Dataset:
    """CIFAR-100's classes, ten tiny images of each, as download leaves them."""
    names = sorted(CIFAR100_ASYMMETRIC)
    labels = np.repeat(np.arange(100), 10)
    write_dataset(
        Dataset(
            images=np.random.default_rng(0).integers(0, 256, (1000, 1, 2, 2)).astype(np.uint8),
            labels=labels,
            split=np.full(1000, TRAIN, np.uint8),
            source_index=np.arange(1000),
            names=[f"train/{i}" for i in range(1000)],
            class_names=names,
            source="cifar100",
            labels_are_true=True,
        )
    )
    return read_dataset()


def test_the_usual_mapping_on_cifar100_is_that_of_superclasses(hundred: Dataset) -> None:
    labels, metrics = inject(hundred, kind="asymmetric", rate=0.5, mapping={})
    names, table = hundred.class_names, counts(hundred, labels)
    expected = np.diag([4] * 100)
    for name, following in CIFAR100_ASYMMETRIC.items():
        expected[names.index(name), names.index(following)] = 4
    assert np.array_equal(table, expected)
    assert metrics["realised_rate"] == 0.5


@pytest.mark.parametrize(
    ("human", "clean", "expected"),
    [
        (lambda labels: (labels + 1) % 100, lambda labels: labels, ""),
        (
            lambda labels: labels,
            lambda labels: labels // 5,
            "its clean labels differ from the data set's for 990 of 1000 .*cifar100\\)",
        ),
        (
            lambda labels: labels + 1,
            lambda labels: labels,
            "its labels go from 1 to 100, expected 0 to 99: .*cifar100\\)",
        ),
    ],
    ids=["right", "other classes", "too many"],
)
def test_the_fine_labels_of_cifar100n(
    human: Callable[[NDArray[np.int64]], NDArray[np.int64]],
    clean: Callable[[NDArray[np.int64]], NDArray[np.int64]],
    expected: str,
    hundred: Dataset,
) -> None:
    torch.save({"clean_label": clean(hundred.labels), "noisy_label": human(hundred.labels)}, "human.pt")
    chosen = {"kind": "human", "human_file": "human.pt", "human_labels": "noisy_label"}
    if expected:
        refused(f"^noise.human_file: human.pt: {expected}", **chosen)
    else:
        labels, _ = inject(hundred, **chosen)
        train = labels.rows(TRAIN)
        assert np.array_equal(labels.labels[train], (hundred.labels[train] + 1) % 100)


def label_file(classes: NDArray[np.int64], **changes: Any) -> tuple[Path, NDArray[np.int64]]:
    """CIFAR-10N's layout for these images, and its worse labels."""
    generator = np.random.default_rng(1)
    worse = np.where(generator.random(len(classes)) < 0.4, generator.integers(0, 10, len(classes)), classes)
    content = {"clean_label": classes, "worse_label": worse, "aggre_label": classes, **changes}
    path = Path("human.pt")
    torch.save({key: value for key, value in content.items() if value is not None}, path)
    return path, worse


def test_human_labels_find_their_images_by_number(own: Dataset, cifar_like: tuple[Path, NDArray[np.int64]]) -> None:
    path, worse = label_file(cifar_like[1])
    labels, metrics = inject(own, kind="human", human_file=str(path), human_labels="worse_label", validation="noisy")
    for row, name in enumerate(own.names):
        number = int(Path(name).stem)
        expected = own.labels[row] if name.startswith("test/") else worse[number]
        assert labels.labels[row] == expected
    train = labels.rows(TRAIN)
    numbers = [int(Path(own.names[row]).stem) for row in train]
    assert metrics["realised_rate"] == pytest.approx(np.mean(worse[numbers] != cifar_like[1][numbers]), abs=1e-6)
    assert labels.true_labels is not None
    assert labels.intended_matrix is None
    clean, _ = inject(own, kind="human", human_file=str(path), human_labels="worse_label", validation="clean")
    assert wrong(own, clean, VALIDATION) == 0 < wrong(own, labels, VALIDATION)
    _, metrics = inject(own, kind="human", human_file=str(path), human_labels="aggre_label")
    assert metrics["realised_rate"] == 0


def test_human_labels_stay_aligned_under_a_limit(
    own: Dataset, cifar_like: tuple[Path, NDArray[np.int64]], project: Path
) -> None:
    path, worse = label_file(cifar_like[1])
    download.run(make_params(data__source="imagefolder", data__root=str(cifar_like[0]), data__limit=50))
    part = read_dataset()
    labels, _ = inject(part, kind="human", human_file=str(path), validation="noisy")
    for row in np.flatnonzero(part.split == TRAIN):
        assert labels.labels[row] == worse[int(Path(part.names[row]).stem)]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"clean_label": lambda classes: np.roll(classes, 1)}, "clean labels differ from the data set's"),
        ({"clean_label": lambda classes: classes[:60]}, "clean_label"),
        (
            {"clean_label": lambda classes: classes[:60], "worse_label": lambda classes: classes[:60]},
            "labels 60 images, the data set's numbers go to 119",
        ),
        ({"clean_label": lambda _: None}, "no 'clean_label'"),
        ({"worse_label": lambda _: None}, "no 'worse_label', only aggre_label, clean_label"),
        ({"worse_label": lambda classes: classes + 1}, "belongs to other data"),
        ({"worse_label": lambda classes: classes - 1}, "human.pt"),
        ({"worse_label": lambda classes: classes.astype(float)}, "expected a list of integers"),
    ],
    ids=["order", "lengths", "short", "no clean", "no worse", "ten", "negative", "float"],
)
def test_human_labels_of_other_data_are_refused(
    changes: dict[str, Any], expected: str, own: Dataset, cifar_like: tuple[Path, NDArray[np.int64]]
) -> None:
    label_file(cifar_like[1], **{key: change(cifar_like[1]) for key, change in changes.items()})
    refused(f"^noise.human_file: .*{re.escape(expected)}", kind="human", human_file="human.pt")


def test_a_missing_or_unreadable_human_file_is_named(own: Dataset, project: Path) -> None:
    refused("^noise.human_file: nosuch.pt: no such file", kind="human", human_file="nosuch.pt")
    (project / "text.pt").write_text("no pickle", encoding="utf-8")
    refused("^noise.human_file: text.pt: ", kind="human", human_file="text.pt")
    refused("^noise.human_file: data: ", kind="human", human_file="data")


def test_a_human_file_runs_nothing(own: Dataset, project: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (Path("marker"),)

    (project / "evil.pt").write_bytes(pickle.dumps(Evil()))
    refused("^noise.human_file: evil.pt: ", kind="human", human_file="evil.pt")
    assert not (project / "marker").exists()
