"""`train.folds`: K more trainings of each system, so that a network scores each given label that has not seen it.

The training set is cut into K parts. Network j is trained without part j, and judges it; its mentor is network j of the
mentor's stage, so that neither has seen the labels of the part. The filter of the next iteration goes by these
probabilities too, and may so know the labels of a part from other networks: which samples are kept is all that it can
tell.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mlnt import seeding
from mlnt.training.evaluation import predict_logits
from mlnt.training.loop import Training
from mlnt.training.state import Network
from pipeline.store import cards, models
from pipeline.store.dataset import TRAIN
from pipeline.training.device import amp_dtype
from pipeline.training.plan import System
from pipeline.training.session import Session


@dataclass(frozen=True)
class Fold:
    """One part of the training set, and the training that leaves it out.

    Attributes:
        number: j, from 0.
        count: K.
        left_out: the part, boolean [n].
    """

    session: Session
    system: System
    mentor: System | None
    kept: Tensor | None
    number: int
    count: int
    left_out: Tensor

    def training(self) -> Training:
        """Everything as in the training of the whole, but for the samples and the mentor."""
        part = self.session.without(self.left_out)
        network = None if self.mentor is None else self._network(self.mentor)
        kept = None if self.kept is None else self.kept[~self.left_out]
        return part.training(self.system, self.system.build(part, network), kept)

    def judge(self, weights: Mapping[str, Tensor]) -> Tensor:
        """The probabilities [n_j, C] that the network with these weights gives to the part."""
        session, network = self.session, self._empty(self.system)
        network.module.load_state_dict(weights)
        indices = session.split(TRAIN).indices[self.left_out]
        (logits,) = predict_logits([network], session.images, indices, session.params.compute.eval_batch_size)
        return logits.softmax(dim=1)

    def _network(self, system: System) -> Network:
        network = self._empty(system)
        models.load_into(network.module, models.fold_file(system.stage, self.number))
        network.module.eval().requires_grad_(False)
        return network

    def _empty(self, system: System) -> Network:
        return Network(self.session.empty(system), amp_dtype(self.session.params.compute))


def folds_of(session: Session, system: System, mentor: System | None, kept: Tensor | None) -> list[Fold]:
    """The K trainings that leave a part out; none with `train.folds: 0`, or for the baselines.

    Args:
        kept: D′ over the training set (10); None keeps all of it.
    """
    count = session.params.train.folds if system.default else 0
    part = assigned(session)
    return [Fold(session, system, mentor, kept, j, count, part == j) for j in range(count)]


def assigned(session: Session) -> Tensor:
    """The part of each training sample, int64 [n]: as many of each given label in each, within one; equal images are in
    the same one. Random by the stream `folds`."""
    count, train = session.params.train.folds, session.labels.rows(TRAIN)
    same = session.dataset.same_picture
    groups = np.full(len(train), -1) if same is None else same[train]
    alone = groups < 0
    groups = np.where(alone, np.arange(len(train)), groups + len(train))
    _, first, group = np.unique(groups, return_index=True, return_inverse=True)
    order = seeding.numpy_generator(session.params.seed, "folds").permutation(len(first))
    order = order[np.argsort(session.labels.labels[train][first][order], kind="stable")]
    part = np.empty(len(first), dtype=np.int64)
    part[order] = np.arange(len(first)) % max(1, count)
    return torch.from_numpy(part[group])


def gathered(found: list[tuple[Fold, Tensor]]) -> Tensor:
    """The probabilities [n, C] of all training samples, from those of the parts."""
    whole = torch.empty(len(found[0][0].left_out), found[0][1].shape[1])
    for fold, probs in found:
        whole[fold.left_out] = probs
    return whole


def out_of_fold(session: Session, system: System) -> Tensor | None:
    """What `gathered` gave for a system, or None where it was not trained in folds.

    Raises:
        UserError: its models are missing, damaged, or from another run.
    """
    card = cards.read_card(system.stage, session.params.model.name, session.labels.digest)
    return models.load_tensors(models.out_of_fold_file(system.stage))["probabilities"] if card.folds else None
