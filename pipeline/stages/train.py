"""The training stages, of every system: the mentor filters, the system says what is trained, the loop runs."""

from __future__ import annotations

from contextlib import closing

from pipeline.base import console
from pipeline.base.errors import UserError
from pipeline.before_training import estimate, trial
from pipeline.params.schema import Params
from pipeline.store.sizes import sizes_of
from pipeline.systems.registry import BY_STAGE, CROSS_ENTROPY, DEFAULT
from pipeline.training import device, folds
from pipeline.training.filtering import kept_by
from pipeline.training.fit import fit
from pipeline.training.plan import System
from pipeline.training.processes import joined
from pipeline.training.session import Session


def processes(params: Params, stage: str) -> int:
    """How many processes a training stage is worth: `run.processes`, as far as its step can be divided.

    Raises:
        UserError: there are fewer GPUs.
    """
    splits = BY_STAGE[stage].splits
    return min(device.processes(params), 1 if splits is None else splits(params))


def run(params: Params, stage: str) -> str:
    """Train one system; write its models, history and metrics; return a line that sums it up.

    In a process that a launcher has started it trains together with the others, where there is something to divide.

    Raises:
        UserError: parameters or inputs do not fit, or prior knowledge is missing.
        RunError: the loss was not finite.
    """
    system = BY_STAGE[stage]
    count = processes(params, stage)
    if count == 1 and device.processes(params) > 1:
        console.say(f"{system.title}: by one process; several divide the M passes of MLNT with all weights fast")
    with joined(params, count) as ranks, closing(Session.open(params, ranks)) as session:
        return _train(session, system)


def _train(session: Session, system: System) -> str:
    trial.try_start(session, system)
    # θ*: the best model of the iteration before, in eval mode.
    mentor = BY_STAGE[system.mentor] if system.mentor else None
    network, used, kept = None, {}, None
    if mentor is not None:
        network, digest = session.best_network(mentor)
        used, kept = {mentor.stage: digest, **folds.digest(mentor.stage)}, kept_by(session, mentor)
    plan = system.build(session, network)
    training = session.training(system, plan, kept)
    parts = folds.folds_of(session, system, mentor, kept)
    seconds = session.ranks.shared(lambda: _seconds(session, system))
    return fit(session, system, plan, training, used, parts, seconds)


def _seconds(session: Session, system: System) -> float | None:
    """How long the stage will take; the first one says it of all."""
    params, device, sizes = session.params, session.device, sizes_of(session.dataset, session.labels)
    first, alone = system is CROSS_ENTROPY, system.timed_step is not None and not system.default
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
