from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mlnt.noise.matrices import (
    Labels,
    Matrix,
    check_matrix,
    mapping_matrix,
    pairflip_matrix,
    realised_matrix,
    replace_labels,
    stratified_split,
    symmetric_labels,
    symmetric_matrix,
    validation_split,
)

rates = st.floats(0, 1)
classes = st.integers(2, 12)
seeds = st.integers(0, 2**32)


def labels_of(num_classes: int) -> st.SearchStrategy[Labels]:
    return arrays(np.int64, st.integers(0, 60), elements=st.integers(0, num_classes - 1))


@st.composite
def matrices(draw: st.DrawFn) -> Matrix:
    num_classes = draw(st.integers(2, 5))
    weights = draw(arrays(np.float64, (num_classes, num_classes), elements=st.floats(0, 1)))
    weights += 1e-3 * np.eye(num_classes)
    matrix: Matrix = weights / weights.sum(axis=1, keepdims=True)
    return matrix


@given(classes, rates, st.booleans())
def test_rows_of_symmetric_matrices_sum_to_1(num_classes: int, rate: float, excludes_true: bool) -> None:
    matrix = symmetric_matrix(num_classes, rate, excludes_true)
    check_matrix(matrix, num_classes)
    assert np.allclose(matrix.sum(axis=1), 1, rtol=0, atol=1e-12)
    assert np.allclose(1 - matrix.diagonal(), rate if excludes_true else rate * (1 - 1 / num_classes))


@given(classes, rates)
def test_rows_of_pairflip_matrices_sum_to_1(num_classes: int, rate: float) -> None:
    matrix = pairflip_matrix(num_classes, rate)
    check_matrix(matrix, num_classes)
    assert np.allclose(1 - matrix.diagonal(), rate)
    assert all(np.isclose(matrix[c, (c + 1) % num_classes], rate) for c in range(num_classes))


@given(st.data(), rates)
def test_rows_of_mapping_matrices_sum_to_1(data: st.DataObject, rate: float) -> None:
    names = list("abcdef")
    mapping = data.draw(st.dictionaries(st.sampled_from(names), st.sampled_from(names)))
    mapping = {source: image for source, image in mapping.items() if source != image}
    matrix = mapping_matrix(names, mapping, rate)
    check_matrix(matrix, 6)
    for i, name in enumerate(names):
        assert np.isclose(matrix[i, i], 1 - rate if name in mapping else 1)


@given(matrices(), st.data(), seeds)
def test_exact_counts_are_the_floors_of_t_times_n(matrix: Matrix, data: st.DataObject, seed: int) -> None:
    num_classes = len(matrix)
    true_labels = data.draw(labels_of(num_classes))
    labels = replace_labels(true_labels, matrix, "exact", np.random.default_rng(seed))
    for i in range(num_classes):
        size = (true_labels == i).sum()
        counts = np.bincount(labels[true_labels == i], minlength=num_classes)
        for j in set(range(num_classes)) - {i}:
            # A product that is whole up to rounding counts as whole.
            assert counts[j] in {np.floor(matrix[i, j] * size), np.floor(matrix[i, j] * size + 1e-8)}
        assert counts.sum() == size


@given(matrices(), st.data(), seeds)
def test_bernoulli_never_draws_what_has_no_probability(matrix: Matrix, data: st.DataObject, seed: int) -> None:
    true_labels = data.draw(labels_of(len(matrix)))
    labels = replace_labels(true_labels, matrix, "bernoulli", np.random.default_rng(seed))
    assert (matrix[true_labels, labels] > 0).all()


@given(classes.flatmap(lambda c: st.tuples(st.just(c), labels_of(c))), rates, seeds)
def test_exact_symmetric_noise_changes_the_floor_of_r_times_n(case: tuple[int, Labels], rate: float, seed: int) -> None:
    num_classes, true_labels = case
    whole = {np.floor(rate * len(true_labels)), np.floor(rate * len(true_labels) + 1e-8)}
    for excludes_true in (True, False):
        generator = np.random.default_rng(seed)
        labels = symmetric_labels(true_labels, num_classes, rate, excludes_true, "exact", generator)
        changed = (labels != true_labels).sum()
        assert changed in whole if excludes_true else changed <= max(whole)
        assert ((labels >= 0) & (labels < num_classes)).all()


@given(classes.flatmap(lambda c: st.tuples(st.just(c), labels_of(c), labels_of(c))))
def test_realised_matrix_counts_every_sample_once(case: tuple[int, Labels, Labels]) -> None:
    num_classes, one, two = case
    size = min(len(one), len(two))
    true_labels, labels = one[:size], two[:size]
    realised = realised_matrix(true_labels, labels, num_classes)
    sizes = np.bincount(true_labels, minlength=num_classes)
    assert np.isnan(realised[sizes == 0]).all()
    assert np.allclose(realised[sizes > 0].sum(axis=1), 1)
    for i, j in zip(true_labels, labels, strict=True):
        assert np.isclose(realised[i, j] * sizes[i], ((true_labels == i) & (labels == j)).sum())


@given(labels_of(4), st.floats(0.01, 0.9), seeds)
def test_split_marks_the_rounded_share_of_every_class(labels: Labels, fraction: float, seed: int) -> None:
    marked = stratified_split(labels, fraction, np.random.default_rng(seed))
    for label in range(4):
        size, count = (labels == label).sum(), marked[labels == label].sum()
        assert count == max(round(fraction * size), 1 if size > 1 else 0)


@given(labels_of(12), st.floats(0.01, 0.99), seeds)
def test_a_validation_split_leaves_each_class_a_sample_and_takes_the_share(
    labels: Labels, fraction: float, seed: int
) -> None:
    marked = validation_split(labels, fraction, np.random.default_rng(seed))
    sizes = np.bincount(labels, minlength=12)
    taken = np.bincount(labels[marked], minlength=12)
    present = sizes > 0
    assert (taken[present] < sizes[present]).all()
    room = int((sizes[present] - 1).sum())
    assert taken.sum() >= min(1, room)
    if any(round(fraction * size) == 0 for size in sizes[sizes > 1]):
        assert taken.sum() == min(max(round(fraction * len(labels)), 1), room)
    else:
        expected = stratified_split(labels, fraction, np.random.default_rng(seed), leave=1)
        assert np.array_equal(marked, expected)
