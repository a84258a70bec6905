"""The training stages, of every system: the mentor filters, the system says what is trained, the loop runs."""

from __future__ import annotations

from contextlib import closing

import torch
from torch import Tensor

from mlnt.method import mentor
from mlnt.training.state import Network
from pipeline import console
from pipeline.errors import UserError
from pipeline.params.schema import Params
from pipeline.store.dataset import TRAIN
from pipeline.store.sizes import sizes_of
from pipeline.systems.registry import BY_STAGE, CROSS_ENTROPY, DEFAULT
from pipeline.training import estimate
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
    training = session.training(system, plan, kept)
    return fit(session, system, plan, training, used, _seconds(session, system))


def _seconds(session: Session, system: System) -> float | None:
    """How long the stage will take; the first one says it of all."""
    params, device, sizes = session.params, session.device, sizes_of(session.dataset, session.labels)
    first = system is CROSS_ENTROPY
    found = None if first else estimate.kept(params, sizes, device)
    if found is None:
        try:
            heads = session.heads
            width = None if heads is None else heads.embeddings.width
            found = estimate.measure(params, sizes, DEFAULT, device, width)
        except (UserError, RuntimeError, ValueError) as error:  # it is but an estimate
            console.warn(f"how long it will take is not known: {error}")
            return None
        estimate.keep(found, device)
    if first:
        stages = ", ".join([system.stage, "features", *(each.stage for each in DEFAULT[1:]), "evaluate", "report"])
        console.say(f"the whole run ({stages}) will take about {console.duration(found.run(DEFAULT, 0))} here")
    return found.training(system)


def _filter(session: Session, network: Network | None) -> Tensor | None:
    """D′ over the training set (10); None keeps all."""
    if network is None:
        return None
    train = session.split(TRAIN)
    (logits,) = session.logits([network], TRAIN, "filter")
    tau = session.params.filter.tau
    known = torch.from_numpy(session.labels.known)[train.indices]  # to people, whatever the mentor thinks of them
    kept = mentor.filter_samples(logits.softmax(dim=1), train.labels, tau) | known
    share = float(kept.double().mean())
    if not kept.any():
        raise UserError(f"filter.tau: {tau} keeps none of {len(kept)} training samples; lower it")
    if share < FEW_KEPT:
        console.warn(
            f"filter.tau {tau} keeps {share:.1%} of the training samples; below {FEW_KEPT:.0%} training often collapses"
        )
    return kept
