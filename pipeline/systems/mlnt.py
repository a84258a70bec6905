"""Cross entropy, its controls with a filter, and MLNT: one step function, with and without the meta update."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.training.plan import Plan, System

if TYPE_CHECKING:
    from torch import Tensor

    from mlnt.training.data import FeatureRows
    from mlnt.training.passes import Network
    from mlnt.training.state import StepFunction
    from pipeline.params.schema import Params
    from pipeline.training.session import Session


def step_options(params: Params, meta: bool = True) -> dict[str, Any]:
    """The arguments of `MLNTStep` except the mentor; without `meta`, those of plain cross entropy."""
    mlnt = params.mlnt
    return {
        "num_synthetic": mlnt.M if meta else 0,
        "replace_fraction": mlnt.rho,
        "num_neighbors": mlnt.neighbors,
        "inner_lr": mlnt.alpha,
        "momentum": params.train.momentum,
        "weight_decay": params.train.weight_decay,
        "fast_weights": mlnt.fast_weights,
        "order": mlnt.order,
        "update": mlnt.update,
        "kl_reduction": mlnt.kl_reduction,
        "teacher_bn": params.teacher.batch_norm,
    }


def _cross_entropy(session: Session, mentor: Network | None) -> Plan:
    from mlnt.method.step import MLNTStep

    params = session.params
    step = MLNTStep(**step_options(params, meta=False), mentor=mentor)
    return Plan(step)


def _mlnt(session: Session, mentor: Network | None) -> Plan:
    from mlnt.method.step import MLNTStep

    params = session.params
    features, inputs = _features(session)
    step = MLNTStep(**step_options(params), mentor=mentor, ranks=session.ranks)
    lower = {"train.lr": params.train.lr, "mlnt.eta": params.mlnt.eta, "mlnt.alpha": params.mlnt.alpha}
    return Plan(step, inputs, features, meta=True, lower=lower)


def _timed_step(params: Params, *_: object) -> StepFunction:
    from mlnt.method.step import MLNTStep

    return MLNTStep(**step_options(params))


def _splits(params: Params) -> int:
    """M, where each synthetic mini-batch takes passes of a whole network; else there is nothing to gain."""
    mlnt = params.mlnt
    worth = mlnt.fast_weights == "all" and mlnt.eta > 0 and params.model.train == "all"
    return max(1, mlnt.M) if worth else 1


def _features(session: Session) -> tuple[Tensor | FeatureRows | None, dict[str, str]]:
    """The rows of the training set in the feature store: in memory, if they fit there; None for M = 0. The neighbours
    of a head are found by its embeddings."""
    from pipeline.base import files
    from pipeline.store.dataset import TRAIN
    from pipeline.store.features import FeatureFile, identity
    from pipeline.training.build import best_weights

    params = session.params
    if params.mlnt.M == 0:
        return None, {}
    if session.heads is not None:
        return session.heads.features(session.labels), {}
    digest = files.file_digest(best_weights(params, session.labels, "pretrain"))
    table = FeatureFile(session.labels, digest, session.labels.rows(TRAIN))
    in_memory = table.gib <= params.run.max_features_gib
    inputs = {"pretrain": digest, "features": identity(digest, table.dtype)}
    return table.read() if in_memory else table, inputs


def _control(iteration: int, mentor: str) -> System:
    title = f"CE + filter {iteration}"
    return System(
        f"ce_filter_{iteration}",
        title,
        _cross_entropy,
        sections=("filter",),
        iteration=iteration,
        mentor=mentor,
        default=True,
        own_stage=f"control{iteration}",
        model_titles=(title, f"{title} EMA"),
    )


def _iteration(iteration: int, ordinal: str, mentor: str | None) -> System:
    title = f"MLNT {iteration}"
    return System(
        f"mlnt_{iteration}",
        title,
        _mlnt,
        sections=("mlnt", "filter", "mentor") if mentor else ("mlnt",),
        iteration=iteration,
        mentor=mentor,
        needs=("pretrain",),
        paper=(f"MLNT-student ({ordinal} iter.)", f"MLNT-teacher ({ordinal} iter.)"),
        default=True,
        timed_step=_timed_step,
        splits=_splits,
        own_stage=f"meta{iteration}",
        model_titles=(f"{title} student", f"{title} teacher"),
    )


CONTROLS = (
    System(
        "cross_entropy",
        "Cross Entropy",
        _cross_entropy,
        paper=("Cross Entropy (reproduced)", ""),
        default=True,
        own_stage="pretrain",
        model_titles=("Cross Entropy", "CE-EMA"),
    ),
    _control(2, "pretrain"),
    _control(3, "control2"),
)
MLNT = (_iteration(1, "1st", None), _iteration(2, "2nd", "meta1"), _iteration(3, "3rd", "meta2"))
