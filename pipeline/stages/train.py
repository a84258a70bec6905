"""The training stages, of every system: the mentor filters, the system says what is trained, the loop runs."""

from __future__ import annotations

from contextlib import closing

from torch import Tensor

from mlnt.method import mentor
from mlnt.training.state import Network
from pipeline import console
from pipeline.errors import UserError
from pipeline.params.schema import Params
from pipeline.store.dataset import TRAIN
from pipeline.systems.registry import BY_STAGE
from pipeline.training.fit import fit
from pipeline.training.plan import System
from pipeline.training.session import Session

FEW_KEPT = 0.3


def run(params: Params, stage: str) -> str:
    """Train one system; write its models, history and metrics; return a line that sums it up.

    Raises:
        UserError: parameters or inputs do not fit, or prior knowledge is missing.
        RunError: the loss was not finite.
    """
    with closing(Session.open(params)) as session:
        return _train(session, BY_STAGE[stage])


def _train(session: Session, system: System) -> str:
    # θ*: the best model of the iteration before, in eval mode.
    network, used = None, {}
    if system.mentor:
        network, digest = session.best_network(BY_STAGE[system.mentor])
        used = {system.mentor: digest}
    kept = _filter(session, network)
    plan = system.build(session, network)
    return fit(session, system, plan, session.training(system, plan, kept), used)


def _filter(session: Session, network: Network | None) -> Tensor | None:
    """D′ over the training set (10); None keeps all."""
    if network is None:
        return None
    train = session.split(TRAIN)
    (logits,) = session.logits([network], TRAIN, "filter")
    tau = session.params.filter.tau
    kept = mentor.filter_samples(logits.softmax(dim=1), train.labels, tau)
    share = float(kept.double().mean())
    if not kept.any():
        raise UserError(f"filter.tau: {tau} keeps none of {len(kept)} training samples; lower it")
    if share < FEW_KEPT:
        console.warn(
            f"filter.tau {tau} keeps {share:.1%} of the training samples; below {FEW_KEPT:.0%} training often collapses"
        )
    return kept
