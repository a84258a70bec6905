"""Forward, with the true noise matrix and with an estimated one (`mlnt.baselines.forward`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.base.errors import UserError
from pipeline.training.plan import Plan, System

if TYPE_CHECKING:
    from torch import Tensor

    from mlnt.training.passes import Network
    from pipeline.training.session import Session


def _true_matrix(session: Session, _: Network | None) -> Plan:
    return _plan(session, session.transition_matrix("forward", "the baseline forward_estimated does without"))


def _estimated_matrix(session: Session, _: Network | None) -> Plan:
    """T from the cross-entropy network: its best model on validation."""
    import torch

    from mlnt.baselines.forward import estimate_transition_matrix
    from pipeline.store.dataset import TRAIN
    from pipeline.systems.mlnt import CONTROLS

    network, digest = session.best_network(CONTROLS[0])
    (logits,) = session.logits([network], TRAIN, "estimated T")
    probs = logits.double().softmax(dim=1).numpy()
    matrix = estimate_transition_matrix(probs, session.params.forward.percentile)
    return _plan(session, torch.from_numpy(matrix), pretrain=digest)


def _plan(session: Session, matrix: Tensor, **inputs: str) -> Plan:
    from mlnt.baselines.forward import ForwardStep
    from pipeline.store.dataset import TRAIN

    given = session.split(TRAIN).labels
    unexplained = (matrix.sum(dim=0) == 0)[given]
    if unexplained.any():
        label = session.dataset.class_names[int(given[unexplained][0])]
        raise UserError(
            f"forward: the noise matrix never gives the label {label!r}, which {int(unexplained.sum())} training "
            "samples have; expected a column that is not all zeros for each label"
        )
    step = ForwardStep(*session.optimizer, transition_matrix=matrix.float().to(session.device))
    return Plan(step, inputs)


SYSTEMS = (
    System(
        "forward",
        "Forward, true T",
        _true_matrix,
        sections=("forward",),
        prior="the noise matrix",
        paper=("Forward [16]", ""),
    ),
    System("forward_estimated", "Forward, estimated T", _estimated_matrix, sections=("forward",), needs=("pretrain",)),
)
