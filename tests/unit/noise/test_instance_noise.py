from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from mlnt.noise import by_image
from mlnt.noise.by_image import Projection, draw_flip_rates, draw_projection, instance_labels, probabilities
from mlnt.noise.matrices import Labels, Matrix

CLASSES, SHAPE = 4, (1, 3, 3)


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def projection(true: int) -> Projection:
    return draw_projection(math.prod(SHAPE), CLASSES, generator(true))


def some_images(size: int) -> NDArray[np.uint8]:
    return generator(2).integers(0, 256, (size, *SHAPE), dtype=np.uint8)


def draw(images: NDArray[np.uint8], true: Labels, noise_rate: float = 0.4) -> tuple[Labels, Matrix]:
    return instance_labels(images.__getitem__, true, noise_rate, CLASSES, projection, generator())


@pytest.mark.parametrize("true", range(CLASSES))
def test_probabilities_by_the_formula_one_by_one(true: int) -> None:
    weights, images, rates = projection(true), some_images(4), np.array([0.1, 0.9, 0.0, 1.0])
    found = probabilities(images, true, rates, weights)
    others = [j for j in range(CLASSES) if j != true]
    for i, rate in enumerate(rates):
        x = images[i].ravel().astype(float) / 255
        score = {j: math.exp(sum(x[s] * float(weights[s, j]) for s in range(x.size))) for j in others}
        expected = [1 - rate if j == true else rate * score[j] / sum(score.values()) for j in range(CLASSES)]
        assert found[i] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("noise_rate", "mean"), [(0.05, 0.1009), (0.1, 0.1288), (0.4, 0.4), (0.9, 0.8712)])
def test_flip_rates_are_a_truncated_normal(noise_rate: float, mean: float) -> None:
    """Means by r + σ (φ(a) − φ(b)) / (Φ(b) − Φ(a)), a and b the ends in deviations from r."""
    rates = draw_flip_rates(20_000, noise_rate, generator())
    assert 0 <= rates.min() <= rates.max() <= 1
    assert rates.mean() == pytest.approx(mean, abs=5 * 0.1 / 20_000**0.5)


def test_no_noise_at_rate_0() -> None:
    true = np.arange(50) % CLASSES
    labels, matrix = draw(some_images(50), true, 0.0)
    assert labels.tolist() == true.tolist()
    assert matrix.tolist() == np.eye(CLASSES).tolist()


def test_labels_are_drawn_from_their_probabilities(monkeypatch: pytest.MonkeyPatch) -> None:
    """20,000 times the same image: counts within five standard errors."""
    monkeypatch.setattr(by_image, "SPREAD", 1e-9)
    size, true = 20_000, 2
    image = some_images(1)
    labels, matrix = draw(np.repeat(image, size, axis=0), np.full(size, true))
    expected = probabilities(image, true, np.array([0.4]), projection(true))[0]
    shares = np.bincount(labels, minlength=CLASSES) / size
    assert (np.abs(shares - expected) <= 5 * np.sqrt(expected * (1 - expected) / size)).all()
    assert matrix[true] == pytest.approx(expected, abs=1e-6)
    assert matrix[[0, 1, 3]].tolist() == np.eye(CLASSES)[[0, 1, 3]].tolist()


def test_nothing_depends_on_how_many_are_looked_at_together(monkeypatch: pytest.MonkeyPatch) -> None:
    images, true = some_images(100), np.arange(100) % CLASSES
    labels, matrix = draw(images, true)
    monkeypatch.setattr(by_image, "CHUNK_NUMBERS", 7 * math.prod(SHAPE))
    again, same = draw(images, true)
    assert np.array_equal(labels, again)
    assert same.tolist() == matrix.tolist()
    assert matrix.sum(axis=1) == pytest.approx(np.ones(CLASSES))


@pytest.mark.parametrize("chunk", [by_image.CHUNK_NUMBERS, 2 * 3072], ids=["whole", "in parts"])
def test_nothing_depends_on_the_order_in_which_a_processor_sums(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(by_image, "CHUNK_NUMBERS", chunk)
    images = generator(2).integers(0, 256, (200, 3072), dtype=np.uint8)
    true, order = np.arange(200) % CLASSES, generator(3).permutation(3072)
    weights = [draw_projection(3072, CLASSES, generator(c)) for c in range(CLASSES)]
    found = instance_labels(images.__getitem__, true, 0.4, CLASSES, weights.__getitem__, generator())
    again = instance_labels(
        lambda rows: images[rows][:, order], true, 0.4, CLASSES, lambda c: weights[c][order], generator()
    )
    assert all(one.tobytes() == other.tobytes() for one, other in zip(found, again, strict=True))
