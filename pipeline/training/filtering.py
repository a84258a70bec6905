"""The filter of iterations 2 and 3: which training samples the mentor keeps."""

from __future__ import annotations

import torch
from torch import Tensor

from mlnt.method import confident, mentor
from pipeline import console
from pipeline.errors import UserError
from pipeline.store.dataset import TRAIN
from pipeline.training import folds
from pipeline.training.plan import System
from pipeline.training.session import Session

FEW_KEPT = 0.3


def kept_by(session: Session, system: System) -> Tensor:
    """D′ over the training set (10), boolean [n], by a system's best model as the mentor.

    Raises:
        UserError: its model is missing, damaged, or from another run; or it keeps nothing.
    """
    train, tau = session.split(TRAIN), session.params.filter.tau
    known = torch.from_numpy(session.labels.known)[train.indices]  # to people, whatever the mentor thinks of them
    kept = passes(tau, probabilities(session, system, "filter"), train.labels) | known
    share = float(kept.double().mean())
    if not kept.any():
        raise UserError(f"filter.tau: {tau} keeps none of {len(kept)} training samples; lower it, or take auto")
    if share < FEW_KEPT:
        console.warn(
            f"filter.tau {tau} keeps {share:.1%} of the training samples; below {FEW_KEPT:.0%} training often collapses"
        )
    return kept


def probabilities(session: Session, system: System, title: str) -> Tensor:
    """f(x, θ*) of the training samples [n, C]: out of fold where the system was trained in folds, otherwise its best
    model's; `title` names the progress bar.

    Raises:
        UserError: its model is missing, damaged, or from another run.
    """
    out_of_fold = folds.out_of_fold(session, system)
    if out_of_fold is not None:
        return out_of_fold
    network, _ = session.best_network(system)
    (logits,) = session.logits([network], TRAIN, title)
    return logits.softmax(dim=1)


def passes(tau: float | str, probs_NC: Tensor, labels_N: Tensor) -> Tensor:
    """Whether each sample passes the filter: (10) with τ; with `auto` unless the mentor is sure of another label."""
    if isinstance(tau, str):
        scores = confident.LabelScores.of(probs_NC, labels_N)
        return ~confident.contradicted(labels_N, scores, probs_NC.shape[1])
    return mentor.filter_samples(probs_NC, labels_N, tau)
