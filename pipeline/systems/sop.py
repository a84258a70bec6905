"""SOP (`mlnt.baselines.sop`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.training.plan import Plan, System

if TYPE_CHECKING:
    from mlnt.training.passes import Network
    from pipeline.training.session import Session

DEVIATION = 1e-8
"""Of the normal distribution that u and v start from."""


def _build(session: Session, _: Network | None) -> Plan:
    import torch

    from mlnt import seeding
    from mlnt.baselines.sop import SOPStep
    from pipeline.store.dataset import TRAIN

    chosen = session.params.sop
    samples, classes = len(session.labels.rows(TRAIN)), len(session.dataset.class_names)
    generator = seeding.generator(session.params.seed, "over-parameterization")
    u, v = (DEVIATION * torch.randn(*size, generator=generator) for size in ((samples,), (samples, classes)))
    step = SOPStep(
        *session.optimizer, u_lr=chosen.u_lr, v_lr=chosen.v_lr, u=u.to(session.device), v=v.to(session.device)
    )
    return Plan(step)


SYSTEMS = (System("sop", "SOP", _build, sections=("sop",)),)
