"""Random neighbour label transfer: the synthetic noisy labels Ŷᵐ of Algorithm 1, line 6."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


def nearest_neighbors(features_BD: Tensor, num_neighbors: int) -> Tensor:
    """Indices [B, K] of each sample's K nearest others in the batch, by Euclidean distance.

    The diagonal is masked, so that a sample is never its own neighbour, not even beside its duplicates.

    Raises:
        ValueError: fewer than K + 1 samples.
    """
    batch_size = len(features_BD)
    if not 0 < num_neighbors < batch_size:
        raise ValueError(f"need more than {num_neighbors=} samples in a batch, got {batch_size}")
    # ‖x − y‖² = ‖x‖² + ‖y‖² − 2xy; ‖x‖² is the same for all y. In double precision, since in single precision this
    # loses small distances far from the origin.
    features_BD = features_BD.double()
    dist_BB = torch.addmm(features_BD.square().sum(dim=1), features_BD, features_BD.T, alpha=-2)
    dist_BB.fill_diagonal_(torch.inf)
    return dist_BB.topk(num_neighbors, dim=1, largest=False).indices


class Draws(NamedTuple):
    """What is random in M synthetic mini-batches; drawn on the CPU, so that it is the same on every device.

    Attributes:
        replaced_MB: boolean, the samples that take a neighbour's label.
        pick_MB: int64, which of its K neighbours.
    """

    replaced_MB: Tensor
    pick_MB: Tensor


def draw(
    num_synthetic: int, batch_size: int, num_neighbors: int, num_replaced: int, generator: torch.Generator
) -> Draws:
    """Draw ρ·k samples for each of M mini-batches, without replacement, and a neighbour for every sample, uniformly.

    Args:
        num_synthetic: M.
        num_replaced: ρ·k.
        generator: a CPU generator; it is used for two draws of shape [M, B].
    """
    shape = (num_synthetic, batch_size)
    # The rank of uniform numbers is a random permutation: the samples ranked below ρ·k are the chosen ones.
    rank_MB = torch.rand(shape, generator=generator).argsort(dim=1).argsort(dim=1)
    return Draws(rank_MB < num_replaced, torch.randint(num_neighbors, shape, generator=generator))


def synthetic_labels(labels_B: Tensor, neighbors_BK: Tensor, draws: Draws) -> Tensor:
    """Ŷ¹ … Ŷᴹ, int64 [M, B]: where `draws` says so, the label of that neighbour, which may equal the old one.

    Args:
        labels_B: given labels.
        neighbors_BK: from `nearest_neighbors`.
        draws: on the same device.
    """
    donor_MB = neighbors_BK.gather(1, draws.pick_MB.T).T
    return torch.where(draws.replaced_MB, labels_B[donor_MB], labels_B)
