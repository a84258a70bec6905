from __future__ import annotations

import re

import numpy as np
import pytest

from mlnt.noise.matrices import (
    CIFAR10_ASYMMETRIC,
    CIFAR100_ASYMMETRIC,
    CIFAR100_SUPERCLASSES,
    Labels,
    Matrix,
    Sampling,
    check_matrix,
    mapping_matrix,
    named_matrix,
    pairflip_matrix,
    realised_matrix,
    replace_labels,
    stratified_split,
    symmetric_labels,
    symmetric_matrix,
    validation_split,
)

CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def balanced(num_classes: int, each: int) -> Labels:
    """Labels in no order that a class's position could be read from."""
    return generator(99).permutation(np.repeat(np.arange(num_classes), each))


# Matrices


def test_symmetric_matrix_by_hand() -> None:
    assert symmetric_matrix(4, 0.4) == pytest.approx(np.full((4, 4), 0.1) + 0.6 * np.eye(4))
    assert symmetric_matrix(4, 0.3, excludes_true=True) == pytest.approx(np.full((4, 4), 0.1) + 0.6 * np.eye(4))


def test_pairflip_matrix_by_hand() -> None:
    expected = [[0.7, 0.3, 0.0], [0.0, 0.7, 0.3], [0.3, 0.0, 0.7]]
    assert pairflip_matrix(3, 0.3) == pytest.approx(np.array(expected))


# The coarse label of each fine label, in the order of the label numbers, as CIFAR-100's files have them.
COARSE = (
    "4 1 14 8 0 6 7 7 18 3 3 14 9 18 7 11 3 9 7 11 6 11 5 10 7 6 13 15 3 15 0 11 1 10 12 14 16 9 11 5 "
    "5 19 8 8 15 13 14 17 18 10 16 4 17 4 2 0 17 4 18 17 10 3 2 12 12 16 12 1 9 19 2 10 0 1 16 12 9 13 15 13 "
    "16 19 2 4 6 19 5 5 8 19 18 1 2 15 6 0 17 8 14 13"
)


def test_asymmetric_cifar100_stays_in_the_superclass_and_goes_round() -> None:
    names = sorted(CIFAR100_ASYMMETRIC)
    coarse = np.array([int(number) for number in COARSE.split()])
    superclasses = list(CIFAR100_SUPERCLASSES)
    assert superclasses == sorted(superclasses)
    assert [
        superclasses.index(above) for name in names for above in superclasses if name in CIFAR100_SUPERCLASSES[above]
    ] == coarse.tolist()
    matrix = mapping_matrix(names, CIFAR100_ASYMMETRIC, 0.4)
    for label, row in enumerate(matrix):
        own = np.flatnonzero(coarse == coarse[label])
        following = own[(own.tolist().index(label) + 1) % 5]
        assert np.flatnonzero(row).tolist() == sorted([label, following])
        assert row[[label, following]].tolist() == [0.6, 0.4]


def test_asymmetric_cifar10_maps_the_classes_of_the_paper() -> None:
    matrix = mapping_matrix(CIFAR10, CIFAR10_ASYMMETRIC, 0.4)
    expected = np.eye(10)
    for source, image in [(9, 1), (2, 0), (4, 7), (3, 5), (5, 3)]:
        expected[source, source], expected[source, image] = 0.6, 0.4
    assert matrix == pytest.approx(expected)


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"a": "z"}, "'z' is not a class; the classes are a, b"),
        ({"z": "a"}, "'z' is not a class; the classes are a, b"),
        ({"a": "a"}, "'a' is mapped to itself"),
    ],
)
def test_wrong_mappings_are_named(mapping: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mapping_matrix(["a", "b"], mapping, 0.4)


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (np.eye(3), r"expected 2 rows of 2 numbers, found shape \(3, 3\)"),
        (np.full((2, 3), 1 / 3), r"expected 2 rows of 2 numbers, found shape \(2, 3\)"),
        (np.ones(2), r"found shape \(2,\)"),
        (np.array([[1.5, -0.5], [0.0, 1.0]]), "found a negative or non-finite number"),
        (np.array([[np.nan, 1.0], [0.0, 1.0]]), "found a negative or non-finite number"),
        (np.array([[np.inf, 0.0], [0.0, 1.0]]), "found a negative or non-finite number"),
        (np.array([[0.5, 0.5], [0.5, 0.4]]), "expected rows that sum to 1, found row 2 with sum 0.9"),
        (np.array([[0.5, 0.500002], [0.5, 0.5]]), "found row 1 with sum 1"),
    ],
)
def test_wrong_matrices_are_named(matrix: Matrix, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_matrix(matrix, 2)


def test_matrix_with_rounded_numbers_passes() -> None:
    check_matrix(np.array([[0.3333333, 0.3333333, 0.3333334]] * 3), 3)


# Labels from a matrix


def test_exact_counts_are_floors_of_each_class() -> None:
    matrix = np.array([[0.5, 0.3, 0.2], [0.0, 1.0, 0.0], [0.26, 0.0, 0.74]])
    true_labels = np.repeat([0, 1, 2], [10, 7, 13])
    labels = replace_labels(true_labels, matrix, "exact", generator())
    assert np.bincount(labels[true_labels == 0]).tolist() == [5, 3, 2]
    assert np.bincount(labels[true_labels == 1]).tolist() == [0, 7]
    assert np.bincount(labels[true_labels == 2]).tolist() == [3, 0, 10]  # ⌊3.38⌋


def test_exact_counts_do_not_lose_a_sample_to_rounding() -> None:
    assert 0.29 * 100 < 29  # 28.999999999999996
    labels = replace_labels(np.zeros(100, dtype=np.int64), pairflip_matrix(2, 0.29), "exact", generator())
    assert labels.sum() == 29


@pytest.mark.parametrize("rate", [0.1, 0.2, 0.3, 0.4, 0.5])
def test_exact_asymmetric_flips_that_share_of_every_mapped_class(rate: float) -> None:
    true_labels = balanced(10, 90)
    matrix = mapping_matrix(CIFAR10, CIFAR10_ASYMMETRIC, rate)
    labels = replace_labels(true_labels, matrix, "exact", generator())
    assert realised_matrix(true_labels, labels, 10) == pytest.approx(matrix)


def test_bernoulli_labels_follow_the_matrix() -> None:
    matrix = np.array([[0.5, 0.3, 0.2], [0.0, 1.0, 0.0], [0.25, 0.0, 0.75]])
    true_labels = balanced(3, 20_000)
    labels = replace_labels(true_labels, matrix, "bernoulli", generator())
    # Five standard errors.
    assert realised_matrix(true_labels, labels, 3) == pytest.approx(matrix, abs=5 * 0.5 / np.sqrt(20_000))


def test_bernoulli_counts_vary_and_exact_ones_do_not() -> None:
    matrix, true_labels = pairflip_matrix(2, 0.4), balanced(2, 500)

    def counts(sampling: Sampling) -> set[int]:
        draws = (replace_labels(true_labels, matrix, sampling, generator(seed)) for seed in range(5))
        return {int((labels != true_labels).sum()) for labels in draws}

    assert counts("exact") == {400}
    assert len(counts("bernoulli")) > 1


@pytest.mark.parametrize("sampling", ["exact", "bernoulli"])
def test_labels_are_drawn_over_the_whole_class_and_repeatably(sampling: Sampling) -> None:
    true_labels, matrix = np.zeros(1000, dtype=np.int64), pairflip_matrix(2, 0.5)
    one, two, other = (replace_labels(true_labels, matrix, sampling, generator(seed)) for seed in (1, 1, 2))
    assert np.array_equal(one, two)
    assert not np.array_equal(one, other)
    assert one.dtype == np.int64
    assert 200 < one[:500].sum() < 300
    assert not true_labels.any()


# Symmetric noise


@pytest.mark.parametrize("excludes_true", [False, True])
@pytest.mark.parametrize("sampling", ["exact", "bernoulli"])
@pytest.mark.parametrize("rate", [0.0, 0.2, 0.7, 1.0])
def test_realised_rate_of_symmetric_noise(rate: float, sampling: Sampling, excludes_true: bool) -> None:
    size, num_classes = 20_000, 4
    true_labels = balanced(num_classes, size // num_classes)
    labels = symmetric_labels(true_labels, num_classes, rate, excludes_true, sampling, generator())
    expected = rate if excludes_true else rate * (1 - 1 / num_classes)
    realised = (labels != true_labels).mean()
    assert realised == pytest.approx(expected, abs=5 * np.sqrt(expected * (1 - expected) / size) + 1e-12)
    assert realised_matrix(true_labels, labels, num_classes) == pytest.approx(
        symmetric_matrix(num_classes, rate, excludes_true), abs=0.04
    )


@pytest.mark.parametrize(("rate", "size", "count"), [(0.3, 10, 3), (0.35, 10, 3), (0.7, 1000, 700), (0.29, 100, 29)])
def test_exact_symmetric_noise_replaces_the_floor_of_the_whole_set(rate: float, size: int, count: int) -> None:
    # A class per sample makes it visible which labels were drawn.
    true_labels = np.arange(size)
    labels = symmetric_labels(true_labels, size, rate, True, "exact", generator())
    assert (labels != true_labels).sum() == count


def test_exact_symmetric_noise_with_true_labels_draws_from_all_classes() -> None:
    true_labels = np.zeros(8000, dtype=np.int64)
    labels = symmetric_labels(true_labels, 4, 1.0, False, "exact", generator())
    assert np.bincount(labels) == pytest.approx(np.full(4, 2000), abs=5 * np.sqrt(8000 * 3 / 16))


def test_symmetric_noise_is_repeatable_and_leaves_the_true_labels_alone() -> None:
    true_labels = balanced(5, 40)
    before = true_labels.copy()
    one, two, other = (symmetric_labels(true_labels, 5, 0.5, False, "exact", generator(seed)) for seed in (1, 1, 2))
    assert np.array_equal(one, two)
    assert not np.array_equal(one, other)
    assert np.array_equal(true_labels, before)


# What is counted


def test_realised_matrix_by_hand() -> None:
    realised = realised_matrix(np.array([0, 0, 0, 0, 2]), np.array([0, 1, 1, 2, 2]), 3)
    assert realised[[0, 2]].tolist() == [[0.25, 0.5, 0.25], [0.0, 0.0, 1.0]]
    assert np.isnan(realised[1]).all()


# Split


def test_split_takes_the_same_share_of_every_class() -> None:
    labels = np.repeat([0, 1, 2, 3, 4], [100, 50, 15, 3, 1])
    marked = stratified_split(labels, 0.1, generator())
    # round(1.5) is 2 here; three samples give one because a class should be represented; a single one stays.
    assert np.bincount(labels[marked], minlength=5).tolist() == [10, 5, 2, 1, 0]


@pytest.mark.parametrize("fraction", [0.2, 0.5, 0.6, 0.99])
def test_split_leaves_what_it_should_of_every_class(fraction: float) -> None:
    labels = generator(1).permutation(np.repeat([0, 1, 2, 3], [30, 3, 2, 1]))
    plain, left = (stratified_split(labels, fraction, generator(), leave) for leave in (0, 1))
    counts = np.bincount(labels[plain], minlength=4)
    assert np.bincount(labels[left], minlength=4).tolist() == np.minimum(counts, [29, 2, 1, 0]).tolist()
    for label in range(4):  # the same bits where a sample is left anyway
        of_class = labels == label
        if not plain[of_class].all():
            assert np.array_equal(left[of_class], plain[of_class])


def test_split_is_random_repeatable_and_spread_over_the_class() -> None:
    labels = balanced(2, 500)
    one, two, other = (stratified_split(labels, 0.2, generator(seed)) for seed in (1, 1, 2))
    assert np.array_equal(one, two)
    assert not np.array_equal(one, other)
    assert 60 < one[:500].sum() < 140


def test_no_fraction_marks_nothing() -> None:
    assert not stratified_split(balanced(3, 20), 0.0, generator()).any()


@pytest.mark.parametrize("fraction", [0.1, 0.2, 0.6])
def test_the_validation_split_is_the_stratified_one_where_classes_are_large_enough(fraction: float) -> None:
    labels = generator(1).permutation(np.repeat([0, 1, 2, 3], [30, 12, 6, 1]))
    expected = stratified_split(labels, fraction, generator(), leave=1)
    assert np.array_equal(validation_split(labels, fraction, generator()), expected)


@pytest.mark.parametrize(
    ("sizes", "fraction", "total"),
    [
        ([2] * 40, 0.1, 8),
        ([2] * 40, 0.01, 1),  # 0.8, and 1 at least
        ([2] * 3, 0.02, 1),
        ([2] * 40, 0.24, 19),
        ([100, 3, 3, 3], 0.1, 11),
        ([5] * 7, 0.05, 2),
        ([4] * 9 + [1] * 4, 0.1, 4),
        ([2, 1, 1, 1, 1, 1, 1, 1], 0.2, 1),  # 1.8, of which one class can give one
        ([1] * 5, 0.5, 0),
    ],
)
def test_small_classes_give_the_share_of_all_together(sizes: list[int], fraction: float, total: int) -> None:
    labels = generator(2).permutation(np.repeat(np.arange(len(sizes)), sizes))
    chosen = []
    for seed in range(3):
        marked = validation_split(labels, fraction, generator(seed))
        counts = np.bincount(labels[marked], minlength=len(sizes))
        assert counts.sum() == total
        assert (counts <= np.maximum(np.array(sizes) - 1, 0)).all()
        share = fraction * np.array(sizes)
        assert (np.abs(counts - share) < 1.01).all()
        assert np.array_equal(marked, validation_split(labels, fraction, generator(seed)))
        chosen.append(counts)
    if sizes == [2] * 40 and total == 8:
        assert not np.array_equal(chosen[0], chosen[1])


# A matrix in a table

NAMES = ["cat", "dog", "emu"]
SHARES = [[0.5, 0.3, 0.2], [0.1, 0.9, 0.0], [0.0, 0.25, 0.75]]


def test_a_matrix_without_names_has_the_order_of_the_classes() -> None:
    cells = [[f" {share}" for share in row] for row in SHARES]
    assert named_matrix(cells, NAMES).tolist() == SHARES


@pytest.mark.parametrize("corner", ["", "true \\ label", "0"])
@pytest.mark.parametrize("names", [NAMES, ["0", "2", "10"]])
def test_names_of_rows_and_columns_say_the_order(corner: str, names: list[str]) -> None:
    rows, columns = [2, 0, 1], [1, 2, 0]
    cells = [[corner, *(f" {names[j]} " for j in columns)]]
    cells += [[names[i], *(str(SHARES[i][j]) for j in columns)] for i in rows]
    assert named_matrix(cells, names).tolist() == SHARES
    same = [[names[j] for j in rows], *([str(SHARES[i][j]) for j in rows] for i in rows)]
    assert named_matrix(same, names).tolist() == SHARES


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (
            [["", "cat", "dog", "fox"], *([n, "1", "0", "0"] for n in NAMES)],
            "cat, dog, fox; that lacks emu",
        ),
        (
            [["", *NAMES], *([n, "1", "0", "0"] for n in ("cat", "dog", "dog"))],
            "cat, dog, dog; that lacks emu",
        ),
        ([["1", "0"], ["0", "1"]], "expected 3 rows of 3 numbers, found shape (2, 2)"),
        ([["1", "0", "0"], ["0", "1"], ["0", "0", "1"]], "number of columns changed from 3 to 2 at row 2"),
        ([["1", "0", "x"]] * 3, "could not convert string to float: 'x'"),
        ([["1", "0", "0.5"]] * 3, "found row 1 with sum 1.5"),
    ],
)
def test_tables_that_are_no_matrix(cells: list[list[str]], expected: str) -> None:
    with pytest.raises(ValueError, match=re.escape(expected)):
        named_matrix(cells, NAMES)
