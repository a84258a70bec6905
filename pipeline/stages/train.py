"""The training stages, of every system: the mentor filters, the system says what is trained, the loop runs."""

from __future__ import annotations

from contextlib import closing

from pipeline import console
from pipeline.errors import UserError
from pipeline.params.schema import Params
from pipeline.store.sizes import sizes_of
from pipeline.systems.registry import BY_STAGE, CROSS_ENTROPY, DEFAULT
from pipeline.training import estimate, folds
from pipeline.training.filtering import kept_by
from pipeline.training.fit import fit
from pipeline.training.plan import System
from pipeline.training.session import Session


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
    mentor = BY_STAGE[system.mentor] if system.mentor else None
    network, used, kept = None, {}, None
    if mentor is not None:
        network, digest = session.best_network(mentor)
        used, kept = {mentor.stage: digest, **folds.digest(mentor.stage)}, kept_by(session, mentor)
    plan = system.build(session, network)
    training = session.training(system, plan, kept)
    parts = folds.folds_of(session, system, mentor, kept)
    return fit(session, system, plan, training, used, parts, _seconds(session, system))


def _seconds(session: Session, system: System) -> float | None:
    """How long the stage will take; the first one says it of all."""
    params, device, sizes = session.params, session.device, sizes_of(session.dataset, session.labels)
    first, alone = system is CROSS_ENTROPY, system.rehearse is not None and not system.default
    found = None if first or alone else estimate.kept(params, sizes, device)
    if found is None:
        try:
            heads = session.heads
            width = None if heads is None else heads.embeddings.width
            found = estimate.measure(params, sizes, (system,) if alone else DEFAULT, device, width)
        except (UserError, RuntimeError, ValueError) as error:  # it is but an estimate
            console.warn(f"how long it will take is not known: {error}")
            return None
        if not alone:
            estimate.keep(found, device)
    if first:
        stages = ", ".join([system.stage, "features", *(each.stage for each in DEFAULT[1:]), "evaluate", "report"])
        console.say(f"the whole run ({stages}) will take about {console.duration(found.run(DEFAULT, 0))} here")
    return found.training(system)
