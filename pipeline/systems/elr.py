"""ELR, and with it what MLNT adds to cross entropy: its filter, its meta update (`mlnt.baselines.elr`)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pipeline.systems.mlnt import MLNT, step_options
from pipeline.training.plan import Plan, System

if TYPE_CHECKING:
    from mlnt.baselines.elr import EarlyLearning
    from mlnt.training.passes import Network
    from pipeline.training.session import Session


def _plain(session: Session, _: Network | None) -> Plan:
    """The mentor of `elr_filter` filters alone: there is no target that it could join."""
    from mlnt.baselines.elr import ELRStep

    return Plan(ELRStep(*session.optimizer, early_learning=_early_learning(session)))


def _meta(session: Session, _: Network | None) -> Plan:
    from mlnt.baselines.elr import ELRMetaStep

    step = ELRMetaStep(**step_options(session.params), early_learning=_early_learning(session))
    return replace(MLNT[0].build(session, None), step=step)


def _early_learning(session: Session) -> EarlyLearning:
    import torch

    from mlnt.baselines.elr import EarlyLearning
    from pipeline.store.dataset import TRAIN

    chosen = session.params.elr
    size = len(session.labels.rows(TRAIN)), len(session.dataset.class_names)
    return EarlyLearning(chosen.lambda_, chosen.beta, torch.zeros(size, device=session.device))


SYSTEMS = (
    System("elr", "ELR", _plain, sections=("elr",)),
    System("elr_filter", "ELR + filter", _plain, sections=("elr", "filter"), iteration=2, mentor="elr"),
    System(
        "elr_meta", "ELR + meta", _meta, sections=("elr", "mlnt"), needs=("pretrain",), timed_step=MLNT[0].timed_step
    ),
)
