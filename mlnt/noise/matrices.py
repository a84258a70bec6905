"""Label noise: transition matrices and the labels drawn from them.

`transition_matrix[i, j] = P(label = j | true label = i)`; its rows sum to 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.int64]
Matrix = NDArray[np.float64]
Sampling = Literal["exact", "bernoulli"]

CIFAR10_ASYMMETRIC: dict[str, str] = {
    "truck": "automobile",
    "bird": "airplane",
    "deer": "horse",
    "cat": "dog",
    "dog": "cat",
}
"""The similar classes of Patrini et al. 2017, as in the paper's section 4.1."""

DIGITS_ASYMMETRIC: dict[str, str] = {"2": "7", "3": "8", "5": "6", "6": "5", "7": "1"}
"""Digits that look alike: what Patrini et al. 2017 take on MNIST."""


def symmetric_matrix(num_classes: int, noise_rate: float, excludes_true: bool = False) -> Matrix:
    """A random label replaces the true one with probability r.

    By default it may be the true one again, as in the paper: T = (1 − r) I + r/C, realised rate r(1 − 1/C).
    With `excludes_true`: r/(C − 1) off the diagonal, realised rate r.
    """
    if excludes_true:
        matrix = np.full((num_classes, num_classes), noise_rate / (num_classes - 1))
        np.fill_diagonal(matrix, 1.0 - noise_rate)
        return matrix
    return (1.0 - noise_rate) * np.eye(num_classes) + noise_rate / num_classes


def mapping_matrix(class_names: Sequence[str], mapping: Mapping[str, str], noise_rate: float) -> Matrix:
    """Asymmetric noise: each class of `mapping` becomes its image with probability r, the others keep theirs.

    Raises:
        ValueError: a name that is no class, or a class mapped to itself.
    """
    position = {name: i for i, name in enumerate(class_names)}
    matrix = np.eye(len(class_names))
    for source, image in mapping.items():
        for name in (source, image):
            if name not in position:
                raise ValueError(f"{name!r} is not a class; the classes are {', '.join(class_names)}")
        if source == image:
            raise ValueError(f"{source!r} is mapped to itself")
        matrix[position[source], position[source]] = 1.0 - noise_rate
        matrix[position[source], position[image]] = noise_rate
    return matrix


def pairflip_matrix(num_classes: int, noise_rate: float) -> Matrix:
    """Every class c becomes c + 1 (the last one 0) with probability r."""
    identity = np.eye(num_classes)
    return (1.0 - noise_rate) * identity + noise_rate * np.roll(identity, 1, axis=1)


def check_matrix(matrix: Matrix, num_classes: int) -> None:
    """Check that `matrix` is a transition matrix.

    Raises:
        ValueError: it is not [C, C], has a negative or non-finite number, or rows that do not sum to 1 (within 1e-6).
    """
    if matrix.shape != (num_classes, num_classes):
        raise ValueError(f"expected {num_classes} rows of {num_classes} numbers, found shape {matrix.shape}")
    if not np.isfinite(matrix).all() or (matrix < 0).any():
        raise ValueError("expected probabilities, found a negative or non-finite number")
    sums = matrix.sum(axis=1)
    if (wrong := np.abs(sums - 1.0) > 1e-6).any():
        row = int(wrong.argmax())
        raise ValueError(f"expected rows that sum to 1, found row {row + 1} with sum {sums[row]:.6g}")


def replace_labels(
    true_labels: Labels, transition_matrix: Matrix, sampling: Sampling, generator: np.random.Generator
) -> Labels:
    """Draw noisy labels from any transition matrix.

    `bernoulli`: every label is drawn from its row. `exact`: of the n samples of class i, exactly ⌊T[i, j]·n⌋
    become class j for each j ≠ i, chosen without replacement; the rest keep their label.
    """
    labels = true_labels.copy()
    num_classes = len(transition_matrix)
    for true in range(num_classes):
        members = np.flatnonzero(true_labels == true)
        row = transition_matrix[true]
        if sampling == "bernoulli":
            labels[members] = generator.choice(num_classes, size=len(members), p=row / row.sum())
            continue
        shuffled = generator.permutation(members)
        # A guard against 0.29 * 100 = 28.999…: the floor is taken of the product rounded to 9 digits.
        counts = [0 if j == true else int(np.floor(round(row[j] * len(members), 9))) for j in range(num_classes)]
        at = 0
        for j, count in enumerate(counts):
            labels[shuffled[at : at + count]] = j
            at += count
    return labels


def symmetric_labels(
    true_labels: Labels,
    num_classes: int,
    noise_rate: float,
    excludes_true: bool,
    sampling: Sampling,
    generator: np.random.Generator,
) -> Labels:
    """Draw labels with symmetric noise, from true labels [N].

    `exact`: exactly ⌊r·n⌋ samples of the whole set, chosen without replacement, get a random label; without
    `excludes_true` the random label may be the true one. `bernoulli`: each sample independently.
    """
    size = len(true_labels)
    if sampling == "exact":
        chosen = generator.permutation(size)[: int(np.floor(round(noise_rate * size, 9)))]
    else:
        chosen = np.flatnonzero(generator.random(size) < noise_rate)
    labels = true_labels.copy()
    if excludes_true:
        labels[chosen] = (true_labels[chosen] + generator.integers(1, num_classes, len(chosen))) % num_classes
    else:
        labels[chosen] = generator.integers(0, num_classes, len(chosen))
    return labels


def realised_matrix(true_labels: Labels, labels: Labels, num_classes: int) -> Matrix:
    """The noise matrix [C, C] counted from the labels: row i sums to 1, or is NaN where class i has no sample."""
    counts = np.bincount(true_labels * num_classes + labels, minlength=num_classes**2)
    table = counts.reshape(num_classes, num_classes).astype(np.float64)
    totals = table.sum(axis=1, keepdims=True)
    shares: Matrix = np.divide(table, totals, out=np.full_like(table, np.nan), where=totals > 0)
    return shares


def stratified_split(
    labels: Labels, fraction: float, generator: np.random.Generator, leave: int = 0
) -> NDArray[np.bool_]:
    """Mark round(fraction · n) random samples of each class of n, as a boolean [N]; at least one where n > 1.

    `leave` samples of each class always stay unmarked, or all of them where there are fewer.
    """
    marked = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        count = round(fraction * len(members))
        if fraction > 0 and count == 0 and len(members) > 1:
            count = 1
        count = min(count, max(len(members) - leave, 0))
        marked[members[:count]] = True
    return marked
