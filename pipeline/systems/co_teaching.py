"""Co-teaching, told the share of wrong labels (`mlnt.baselines.co_teaching`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.base.errors import UserError
from pipeline.systems.pair import pair_network
from pipeline.training.plan import Plan, System, optimizer

if TYPE_CHECKING:
    import torch

    from mlnt.baselines.co_teaching import CoTeachingStep
    from mlnt.training.passes import Network
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


def _timed_step(params: Params, _: int, device: torch.device) -> CoTeachingStep:
    return _step(params, 0.5, device)


def _step(params: Params, noise_rate: float, device: torch.device) -> CoTeachingStep:
    from mlnt.baselines.co_teaching import CoTeachingStep

    return CoTeachingStep(
        *optimizer(params),
        noise_rate=noise_rate,
        ramp_epochs=params.co_teaching.ramp_epochs,
        device=device,
    )


SYSTEMS = (
    System(
        "co_teaching",
        "Co-teaching",
        _build,
        sections=("co_teaching",),
        prior="the share of wrong labels",
        timed_step=_timed_step,
        backbones=2,
        wrap=pair_network,
    ),
)
