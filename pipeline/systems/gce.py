"""GCE, plain and truncated (`mlnt.baselines.gce`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.base.errors import UserError
from pipeline.training.plan import Plan, System

if TYPE_CHECKING:
    from mlnt.training.passes import Network
    from pipeline.training.session import Session


def _plain(session: Session, _: Network | None) -> Plan:
    from mlnt.baselines.gce import GCEStep

    return Plan(GCEStep(*session.optimizer, q=session.params.gce.q))


def _truncated(session: Session, _: Network | None) -> Plan:
    import torch

    from mlnt.baselines.gce import TruncatedGCEStep
    from pipeline.store.dataset import TRAIN

    chosen = session.params.gce
    if chosen.first_pruning >= (epochs := session.params.train.epochs):
        raise UserError(
            f"gce.first_pruning: found {chosen.first_pruning}, expected fewer than the {epochs} of train.epochs: no "
            "sample would be pruned"
        )
    step = TruncatedGCEStep(
        *session.optimizer,
        q=chosen.q,
        threshold=chosen.k,
        first_pruning=chosen.first_pruning,
        pruning_every=chosen.pruning_every,
        kept=torch.ones(len(session.labels.rows(TRAIN)), dtype=torch.bool, device=session.device),
    )
    return Plan(step)


SYSTEMS = (
    System("gce", "GCE", _plain, sections=("gce",)),
    System("gce_truncated", "GCE, truncated", _truncated, sections=("gce",)),
)
