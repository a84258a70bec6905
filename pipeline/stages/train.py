"""Stages pretrain, meta1-3 and control2-3: one iteration of training, by cross entropy or MLNT."""

from __future__ import annotations

from contextlib import closing
from typing import Any

from torch import Tensor

from mlnt.method import mentor
from mlnt.method.step import MLNTStep
from mlnt.training.state import Network
from pipeline import console, files
from pipeline.errors import UserError
from pipeline.params.schema import Params
from pipeline.store.dataset import TRAIN
from pipeline.store.features import FeatureFile
from pipeline.systems.registry import BY_STAGE, System
from pipeline.training.build import best_weights, build_network
from pipeline.training.fit import fit
from pipeline.training.session import Session

FEW_KEPT = 0.3


def run(params: Params, stage: str) -> str:
    """Train one system; writes its models, history and metrics; returns a line that sums it up.

    Raises:
        UserError: parameters or inputs that do not fit.
        RunError: the loss was not finite.
    """
    with closing(Session.open(params)) as session:
        return _train(session, stage)


def _train(session: Session, stage: str) -> str:
    params, system = session.params, BY_STAGE[stage]
    # θ*: the best model of the iteration before, in eval mode.
    network, mentor_digest = session.best_network(system.mentor_stage) if system.mentor_stage else (None, "")
    kept = _filter(session, network)
    features, features_digest = _features(session, system)
    student = build_network(params, session.dataset, session.device, system.iteration)
    step = MLNTStep(**step_options(params, system.meta), mentor=network)
    data = session.training_data(kept, features)
    training = session.training(student, step, data, iteration=system.iteration, meta=system.meta)
    rates = {"train.lr": params.train.lr}
    if system.meta:
        rates |= {"mlnt.eta": params.mlnt.eta, "mlnt.alpha": params.mlnt.alpha}
    return fit(session, stage, system.title, training, [features_digest, mentor_digest], rates)


def step_options(params: Params, meta: bool = True) -> dict[str, Any]:
    """What `MLNTStep` is made with, but for a mentor; without `meta`, as cross entropy."""
    mlnt = params.mlnt
    return {
        "num_synthetic": mlnt.M if meta else 0,
        "replace_fraction": mlnt.rho,
        "num_neighbors": mlnt.neighbors,
        "inner_lr": mlnt.alpha,
        "momentum": params.train.momentum,
        "weight_decay": params.train.weight_decay,
        "order": mlnt.order,
        "update": mlnt.update,
        "kl_reduction": mlnt.kl_reduction,
        "teacher_bn": mlnt.teacher_bn,
    }


def _filter(session: Session, network: Network | None) -> Tensor | None:
    """D′ over the training set; None keeps all."""
    if network is None:
        return None
    train = session.split(TRAIN)
    (logits,) = session.logits([network], TRAIN, "filter")
    tau = session.params.mentor.tau
    kept = mentor.filter_samples(logits.softmax(dim=1), train.labels, tau)
    share = float(kept.double().mean())
    if not kept.any():
        raise UserError(f"mentor.tau: {tau} keeps none of {len(kept)} training samples; lower it")
    if share < FEW_KEPT:
        console.warn(
            f"mentor.tau {tau} keeps {share:.1%} of the training samples; below {FEW_KEPT:.0%} training often collapses"
        )
    return kept


def _features(session: Session, system: System) -> tuple[Tensor | FeatureFile | None, str]:
    """The feature store's rows of the training set, where the step needs neighbours: in memory, if they fit there."""
    if not system.meta or session.params.mlnt.M == 0:
        return None, ""
    digest = files.file_digest(best_weights(session.params, session.labels, "pretrain"))
    table = FeatureFile(session.labels, digest, session.labels.rows(TRAIN))
    in_memory = table.gib <= session.params.features.max_memory_gib
    return table.read() if in_memory else table, f"{digest} {session.params.features.dtype}"
