"""Co-teaching, told the share of wrong labels (`mlnt.baselines.co_teaching`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.errors import UserError
from pipeline.training.plan import Plan, System

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from torch import nn

    from mlnt.baselines.co_teaching import CoTeachingStep
    from mlnt.training.state import Network
    from pipeline.params.schema import Params
    from pipeline.training.session import Session


def _build(session: Session, _: Network | None) -> Plan:
    chosen, correct = session.params.co_teaching, session.correct()
    if chosen.noise_rate is not None:
        rate = chosen.noise_rate
    elif correct is not None:
        rate = 1.0 - float(correct.double().mean())
    else:
        raise UserError(
            "co_teaching.noise_rate: found null, but how many labels are wrong is not known for noise.kind "
            f"{session.params.noise.kind} on these data; expected a share, such as 0.2"
        )
    return Plan(_step(session.params, rate, session.device))


def _rehearsal(params: Params, _: int, device: torch.device) -> CoTeachingStep:
    return _step(params, 0.5, device)


def _step(params: Params, noise_rate: float, device: torch.device) -> CoTeachingStep:
    from mlnt.baselines.co_teaching import CoTeachingStep

    return CoTeachingStep(
        params.train.momentum,
        params.train.weight_decay,
        params.teacher.batch_norm,
        noise_rate=noise_rate,
        ramp_epochs=params.co_teaching.ramp_epochs,
        device=device,
    )


def _network(backbones: Sequence[nn.Module], _: int) -> nn.Module:
    from mlnt.baselines.pair import PairNetwork

    return PairNetwork(*backbones)


SYSTEMS = (
    System(
        "co_teaching",
        "Co-teaching",
        _build,
        sections=("co_teaching",),
        prior="the share of wrong labels",
        rehearse=_rehearsal,
        backbones=2,
        wrap=_network,
    ),
)
