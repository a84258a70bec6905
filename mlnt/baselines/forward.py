"""Forward: loss correction by the noise matrix (Patrini et al., CVPR 2017, "Making Deep Neural Networks Robust to
Label Noise: a Loss Correction Approach").

Prior knowledge: the noise matrix T, given; or estimated from a network trained by cross entropy, which needs none.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from mlnt.baselines.loss_step import LossStep
from mlnt.training.state import Batch, TrainState


@dataclass
class ForwardStep(LossStep):
    """Cross entropy of Tᵀ f(x) with the given label; the network itself predicts true labels.

    Attributes:
        transition_matrix: T [C, C] in the images' device and float32, T[i, j] = P(label = j | true label = i).
    """

    transition_matrix: Tensor

    def loss(self, state: TrainState, batch: Batch) -> tuple[Tensor, Tensor]:
        logits = state.student(batch.images)
        return forward_loss(logits, batch.labels, self.transition_matrix), logits


def forward_loss(logits_BC: Tensor, labels_B: Tensor, transition_CC: Tensor) -> Tensor:
    """L = −1/k Σᵢ log((Tᵀ f(xᵢ))[yᵢ]), in nats; with T the identity it is cross entropy."""
    # log Σⱼ exp(log fⱼ + log T[j, y]): nothing underflows where the network is sure and wrong.
    log_column_BC = transition_CC.log().T[labels_B]
    return -torch.logsumexp(F.log_softmax(logits_BC, dim=1) + log_column_BC, dim=1).mean()


def estimate_transition_matrix(probs_NC: NDArray[np.float64], percentile: float) -> NDArray[np.float64]:
    """T from a network's probabilities on the noisy training set: row i is f(x) of the sample that is most surely
    of class i, so that its label's distribution is that of class i.

    For each class the scores at or above the given percentile are left out, as outliers; rows sum to 1.

    Args:
        probs_NC: softmax of a network trained on the noisy labels.
        percentile: in percent; the authors take 97.
    """
    rows = []
    for score_N in probs_NC.T:
        outlier = score_N >= np.percentile(score_N, percentile, method="higher")
        best = int(np.where(outlier, -np.inf, score_N).argmax()) if not outlier.all() else int(score_N.argmax())
        rows.append(probs_NC[best])
    matrix: NDArray[np.float64] = np.stack(rows)
    matrix /= matrix.sum(axis=1, keepdims=True)
    return matrix
