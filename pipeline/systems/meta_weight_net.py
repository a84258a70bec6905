"""Meta-Weight-Net, with a small clean set (`mlnt.baselines.meta_weight_net`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.base.errors import UserError
from pipeline.training.plan import Plan, System

if TYPE_CHECKING:
    from mlnt.training.passes import Network
    from mlnt.training.state import StepFunction
    from pipeline.params.schema import Params
    from pipeline.training.session import Session


def _build(session: Session, _: Network | None) -> Plan:
    from mlnt import seeding
    from mlnt.baselines.meta_weight_net import MetaWeightNetStep, weight_net
    from pipeline.store.dataset import TRAIN
    from pipeline.training.clean_set import revealed

    params, chosen = session.params, session.params.meta_weight_net
    if params.compute.compile:
        raise UserError(
            "compute.compile: found true, expected false: Meta-Weight-Net differentiates twice, which torch.compile "
            "does not support"
        )
    known = revealed(session, "meta_weight_net.clean_fraction", chosen.clean_fraction, "Meta-Weight-Net")
    clean = known >= 0
    (fetched,) = session.images.fetch([session.split(TRAIN).indices[clean]])
    theta = weight_net(chosen.hidden, seeding.generator(params.seed, "weight net"))
    step = MetaWeightNetStep(
        *session.optimizer,
        net_lr=chosen.lr,
        clean_images=session.images.batch(fetched),
        clean_labels=known[clean].to(session.device),
        weight_net=[parameter.to(session.device) for parameter in theta],
    )
    return Plan(step)


def _timed_step(params: Params, *_: object) -> StepFunction:
    """MLNT with one synthetic mini-batch, second order, in one SGD step makes the same passes: one of the network at θ,
    one at other weights, and what differentiates through both."""
    from mlnt.method.step import MLNTStep

    train = params.train
    return MLNTStep(1, 0.5, 1, train.lr, train.momentum, train.weight_decay, order="second", update="joint")


SYSTEMS = (
    System(
        "meta_weight_net",
        "Meta-Weight-Net",
        _build,
        sections=("meta_weight_net",),
        prior="a small clean set",
        timed_step=_timed_step,
    ),
)
