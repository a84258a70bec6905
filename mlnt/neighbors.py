"""Random neighbour label transfer: the synthetic noisy labels Ŷᵐ of Algorithm 1, line 6."""

from __future__ import annotations

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
    features_BD = features_BD.float()
    # Not by ‖x‖² + ‖y‖² − 2xy, which loses small distances far from the origin.
    dist_BB = torch.cdist(features_BD, features_BD, compute_mode="donot_use_mm_for_euclid_dist")
    dist_BB.fill_diagonal_(torch.inf)
    return dist_BB.topk(num_neighbors, dim=1, largest=False).indices


def synthetic_labels(
    labels_B: Tensor,
    neighbors_BK: Tensor,
    num_synthetic: int,
    num_replaced: int,
    generator: torch.Generator,
) -> Tensor:
    """Draw Ŷ¹ … Ŷᴹ: in each, `num_replaced` samples take the label of one of their neighbours.

    The samples are chosen without replacement, the neighbour uniformly; the drawn label may equal the old one.

    Args:
        labels_B: given labels.
        neighbors_BK: from `nearest_neighbors`.
        num_synthetic: M.
        num_replaced: ρ·k.
        generator: a CPU generator; two draws of shape [M, B] are all that it is used for.

    Returns:
        int64 [M, B].
    """
    batch_size, num_neighbors = neighbors_BK.shape
    shape = (num_synthetic, batch_size)
    # The rank of uniform numbers is a random permutation: the samples ranked below ρ·k are the chosen ones.
    rank_MB = torch.rand(shape, generator=generator).argsort(dim=1).argsort(dim=1)
    pick_MB = torch.randint(num_neighbors, shape, generator=generator).to(labels_B.device)
    donor_MB = neighbors_BK.gather(1, pick_MB.T).T
    replaced_MB = (rank_MB < num_replaced).to(labels_B.device)
    return torch.where(replaced_MB, labels_B[donor_MB], labels_B)
