from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mlnt.method.neighbors import draw as draw_for
from mlnt.method.neighbors import nearest_neighbors, synthetic_labels


def drawn_labels(
    labels: torch.Tensor, neighbors: torch.Tensor, num_synthetic: int, num_replaced: int, generator: torch.Generator
) -> torch.Tensor:
    draws = draw_for(num_synthetic, *neighbors.shape, num_replaced, generator)
    return synthetic_labels(labels, neighbors, draws)


@st.composite
def batches(draw: st.DrawFn) -> tuple[torch.Tensor, int]:
    """Features on a coarse grid, so that duplicates and ties abound, and a K that fits."""
    size = draw(st.integers(2, 40))
    grid = draw(arrays(np.int64, (size, draw(st.integers(1, 3))), elements=st.integers(-2, 2)))
    return torch.from_numpy(grid).float() * draw(st.sampled_from([0.1, 1.0, 37.0])), draw(st.integers(1, size - 1))


@given(batches())
def test_neighbors_are_k_different_others_and_nobody_else_is_nearer(batch: tuple[torch.Tensor, int]) -> None:
    features, num_neighbors = batch
    exact = features.double().numpy()
    distance = np.sqrt(((exact[:, None] - exact[None]) ** 2).sum(axis=2))
    for i, row in enumerate(nearest_neighbors(features, num_neighbors).tolist()):
        assert len(set(row)) == num_neighbors
        assert i not in row
        others = set(range(len(features))) - {i, *row}
        farthest = max(distance[i, j] for j in row)
        assert all(distance[i, j] >= farthest * (1 - 1e-5) - 1e-6 for j in others)


@given(batches(), st.data())
def test_synthetic_labels_come_from_neighbors_and_few_enough_change(
    batch: tuple[torch.Tensor, int], data: st.DataObject
) -> None:
    features, num_neighbors = batch
    size = len(features)
    labels = torch.tensor(data.draw(st.lists(st.integers(0, 5), min_size=size, max_size=size)))
    replace_fraction = data.draw(st.floats(0, 1))
    num_replaced = int(replace_fraction * size)
    num_synthetic = data.draw(st.integers(1, 4))
    neighbors = nearest_neighbors(features, num_neighbors)
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    drawn = drawn_labels(labels, neighbors, num_synthetic, num_replaced, generator)

    assert drawn.shape == (num_synthetic, size)
    assert ((drawn != labels).sum(dim=1) <= replace_fraction * size).all()
    for new in drawn:
        for i in (new != labels).nonzero().flatten().tolist():
            assert int(new[i]) in labels[neighbors[i]].tolist()


@given(st.integers(2, 20), st.integers(1, 5), st.data())
def test_with_a_class_per_sample_exactly_the_asked_number_changes(
    size: int, num_synthetic: int, data: st.DataObject
) -> None:
    num_replaced = data.draw(st.integers(0, size))
    features = torch.zeros(size, 2)  # all duplicates: only the masked diagonal keeps a sample from itself
    neighbors = nearest_neighbors(features, data.draw(st.integers(1, size - 1)))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    drawn = drawn_labels(torch.arange(size), neighbors, num_synthetic, num_replaced, generator)
    assert (drawn != torch.arange(size)).sum(dim=1).tolist() == [num_replaced] * num_synthetic
