"""Label noise that depends on the image: some samples are easier to mislabel than others, and as other classes.

Xia et al., "Part-dependent Label Noise" (NeurIPS 2020), algorithm 2:

    qᵢ ~ N(r, 0.1²), truncated to [0, 1]                     the flip rate of sample i
    W_c ~ N(0, 1), [S, C]                                    a random projection for each true class c
    P(label = j | xᵢ) = qᵢ · softmax over j ≠ yᵢ of (xᵢᵀ W_yᵢ)ⱼ,   P(label = yᵢ | xᵢ) = 1 − qᵢ
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from mlnt.noise.matrices import Labels, Matrix

Projection = NDArray[np.float32]
SPREAD = 0.1
"""Standard deviation of the flip rates before truncation, as in the source."""
CHUNK_NUMBERS = 2**22
"""How many pixels are used at a time, so that memory does not grow with n, nor with the size of an image."""
MATRIX_DIGITS = 9
"""Decimals of the matrix: those behind them depend on the processor and on the number of its threads."""


def draw_flip_rates(size: int, noise_rate: float, generator: np.random.Generator) -> NDArray[np.float64]:
    """Draw q [n]. Truncation raises the mean of a small r, 0.05 to 0.10 and 0.1 to 0.13; r = 0 is no noise."""
    if noise_rate == 0:
        return np.zeros(size)
    from scipy.stats import truncnorm  # here: half a second that other kinds of noise need not wait

    lowest, highest = (0 - noise_rate) / SPREAD, (1 - noise_rate) / SPREAD
    drawn = truncnorm.rvs(lowest, highest, noise_rate, SPREAD, size=size, random_state=generator)
    return np.asarray(drawn, dtype=np.float64)


def draw_projection(image_size: int, num_classes: int, generator: np.random.Generator) -> Projection:
    """Draw W_c of one class, [S, C] for images of S numbers."""
    return generator.standard_normal((image_size, num_classes), dtype=np.float32)


def probabilities(
    images: NDArray[np.uint8], true: int, flip_rates: NDArray[np.float64], projection: Projection
) -> Matrix:
    """P(label = j | xᵢ) as [n, C], for images of one true class, of any shape [n, …], as numbers from 0 to 1."""
    # In double precision a sum's last bits, which depend on the processor, decide no label.
    flat, scores = images.reshape(len(images), -1), np.zeros((len(images), projection.shape[1]))
    step = max(1, CHUNK_NUMBERS // max(scores.shape))
    for start in range(0, len(projection), step):
        part = slice(start, start + step)
        scores += (flat[:, part] / 255) @ projection[part].astype(np.float64)
    scores[:, true] = -np.inf
    shares = np.exp(scores - scores.max(axis=1, keepdims=True))
    result: Matrix = flip_rates[:, None] * shares / shares.sum(axis=1, keepdims=True)
    result[:, true] = 1 - flip_rates
    return result


def instance_labels(
    images: Callable[[NDArray[np.int64]], NDArray[np.uint8]],
    true_labels: Labels,
    noise_rate: float,
    num_classes: int,
    projection: Callable[[int], Projection],
    generator: np.random.Generator,
) -> tuple[Labels, Matrix]:
    """Draw each label from its own probabilities.

    Args:
        images: positions among the n samples ↦ their images [., …]; each is asked for once.
        projection: W_c of a class: the same for all parts of a data set.
        generator: draws the flip rates and the labels.

    Returns:
        The labels [n], and the transition matrix [C, C] that they come from: row i is the mean of the
        probabilities over the samples of class i, to nine decimals, and keeps its label where there is none.
    """
    flip_rates = draw_flip_rates(len(true_labels), noise_rate, generator)
    uniform = generator.random(len(true_labels))
    labels, matrix = true_labels.copy(), np.eye(num_classes)
    for true in np.unique(true_labels):
        members = np.flatnonzero(true_labels == true)
        weights = projection(int(true))
        total = np.zeros(num_classes)
        chunk = max(1, CHUNK_NUMBERS // len(weights))
        for start in range(0, len(members), chunk):
            rows = members[start : start + chunk]
            probs = probabilities(images(rows), int(true), flip_rates[rows], weights)
            total += probs.sum(axis=0)
            drawn = (probs.cumsum(axis=1) <= uniform[rows, None]).sum(axis=1)
            labels[rows] = np.minimum(drawn, num_classes - 1)  # sums of rounded numbers may end just below 1
        matrix[true] = (total / len(members)).round(MATRIX_DIGITS)
    return labels, matrix
