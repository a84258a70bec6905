"""The small clean set: a few training samples whose true labels a system is told."""

from __future__ import annotations

import torch
from torch import Tensor

from mlnt import seeding
from mlnt.noise.matrices import stratified_split
from pipeline.base.errors import UserError
from pipeline.training.session import Session


def revealed(session: Session, key: str, fraction: float, who: str) -> Tensor:
    """True labels over the training set, int64 [n], −1 for those that are not told: the same samples for every system
    that is told as many, as many of each class, by the stream `clean set`.

    Args:
        key: the parameter that has the fraction, for messages.
        fraction: of each true class, above 0; at least one sample.
        who: needs them, for messages.

    Raises:
        UserError: no true labels are known.
    """
    true = session.true_labels()
    if true is None:
        raise UserError(
            f"{key}: found {fraction}, but no true labels are known for these data; {who} needs data whose true "
            "labels, or whose noise, are known"
        )
    generator = seeding.numpy_generator(session.params.seed, "clean set")
    told = torch.from_numpy(stratified_split(true.numpy(), fraction, generator))
    known = torch.full_like(true, -1)
    known[told] = true[told]
    return known
