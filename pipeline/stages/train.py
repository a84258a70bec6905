"""Stages pretrain, meta1-3 and control2-3: one iteration of training, by cross entropy or MLNT."""

from __future__ import annotations

from contextlib import closing
from typing import Any

from torch import Tensor

from mlnt import mentor
from mlnt.functional import Network
from mlnt.step import MLNTStep
from pipeline import console, files, runtime
from pipeline.artifacts import TRAIN
from pipeline.errors import UserError
from pipeline.feature_store import FeatureFile
from pipeline.fitting import fit
from pipeline.params import Params
from pipeline.systems import BY_STAGE, System
from pipeline.trained import best_weights
from pipeline.workspace import Workspace

FEW_KEPT = 0.3


def run(params: Params, stage: str) -> str:
    """Train one system; writes its models, history and metrics; returns a line that sums it up.

    Raises:
        UserError: parameters or inputs that do not fit.
        RunError: the loss was not finite.
    """
    with closing(Workspace.open(params)) as workspace:
        return _train(workspace, stage)


def _train(workspace: Workspace, stage: str) -> str:
    params, system = workspace.params, BY_STAGE[stage]
    # θ*: the best model of the iteration before, in eval mode.
    network, mentor_digest = workspace.best_network(system.mentor_stage) if system.mentor_stage else (None, "")
    kept = _filter(workspace, network)
    features, features_digest = _features(workspace, system)
    student = runtime.build_network(params, workspace.dataset, workspace.device, system.iteration)
    step = MLNTStep(**step_options(params, system.meta), mentor=network)
    data = workspace.training_data(kept, features)
    training = workspace.training(student, step, data, iteration=system.iteration, meta=system.meta)
    rates = {"train.lr": params.train.lr}
    if system.meta:
        rates |= {"mlnt.eta": params.mlnt.eta, "mlnt.alpha": params.mlnt.alpha}
    return fit(workspace, stage, system.title, training, [features_digest, mentor_digest], rates)


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
        "batched": mlnt.batched,
    }


def _filter(workspace: Workspace, network: Network | None) -> Tensor | None:
    """D′ over the training set; None keeps all."""
    if network is None:
        return None
    train = workspace.split(TRAIN)
    (logits,) = workspace.logits([network], TRAIN, "filter")
    tau = workspace.params.mentor.tau
    kept = mentor.filter_samples(logits.softmax(dim=1), train.labels, tau)
    share = float(kept.double().mean())
    if not kept.any():
        raise UserError(f"mentor.tau: {tau} keeps none of {len(kept)} training samples; lower it")
    if share < FEW_KEPT:
        console.warn(
            f"mentor.tau {tau} keeps {share:.1%} of the training samples; below {FEW_KEPT:.0%} training often collapses"
        )
    return kept


def _features(workspace: Workspace, system: System) -> tuple[Tensor | FeatureFile | None, str]:
    """The feature store's rows of the training set, where the step needs neighbours: in memory, if they fit there."""
    if not system.meta or workspace.params.mlnt.M == 0:
        return None, ""
    digest = files.file_digest(best_weights(workspace.params, workspace.labels, "pretrain"))
    table = FeatureFile(workspace.labels, digest, workspace.labels.rows(TRAIN))
    in_memory = table.gib <= workspace.params.features.max_memory_gib
    return table.read() if in_memory else table, f"{digest} {workspace.params.features.dtype}"
