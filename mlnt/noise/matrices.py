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


CIFAR100_SUPERCLASSES: dict[str, tuple[str, ...]] = {
    "aquatic_mammals": ("beaver", "dolphin", "otter", "seal", "whale"),
    "fish": ("aquarium_fish", "flatfish", "ray", "shark", "trout"),
    "flowers": ("orchid", "poppy", "rose", "sunflower", "tulip"),
    "food_containers": ("bottle", "bowl", "can", "cup", "plate"),
    "fruit_and_vegetables": ("apple", "mushroom", "orange", "pear", "sweet_pepper"),
    "household_electrical_devices": ("clock", "keyboard", "lamp", "telephone", "television"),
    "household_furniture": ("bed", "chair", "couch", "table", "wardrobe"),
    "insects": ("bee", "beetle", "butterfly", "caterpillar", "cockroach"),
    "large_carnivores": ("bear", "leopard", "lion", "tiger", "wolf"),
    "large_man-made_outdoor_things": ("bridge", "castle", "house", "road", "skyscraper"),
    "large_natural_outdoor_scenes": ("cloud", "forest", "mountain", "plain", "sea"),
    "large_omnivores_and_herbivores": ("camel", "cattle", "chimpanzee", "elephant", "kangaroo"),
    "medium_mammals": ("fox", "porcupine", "possum", "raccoon", "skunk"),
    "non-insect_invertebrates": ("crab", "lobster", "snail", "spider", "worm"),
    "people": ("baby", "boy", "girl", "man", "woman"),
    "reptiles": ("crocodile", "dinosaur", "lizard", "snake", "turtle"),
    "small_mammals": ("hamster", "mouse", "rabbit", "shrew", "squirrel"),
    "trees": ("maple_tree", "oak_tree", "palm_tree", "pine_tree", "willow_tree"),
    "vehicles_1": ("bicycle", "bus", "motorcycle", "pickup_truck", "train"),
    "vehicles_2": ("lawn_mower", "rocket", "streetcar", "tank", "tractor"),
}
"""CIFAR-100's coarse labels and their five classes, both in the order of the label numbers."""

CIFAR100_ASYMMETRIC: dict[str, str] = {
    name: five[(i + 1) % 5] for five in CIFAR100_SUPERCLASSES.values() for i, name in enumerate(five)
}
"""The next class of the same superclass, circularly: what Patrini et al. 2017 take on CIFAR-100."""

USUAL_ASYMMETRIC = (CIFAR10_ASYMMETRIC, CIFAR100_ASYMMETRIC, DIGITS_ASYMMETRIC)


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


def named_matrix(cells: Sequence[Sequence[str]], class_names: Sequence[str]) -> Matrix:
    """The matrix that a table of texts shows, in the order of `class_names`.

    With a row and a column more than classes, these hold names, and the table may have any order; with a row more, it
    holds the names of the columns, and the rows have their order.

    Raises:
        ValueError: another shape, other names, a text that is no number, or what `check_matrix` finds.
    """
    count, rows = len(class_names), [[cell.strip() for cell in row] for row in cells]
    for number, row in enumerate(rows, start=1):
        if len(row) != len(rows[0]):
            raise ValueError(f"the number of columns changed from {len(rows[0])} to {len(row)} at row {number}")
    shape = (len(rows), len(rows[0]) if rows else 0)
    of_columns = of_rows = list(class_names)
    if shape == (count + 1, count + 1):
        of_columns, of_rows = rows[0][1:], [row[0] for row in rows[1:]]
        rows = [row[1:] for row in rows[1:]]
    elif shape == (count + 1, count):
        of_columns = of_rows = rows[0]
        rows = rows[1:]
    elif shape != (count, count):
        raise ValueError(f"expected {count} rows of {count} numbers, found shape {shape}")
    matrix = np.array([[float(cell) for cell in row] for row in rows], np.float64)
    matrix = matrix[_positions(class_names, of_rows, "rows")][:, _positions(class_names, of_columns, "columns")]
    check_matrix(matrix, count)
    return matrix


def _positions(class_names: Sequence[str], found: Sequence[str], what: str) -> list[int]:
    """Where each class is among the names found."""
    position = {name: i for i, name in enumerate(found)}
    if lacking := [name for name in class_names if name not in position]:
        raise ValueError(f"its {what} are called {', '.join(found)}; that lacks {', '.join(lacking)}")
    return [position[name] for name in class_names]


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
    counts: dict[int, int] = {}
    for label, size in _sizes(labels).items():
        count = round(fraction * size)
        if fraction > 0 and count == 0 and size > 1:
            count = 1
        counts[label] = min(count, max(size - leave, 0))
    return _marked(labels, counts, generator)


def validation_split(labels: Labels, fraction: float, generator: np.random.Generator) -> NDArray[np.bool_]:
    """Mark a share of each class, and leave a sample of each.

    As `stratified_split`, unless classes are so small that their share rounds to nothing: then round(fraction · n)
    samples of all, one at least, spread over the classes by the largest remainder, and by chance where these are equal.
    """
    sizes = _sizes(labels)
    if all(round(fraction * size) >= 1 for size in sizes.values() if size > 1):
        return stratified_split(labels, fraction, generator, leave=1)
    order = generator.permutation(list(sizes)).tolist()
    shares = {label: fraction * sizes[label] for label in order}
    counts = {label: min(int(shares[label]), sizes[label] - 1) for label in order}
    total = min(max(round(fraction * len(labels)), 1), len(labels) - len(sizes))
    while (left := total - sum(counts.values())) > 0:
        open_ones = [label for label in order if counts[label] < sizes[label] - 1]
        for label in sorted(open_ones, key=lambda label: counts[label] - shares[label])[:left]:
            counts[label] += 1
    return _marked(labels, counts, generator)


def _sizes(labels: Labels) -> dict[int, int]:
    """Samples of each class that has some, by number."""
    return {int(label): int(size) for label, size in zip(*np.unique(labels, return_counts=True), strict=True)}


def _marked(labels: Labels, counts: Mapping[int, int], generator: np.random.Generator) -> NDArray[np.bool_]:
    """So many of each class, by chance."""
    marked = np.zeros(len(labels), dtype=bool)
    for label, count in sorted(counts.items()):
        members = generator.permutation(np.flatnonzero(labels == label))
        marked[members[:count]] = True
    return marked
