"""`train.folds`: K more trainings of each system, so that a network scores each given label that has not seen it.

The training set is cut into K parts. Network j is trained without part j, and judges it; its mentor is network j of the
mentor's stage, so that neither has been trained on the labels of the part. These labels reach it by two ways alone,
and it learns none of them by heart that way. The filter of the next iteration goes by the probabilities of all parts,
so which other samples are kept depends on networks that have seen the part. And where whole networks are trained, MLNT
finds neighbours by features of the network that was pretrained on all of D.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mlnt import seeding
from mlnt.method.confident import LabelScores
from mlnt.training.evaluation import predict_logits
from mlnt.training.loop import Training
from mlnt.training.passes import Network
from pipeline.base import files
from pipeline.base.errors import UserError
from pipeline.params.schema import Params
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
        size = session.params.compute.eval_batch_size
        (logits,) = predict_logits([network], session.images, indices, size, ranks=session.ranks)
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

    Raises:
        UserError: there are too few samples for so many parts, or the mentor was trained in others.
    """
    count = session.params.train.folds if system.default else 0
    if not count:
        return []
    part = assigned(session)
    sizes = part.bincount(minlength=count)
    if not sizes.all():
        raise UserError(
            f"train.folds: found {count}, expected at most {int(sizes.count_nonzero())}, as many as there are "
            "different training images"
        )
    require_batch(session.params, len(part) - int(sizes.max()))
    if mentor is not None:
        _require_parts(session, mentor, part)
    return [Fold(session, system, mentor, kept, j, count, part == j) for j in range(count)]


def require_batch(params: Params, samples: int) -> None:
    """
    Raises:
        UserError: so many samples, those of K − 1 parts, are fewer than a mini-batch has.
    """
    if samples < params.train.batch_size:
        raise UserError(
            f"train.folds: found {params.train.folds}; without its part a network has {samples} training samples, "
            f"expected at least one batch of {params.train.batch_size}; lower train.batch_size, or take 0"
        )


def _require_parts(session: Session, mentor: System, part: Tensor) -> None:
    """
    Raises:
        UserError: the mentor's networks left out other parts, so that they have seen what those that follow have not.
    """
    found = _table(session, mentor)
    if found is None or not torch.equal(found["part"], part):
        raise UserError(
            f"train.folds: found {session.params.train.folds}, but {cards.folder(mentor.stage)} was trained without "
            "these parts; train it again: `dvc repro`"
        )


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
    part[order] = np.arange(len(first)) % count
    return torch.from_numpy(part[group])


def gathered(found: list[tuple[Fold, Tensor]]) -> dict[str, Tensor]:
    """What `models.out_of_fold_file` has, from the probabilities of the parts."""
    samples = len(found[0][0].left_out)
    part, whole = torch.empty(samples, dtype=torch.int64), torch.empty(samples, found[0][1].shape[1])
    for fold, probs in found:
        part[fold.left_out], whole[fold.left_out] = fold.number, probs
    return {"part": part, "probabilities": whole}


def learnt(session: Session, system: System) -> bool:
    """Whether a system has been trained on the labels for training that it judges.

    Raises:
        UserError: its models are missing, damaged, or from another run.
    """
    return not cards.read_card(system.stage, session.params.model.name, session.labels.digest).folds


def out_of_fold(session: Session, system: System) -> Tensor | None:
    """The probabilities [n, C] of all training samples, each by the network that has not seen it; None where the system
    was not trained in folds.

    Raises:
        UserError: its models are missing, damaged, or from another run.
    """
    found = _table(session, system)
    return None if found is None else found["probabilities"]


def probabilities(session: Session, system: System, split: int, title: str) -> Tensor:
    """The probabilities [n, C] of all samples of a split: of training samples out of fold where the system was trained
    in folds, otherwise its best model's; `title` names the progress bar.

    Raises:
        UserError: its models are missing, damaged, or from another run.
    """
    if split == TRAIN and (table := out_of_fold(session, system)) is not None:
        return table
    network, _ = session.best_network(system)
    (logits,) = session.logits([network], split, title)
    return logits.softmax(dim=1)


def label_scores(session: Session, systems: Sequence[System], split: int, title: str) -> dict[System, LabelScores]:
    """What each system says of a split's labels: of training samples out of fold where it was trained in folds,
    otherwise its best model's view; `title` names the progress bar.

    Raises:
        UserError: its models are missing, damaged, or from another run.
    """
    labels, found = session.split(split).labels, dict[System, LabelScores]()
    for system in systems if split == TRAIN else ():
        if (table := out_of_fold(session, system)) is not None:
            found[system] = LabelScores.of(table, labels)
    others = [system for system in systems if system not in found]
    if others:
        networks = [session.best_network(system)[0] for system in others]
        found |= zip(others, session.label_scores(networks, split, title), strict=True)
    return {system: found[system] for system in systems}


def digest(stage: str) -> dict[str, str]:
    """The digest of what `gathered` gave for a stage, by name, for records; empty where it was not trained in folds."""
    path = models.out_of_fold_file(stage)
    return {f"out of fold of {stage}": files.file_digest(path)} if path.exists() else {}


def _table(session: Session, system: System) -> dict[str, Tensor] | None:
    return None if learnt(session, system) else models.load_tensors(models.out_of_fold_file(system.stage))
