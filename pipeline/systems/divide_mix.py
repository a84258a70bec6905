"""DivideMix (`mlnt.baselines.divide_mix`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.base.errors import UserError
from pipeline.systems.pair import pair_network
from pipeline.training.plan import Plan, System, optimizer

if TYPE_CHECKING:
    import torch

    from mlnt.baselines.divide_mix import DivideMixStep
    from mlnt.training.passes import Network
    from pipeline.params.schema import Params
    from pipeline.training.session import Session


def _build(session: Session, _: Network | None) -> Plan:
    from pipeline.store.dataset import TRAIN
    from pipeline.training.session import in_steps

    chosen = session.params.divide_mix
    if chosen.warm_up >= (epochs := session.params.train.epochs):
        raise UserError(
            f"divide_mix.warm_up: found {chosen.warm_up}, expected fewer than the {epochs} of train.epochs: no epoch "
            "would divide the samples"
        )
    ramp_steps = in_steps(chosen.unlabeled_ramp_length, session.steps_per_epoch())
    return Plan(_step(session.params, len(session.labels.rows(TRAIN)), session.device, chosen.warm_up, ramp_steps))


def _timed_step(params: Params, num_samples: int, device: torch.device) -> DivideMixStep:
    """The steps after the warm-up: most, and the longer ones."""
    return _step(params, num_samples, device, warm_up=0, ramp_steps=0)


def _step(params: Params, num_samples: int, device: torch.device, warm_up: int, ramp_steps: int) -> DivideMixStep:
    from mlnt.baselines.divide_mix import DivideMixStep

    chosen = params.divide_mix
    return DivideMixStep(
        *optimizer(params),
        num_samples=num_samples,
        device=device,
        warm_up=warm_up,
        confidence_penalty=chosen.confidence_penalty,
        threshold=chosen.threshold,
        augmentations=chosen.augmentations,
        temperature=chosen.temperature,
        beta=chosen.beta,
        unlabeled_weight=chosen.unlabeled_weight,
        ramp_steps=ramp_steps,
    )


SYSTEMS = (
    System(
        "divide_mix",
        "DivideMix",
        _build,
        sections=("divide_mix",),
        timed_step=_timed_step,
        backbones=2,
        wrap=pair_network,
        predictions=2,
    ),
)
