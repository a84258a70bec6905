"""Confident learning (Northcutt, Jiang & Chuang, "Confident Learning: Estimating Uncertainty in Dataset Labels", 2021):
what is wrong among given labels, by thresholds that come from a network's own scores instead of a number.

A network counts as sure of a class where it gives it at least t_c, its mean probability of class c over the samples
whose given label is c: t_c is high for a class that it knows well, and low for all of a network that is unsure.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mlnt.method.mentor import given_label_probability


class LabelScores(NamedTuple):
    """A network's view of given labels.

    Attributes:
        predicted: its labels, int64 [N].
        given: the probability of the given label, y · f(x, θ*), float32 [N]; low is suspicious.
        highest: the probability of its own label, max f(x, θ*), float32 [N].
    """

    predicted: Tensor
    given: Tensor
    highest: Tensor

    @property
    def agree(self) -> Tensor:
        """Where no other label is likelier than the given one, boolean [N]."""
        return self.given >= self.highest

    @classmethod
    def of(cls, probs_NC: Tensor, labels_N: Tensor) -> LabelScores:
        return cls(probs_NC.argmax(dim=1), given_label_probability(probs_NC, labels_N), probs_NC.amax(dim=1))


def confidence(labels_N: Tensor, scores: LabelScores, num_classes: int) -> Tensor:
    """t_c, float64 [C]; infinite for a class that no label names."""
    counts_C = torch.bincount(labels_N, minlength=num_classes)
    sums_C = torch.bincount(labels_N, weights=scores.given.double(), minlength=num_classes)
    return torch.where(counts_C > 0, sums_C / counts_C.clamp_min(1), torch.inf)


def sure(labels_N: Tensor, scores: LabelScores, num_classes: int) -> Tensor:
    """Where the network is sure of its label ŷ: max f(x) ≥ t_ŷ, boolean [N]."""
    return scores.highest.double() >= confidence(labels_N, scores, num_classes)[scores.predicted]


def issue_threshold(labels_N: Tensor, scores: LabelScores, num_classes: int) -> float:
    """The probability of the given label at or below which as many labels lie as are probably wrong.

    n̂ = Σ_c n_c (1 − a_c / b_c): of the n_c labels c, b_c are of samples where the network is sure, and a_c of those
    are the likeliest there. The threshold is the n̂-th lowest y · f(x); −1, below all of them, where n̂ is 0.
    """
    certain = sure(labels_N, scores, num_classes)
    counts_C = torch.bincount(labels_N, minlength=num_classes).double()
    certain_C = torch.bincount(labels_N[certain], minlength=num_classes).double()
    right_C = torch.bincount(labels_N[certain & scores.agree], minlength=num_classes).double()
    wrong = round(float((counts_C * (1 - right_C / certain_C)).nan_to_num(0.0).sum()))
    return float(scores.given.sort().values[wrong - 1]) if wrong else -1.0


def issue_thresholds(labels_N: Tensor, scores: LabelScores, num_classes: int, at_least: float = 0.0) -> Tensor:
    """At or below which probability each given label is listed as probably wrong, float64 [N]: `issue_threshold`, and
    −1, below all, for a label that the network finds likeliest itself.

    Args:
        labels_N: given labels.
        at_least: share of the labels. Where fewer are listed, so are those of the lowest y · f(x) that make it up
            (equals of the last only if all fit), also such as the network finds likeliest: one that has learnt wrong
            labels contradicts too few of them, but ranks them well.
    """
    threshold = torch.full_like(scores.given, issue_threshold(labels_N, scores, num_classes), dtype=torch.float64)
    thresholds_N = torch.where(scores.agree, -1.0, threshold)
    wanted = round(at_least * len(labels_N))
    if (scores.given <= thresholds_N).sum() >= wanted:
        return thresholds_N
    lowest = scores.given.double().sort().values
    fitting = lowest[:wanted] if wanted == len(lowest) else lowest[lowest < lowest[wanted]]
    return thresholds_N.clamp_min(float(fitting[-1]) if len(fitting) else -1.0)


def least_share(doubted_N: Tensor) -> float:
    """s − √(s (1 − s) / N) of the share s of labels that are doubted, at least 0: what is doubted of labels that a
    network has not learnt, less its standard error, is doubted of others at least; 0 of none.

    Args:
        doubted_N: which labels are, boolean.
    """
    share = doubted_N.double().mean().nan_to_num(0.0)
    return float((share - (share * (1 - share) / max(1, len(doubted_N))).sqrt()).clamp_min(0.0))
