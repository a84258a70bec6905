"""The mentor θ*: which samples it keeps, what it adds to the target, which labels it doubts."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mlnt.training.foreach import Scalar


def filter_samples(probs_NC: Tensor, labels_N: Tensor, confidence_threshold: float) -> Tensor:
    """D′ = {(x, y) : y · f(x, θ*) > τ} (10): a boolean [N], True for the samples kept.

    Args:
        probs_NC: the mentor's probabilities, eval mode, un-augmented images.
        labels_N: given labels.
        confidence_threshold: τ; τ < 0 keeps everything, τ ≥ 1 nothing.
    """
    return given_label_probability(probs_NC, labels_N) > confidence_threshold


def filter_by_margin(probs_NC: Tensor, labels_N: Tensor, at_most: float = 1.0) -> Tensor:
    """D′ without a threshold that one would have to know: boolean [N], True for the samples kept.

    m_ij(x) = log f_i(x, θ*) − log f_j(x, θ*) says how firmly the mentor tells class i from class j. A sample whose
    label y is not the likeliest class i is left out where m_iy(x) is at least

        M = median min_{j≠y′} m_y′j(x′) over the samples (x′, y′) whose label is the likeliest: how firmly it usually
            agrees with a label; or
        M_iy = median m_iy(x′) over those of them with label i: how firmly it usually tells this class from that one.

    So what it is unsure of stays, however sure or unsure it is of everything (a temperature changes nothing); all stay
    where it agrees with no label. M_iy is lower than M for look-alikes.

    Args:
        probs_NC: the mentor's probabilities, eval mode, un-augmented images; best of networks that have not seen the
            label that they judge.
        labels_N: given labels.
        at_most: share of the samples. Where the rule keeps more, those of the largest min_{j≠y} m_yj(x) stay, equals
            with them: a mentor that has learnt the labels itself contradicts too few of them, but ranks them well.
    """
    logs_NC = probs_NC.double().log()
    others_N, likeliest_N = logs_NC.scatter(1, labels_N.unsqueeze(1), -torch.inf).max(dim=1)
    margins_N = given_label_probability(logs_NC, labels_N) - others_N
    agree_N = margins_N >= 0
    if not agree_N.any():
        return torch.ones_like(agree_N)
    classes = probs_NC.shape[1]
    usual_CC = margins_N[agree_N].median().repeat(classes, classes)
    for i in range(classes):
        if len(logs_nC := logs_NC[agree_N & (labels_N == i)]):
            usual_CC[i] = usual_CC[i].minimum((logs_nC[:, i : i + 1] - logs_nC).median(dim=0).values)
    kept_N = agree_N | (-margins_N < usual_CC[likeliest_N, labels_N])
    limit = max(1, round(at_most * len(kept_N)))
    if kept_N.sum() <= limit:
        return kept_N
    return kept_N & (margins_N >= margins_N[kept_N].topk(limit).values[-1])


def given_label_probability(probs_NC: Tensor, labels_N: Tensor) -> Tensor:
    """y · f(x, θ*): the probability [N] that the mentor gives to the given label."""
    return probs_NC.gather(1, labels_N.unsqueeze(1)).squeeze(1)


def merged_target(teacher_BC: Tensor, mentor_BC: Tensor, teacher_weight: Scalar) -> Tensor:
    """s = λ f(x, θ̃) + (1 − λ) f(x, θ*) (12)."""
    if isinstance(teacher_weight, Tensor):
        teacher_weight = teacher_weight.to(mentor_BC.dtype)
    return torch.lerp(mentor_BC, teacher_BC, teacher_weight)


class FilterQuality(NamedTuple):
    """How well the samples outside D′ coincide with the wrong labels.

    Attributes:
        purity: share of correct labels among the kept samples.
        precision: share of wrong labels among the samples filtered out.
        recall: share of the wrong labels that are filtered out.
        auc: probability that a wrong label scores lower than a correct one; ties count half.

    A share of an empty set is NaN.
    """

    purity: float
    precision: float
    recall: float
    auc: float


def filter_quality(
    label_score_N: NDArray[np.floating], kept_N: NDArray[np.bool_], wrong_N: NDArray[np.bool_]
) -> FilterQuality:
    """Judge a filter where the truth is known; `label_score_N` is y · f(x, θ*), `wrong_N` marks wrong labels."""
    removed = ~kept_N
    return FilterQuality(
        purity=_share(~wrong_N & kept_N, kept_N),
        precision=_share(wrong_N & removed, removed),
        recall=_share(wrong_N & removed, wrong_N),
        auc=_auc(label_score_N, wrong_N),
    )


def _share(part: NDArray[np.bool_], whole: NDArray[np.bool_]) -> float:
    return float(part.sum() / whole.sum()) if whole.any() else float("nan")


def _auc(label_score_N: NDArray[np.floating], wrong_N: NDArray[np.bool_]) -> float:
    if wrong_N.all() or not wrong_N.any():
        return float("nan")
    from sklearn.metrics import roc_auc_score  # here: only the evaluation needs it, and it is slow to import

    return float(roc_auc_score(wrong_N, -label_score_N))
