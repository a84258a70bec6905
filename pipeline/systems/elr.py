"""ELR (`mlnt.baselines.elr`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.training.plan import Plan, System

if TYPE_CHECKING:
    from mlnt.training.state import Network
    from pipeline.training.session import Session


def _build(session: Session, _: Network | None) -> Plan:
    import torch

    from mlnt.baselines.elr import ELRStep
    from pipeline.store.dataset import TRAIN

    chosen = session.params.elr
    size = len(session.labels.rows(TRAIN)), len(session.dataset.class_names)
    step = ELRStep(
        *session.optimizer,
        regularization=chosen.lambda_,
        target_decay=chosen.beta,
        targets=torch.zeros(size, device=session.device),
    )
    return Plan(step)


SYSTEMS = (System("elr", "ELR", _build, sections=("elr",)),)
