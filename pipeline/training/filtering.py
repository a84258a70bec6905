"""The filter of iterations 2 and 3: which training samples the mentor keeps."""

from __future__ import annotations

import torch
from torch import Tensor

from mlnt.method.confident import LabelScores, least_share
from mlnt.method.mentor import filter_by_margin
from pipeline.base import console
from pipeline.base.errors import UserError
from pipeline.store.dataset import TRAIN, VALIDATION
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
    kept = passes(session, system, "filter")[1] | known
    share = float(kept.double().mean())
    if not kept.any():
        raise UserError(f"filter.tau: {tau} keeps none of {len(kept)} training samples; lower it, or take auto")
    if share < FEW_KEPT:
        console.warn(
            f"filter.tau {tau} keeps {share:.1%} of the training samples; below {FEW_KEPT:.0%} training often collapses"
        )
    return kept


def passes(session: Session, system: System, title: str) -> tuple[LabelScores, Tensor]:
    """The scores of the training labels, and whether each passes the filter, boolean [n]: (10) with τ; with `auto`
    by the margins of the labels, which takes the table of all probabilities; `title` names the progress bar."""
    tau, labels = session.params.filter.tau, session.split(TRAIN).labels
    if isinstance(tau, str):
        probs_NC = folds.probabilities(session, system, TRAIN, title)
        return LabelScores.of(probs_NC, labels), filter_by_margin(probs_NC, labels, _at_most(session, system, title))
    scores = folds.label_scores(session, [system], TRAIN, title)[system]
    return scores, scores.given > tau


def _at_most(session: Session, system: System, title: str) -> float:
    """The share of the training samples that `auto` may keep."""
    if not folds.learnt(session, system):
        return 1.0
    probs_NC = folds.probabilities(session, system, VALIDATION, title)
    return 1 - least_doubted(session, ~filter_by_margin(probs_NC, session.split(VALIDATION).labels))


def least_doubted(session: Session, doubted: Tensor) -> float:
    """The share of the labels for training that a network doubts at least, which has learnt them: as large a one as of
    validation's, which it has not learnt, less the standard error; 0 where validation's are clean, and say nothing of
    the others. Labels that people know do not count in either.

    Args:
        doubted: which of validation's labels it doubts, boolean.
    """
    noise, known = session.params.noise, torch.from_numpy(session.labels.known)
    if session.dataset.validation_labels(noise.kind, noise.validation) == "clean":
        return 0.0
    unknown = (~known[session.split(TRAIN).indices]).double().mean()
    return least_share(doubted[~known[session.split(VALIDATION).indices]]) * float(unknown)
