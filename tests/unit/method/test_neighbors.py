from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

from mlnt.method.neighbors import draw, nearest_neighbors, synthetic_labels


def drawn_labels(
    labels: torch.Tensor, neighbors: torch.Tensor, num_synthetic: int, num_replaced: int, generator: torch.Generator
) -> torch.Tensor:
    draws = draw(num_synthetic, *neighbors.shape, num_replaced, generator)
    return synthetic_labels(labels, neighbors, draws)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_neighbors_on_a_line_by_hand() -> None:
    features = torch.tensor([[0.0], [1.0], [3.0], [7.0], [100.0]])
    assert nearest_neighbors(features, 2).tolist() == [[1, 2], [0, 2], [1, 0], [2, 1], [3, 2]]


@pytest.mark.parametrize("batch_size", [12, 64])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_neighbors_equal_those_of_sorted_distances(batch_size: int, dtype: torch.dtype) -> None:
    features = torch.randn(batch_size, 8, generator=generator()).to(dtype)
    distance = np.linalg.norm(features.double().numpy()[:, None] - features.double().numpy()[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    expected = distance.argsort(axis=1)[:, :5]
    assert np.array_equal(nearest_neighbors(features, 5).numpy(), expected)


@pytest.mark.parametrize("batch_size", [20, 40])
def test_neighbors_are_found_among_features_far_from_the_origin(batch_size: int) -> None:
    # ‖x‖² + ‖y‖² − 2xy would lose these distances in float32.
    points = torch.randperm(batch_size, generator=generator()).float().unsqueeze(1)
    order = points.squeeze(1).argsort()
    nearest = nearest_neighbors(points + 10_000.0, 2)
    for rank in range(1, batch_size - 1):
        expected = {int(order[rank - 1]), int(order[rank + 1])}
        assert set(nearest[order[rank]].tolist()) == expected


def test_distance_is_euclidean_not_cosine() -> None:
    features = torch.tensor([[1.0, 0.0], [100.0, 0.0], [1.0, 1.0]])
    assert nearest_neighbors(features, 1)[0].tolist() == [2]


@pytest.mark.parametrize("batch_size", [11, 30])
def test_duplicates_are_neighbors_of_each_other_never_of_themselves(batch_size: int) -> None:
    nearest = nearest_neighbors(torch.full((batch_size, 3), 0.1), 10)
    assert not (nearest == torch.arange(batch_size).unsqueeze(1)).any()
    assert all(len(set(row)) == 10 for row in nearest.tolist())


@pytest.mark.parametrize(("batch_size", "num_neighbors"), [(10, 10), (5, 10), (5, 0)])
def test_too_small_a_batch_is_named_with_both_numbers(batch_size: int, num_neighbors: int) -> None:
    message = f"need more than num_neighbors={num_neighbors} samples in a batch, got {batch_size}"
    with pytest.raises(ValueError, match=message):
        nearest_neighbors(torch.zeros(batch_size, 2), num_neighbors)


def test_smallest_possible_batch_has_all_others_as_neighbors() -> None:
    nearest = nearest_neighbors(torch.randn(11, 2, generator=generator()), 10)
    assert [sorted(row) for row in nearest.tolist()] == [[j for j in range(11) if j != i] for i in range(11)]


def test_features_are_left_alone() -> None:
    features = torch.randn(12, 4, generator=generator())
    before = features.clone()
    nearest_neighbors(features, 3)
    assert torch.equal(features, before)


def ring(batch_size: int, num_neighbors: int) -> Tensor:
    """Neighbours of i: i + 1, …, i + K."""
    return (torch.arange(batch_size).unsqueeze(1) + torch.arange(1, num_neighbors + 1)) % batch_size


@pytest.mark.parametrize("num_replaced", [0, 1, 7, 20])
def test_exactly_the_asked_number_is_replaced(num_replaced: int) -> None:
    # Labels are the positions, so that every replaced label differs from the old one.
    labels = torch.arange(20)
    drawn = drawn_labels(labels, ring(20, 10), 50, num_replaced, generator())
    assert drawn.dtype == torch.int64
    assert drawn.shape == (50, 20)
    assert (drawn != labels).sum(dim=1).tolist() == [num_replaced] * 50


def test_mini_batches_differ() -> None:
    drawn = drawn_labels(torch.arange(20), ring(20, 10), 50, 8, generator())
    assert len({tuple(row) for row in drawn.tolist()}) == 50


def test_drawn_label_may_equal_the_old_one() -> None:
    labels = torch.zeros(12, dtype=torch.int64)
    assert torch.equal(drawn_labels(labels, ring(12, 3), 4, 6, generator()), labels.expand(4, 12))


def test_draws_are_repeatable_and_leave_the_labels_and_the_global_generator_alone() -> None:
    labels, before = torch.arange(20), torch.get_rng_state()
    one, two, other = (drawn_labels(labels, ring(20, 5), 6, 8, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    assert torch.equal(labels, torch.arange(20))
    assert torch.equal(torch.get_rng_state(), before)


def test_samples_and_neighbors_are_drawn_uniformly() -> None:
    size, num_neighbors, num_synthetic, num_replaced = 12, 4, 6000, 5
    labels = torch.arange(size)
    drawn = drawn_labels(labels, ring(size, num_neighbors), num_synthetic, num_replaced, generator())
    replaced = drawn != labels
    expected = num_synthetic * num_replaced / size
    assert replaced.sum(dim=0).double().numpy() == pytest.approx(np.full(size, expected), rel=0.1)
    offset = ((drawn - labels) % size)[replaced].numpy()
    counts = np.bincount(offset, minlength=num_neighbors + 1)
    assert counts[0] == 0
    assert counts.sum() == num_synthetic * num_replaced == counts[1:].sum()
    assert chisquare(counts[1 : num_neighbors + 1]).pvalue > 1e-3
    # Which samples are chosen does not depend on each other beyond their number.
    pairs = (replaced[:, 0] & replaced[:, 1]).sum().item()
    assert pairs == pytest.approx(num_synthetic * num_replaced * (num_replaced - 1) / (size * (size - 1)), rel=0.15)
