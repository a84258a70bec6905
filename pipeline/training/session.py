"""The parameters, the data and the labels of a run, and what every stage that has a network does with them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from mlnt.images.batches import Augmentation, ImageStore
from mlnt.images.statistics import InputStatistics
from mlnt.method.confident import LabelScores
from mlnt.method.schedules import Schedule
from mlnt.method.teacher import TeacherBatchNorm
from mlnt.noise.matrices import realised_matrix
from mlnt.training.data import FeatureRows, LabeledSet, TrainingData
from mlnt.training.distributed import ALONE, Ranks
from mlnt.training.draws import draws_at_random
from mlnt.training.evaluation import logits_by_batch, predict_logits
from mlnt.training.loop import Training, steps_per_epoch
from mlnt.training.passes import Network
from pipeline.base import files
from pipeline.base.errors import UserError
from pipeline.params.schema import Params
from pipeline.params.values import Length
from pipeline.store import models
from pipeline.store.dataset import DROPPED, TEST, TRAIN, VALIDATION, Dataset, Labels, read_dataset, read_labels
from pipeline.training.build import best_weights, empty_network, fresh_network
from pipeline.training.device import amp_dtype, prepare, require_compiler
from pipeline.training.head import Heads
from pipeline.training.image_store import image_store
from pipeline.training.plan import Plan, Recipe, System, optimizer
from pipeline.training.processes import progress
from pipeline.training.start_weights.start import start_digest


def in_steps(length: Length, steps_per_epoch: int) -> int:
    """The number of steps in a length that is given in epochs or in steps."""
    return length.steps if length.steps is not None else round((length.epochs or 0.0) * steps_per_epoch)


def steps_between(length: Length, steps_per_epoch: int) -> int:
    """How many steps lie between two times that something is done."""
    return max(1, in_steps(length, steps_per_epoch))


@dataclass(frozen=True)
class Session:
    """The parameters of a run, with the data and labels that earlier stages have written.

    Attributes:
        images: what is trained on: the images, or their embeddings where heads are trained.
        statistics: what the images are normalised by.
        heads: None where whole networks are trained.
        ranks: the processes that train together.
    """

    params: Params
    device: torch.device
    dataset: Dataset
    labels: Labels
    images: ImageStore
    statistics: InputStatistics
    heads: Heads | None
    ranks: Ranks = ALONE

    @classmethod
    def open(cls, params: Params, ranks: Ranks = ALONE) -> Session:
        """Read the data and the labels of this folder, open its images, and choose the device.

        Raises:
            UserError: inputs are missing, damaged or from another run, or the device does not exist.
        """
        device = prepare(params.compute)
        if params.compute.compile:
            require_compiler(device)
        dataset = read_dataset(params.data.root)
        labels = read_labels(dataset)
        if params.model.train == "head":
            torch.set_num_threads(1)  # a step is so small that a second thread costs more time than it saves
            heads = Heads(params, dataset, labels, device)
            return cls(params, device, dataset, labels, heads.store, heads.embeddings.statistics, heads, ranks)
        images, statistics = image_store(params, dataset, labels.rows(TRAIN), device)
        return cls(params, device, dataset, labels, images, statistics, None, ranks)

    def close(self) -> None:
        """End the processes that read images."""
        self.images.close()

    def without(self, left_out: Tensor) -> Session:
        """The same session without some training samples, boolean [n] in the order of the training split."""
        split = self.labels.split.copy()
        split[self.labels.rows(TRAIN)[left_out.numpy()]] = DROPPED
        return replace(self, labels=replace(self.labels, split=split))

    @property
    def optimizer(self) -> tuple[float, float, TeacherBatchNorm]:
        """As `plan.optimizer` says it of these parameters."""
        return optimizer(self.params)

    def split(self, split: int) -> LabeledSet:
        rows = self.labels.rows(split)
        return LabeledSet(torch.from_numpy(rows), torch.from_numpy(self.labels.labels[rows]))

    def training_data(self, kept: Tensor | None = None, features: Tensor | FeatureRows | None = None) -> TrainingData:
        sets = {"validation": self.split(VALIDATION), "test": self.split(TEST)}
        evaluation = {name: labeled for name, labeled in sets.items() if len(labeled.indices)}
        if "validation" not in evaluation:
            raise UserError(f"{files.LABELS}: no validation samples; `mlnt inject-noise` takes some off")
        return TrainingData(self.images, self.split(TRAIN), evaluation, kept, features)

    def best_network(self, system: System) -> tuple[Network, str]:
        """A system's best model on validation, in eval mode without gradient, and the digest of its weights.

        Raises:
            UserError: its model is missing, damaged, or from another run.
        """
        path = best_weights(self.params, self.labels, system.stage)
        network = self.network(system, path)
        network.module.eval().requires_grad_(False)
        return network, files.file_digest(path)

    def network(self, system: System, path: Path) -> Network:
        """A system's network with the weights of a file.

        Raises:
            UserError: the file is missing, damaged, or belongs to another network.
        """
        module = models.load_into(self.empty(system), path) if self.heads is None else self.heads.load(system, path)
        return Network(module, amp_dtype(self.params.compute))

    def empty(self, system: System) -> nn.Module:
        """What a system trains, the network or its head, to load weights into."""
        if self.heads is not None:
            return self.heads.fresh(system)
        return empty_network(system, self.params, self.dataset, self.device)

    def whole(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """What is saved of a network that was trained: the whole of it, also where only its head was."""
        return tensors if self.heads is None else self.heads.whole(tensors)

    def start(self) -> dict[str, str]:
        """The digest of what networks start from, by name; empty where that is nothing."""
        if self.heads is not None:
            return {"embeddings": self.heads.embeddings.digest}
        weights = start_digest(self.params.model)
        return {"weights": weights} if weights else {}

    def logits(self, networks: Sequence[Network], split: int, title: str) -> tuple[Tensor, ...]:
        """The logits [N, C] of each network, from one reading of the images; `title` names the progress bar."""
        indices = self.split(split).indices
        with progress(self.ranks, title, len(indices)) as at:
            return predict_logits(networks, self.images, indices, self.params.compute.eval_batch_size, at, self.ranks)

    def label_scores(self, networks: Sequence[Network], split: int, title: str) -> list[LabelScores]:
        """The scores of a split's labels by each network, from one reading of the images.

        Logits are reduced batch by batch: those of a million samples and a thousand classes would take gigabytes.
        """
        labeled, ranks, size = self.split(split), self.ranks, self.params.compute.eval_batch_size
        batches, labels = (torch.split(each, size) for each in (labeled.indices, labeled.labels))

        def scored() -> Iterator[list[LabelScores]]:
            logits = logits_by_batch(networks, self.images, ranks.share(batches))
            for of_batch, given in zip(logits, ranks.share(labels), strict=True):
                yield [LabelScores.of(part.softmax(dim=1), given) for part in of_batch]

        found: list[list[LabelScores]] = []
        with progress(ranks, title, len(labeled.indices)) as at:
            for scores in ranks.in_order(scored()):
                found.append(scores)
                at(min(len(found) * size, len(labeled.indices)))
        return [LabelScores(*map(torch.cat, zip(*scores, strict=True))) for scores in zip(*found, strict=True)]

    def correct(self) -> Tensor | None:
        """Which training labels are right, boolean [n]; None where the true labels are unknown."""
        true = self.true_labels()
        return None if true is None else true == self.split(TRAIN).labels

    def true_labels(self) -> Tensor | None:
        """The true labels of the training samples, int64 [n]; None where they are unknown."""
        true = self.labels.true_labels
        return None if true is None else torch.from_numpy(true[self.labels.rows(TRAIN)])

    def transition_matrix(self, section: str, otherwise: str = "") -> Tensor:
        """The noise matrix T [C, C] that was asked for; where none was, T is counted from true and given labels.

        Args:
            section: the section of params.yaml that needs T, named in the message.
            otherwise: what can be done without T, added to the message.

        Raises:
            UserError: neither T nor the true labels are known.
        """
        if self.labels.intended_matrix is not None:
            return torch.from_numpy(self.labels.intended_matrix)
        true = self.true_labels()
        if true is None:
            raise UserError(
                f"{section}: needs the noise matrix, which is unknown for noise.kind {self.params.noise.kind} on "
                f"these data{'; ' if otherwise else ''}{otherwise}"
            )
        given, classes = self.split(TRAIN).labels, len(self.dataset.class_names)
        counted = torch.from_numpy(realised_matrix(true.numpy(), given.numpy(), classes))
        return torch.where(counted.isnan(), torch.eye(classes, dtype=counted.dtype), counted)  # a class without samples

    def training(self, system: System, plan: Plan, kept: Tensor | None = None) -> Training:
        """The training loop of a system, ready to run.

        Args:
            kept: D′ over the training set (10); None keeps all of it.
        """
        train, compute = self.params.train, self.params.compute
        recipe = plan.recipe or Recipe(train.epochs, train.lr, train.lr_drop_epochs)
        per_epoch = self.steps_per_epoch()
        training = Training(
            self._fresh(system),
            plan.step,
            self.training_data(kept, plan.features),
            self._schedule(recipe, system.iteration, plan.meta, per_epoch),
            seed=self.params.seed,
            iteration=system.iteration,
            epochs=recipe.epochs,
            batch_size=train.batch_size,
            eval_batch_size=compute.eval_batch_size,
            augmentation=Augmentation(train.crop_padding, train.horizontal_flip),
            amp_dtype=amp_dtype(compute),
            evaluate_every=steps_between(train.evaluate_every, per_epoch),
            ranks=self.ranks,
        )
        if self.ranks.size > 1:
            self._require_divisible(training.state.student)
        if compute.compile:
            training.state.compile()
        # Several processes run their steps as they are: NCCL can be recorded in principle, but this was never tried.
        if compute.cuda_graphs and self.device.type == "cuda" and self.ranks.size == 1:
            training.record()
        return training

    def _require_divisible(self, network: Network) -> None:
        """
        Raises:
            UserError: what its random layers draw depends on how many passes a process makes.
        """
        images = self.images.batch(next(self.images.fetch([self.split(TRAIN).indices[:2]])))
        if draws_at_random(network, images):
            raise UserError(
                f"run.processes: found {self.params.run.processes}, expected 1: {self.params.model.name} has random "
                "layers (dropout), which would draw other numbers in several processes"
            )

    def _fresh(self, system: System) -> nn.Module:
        if self.heads is not None:
            return self.heads.fresh(system)
        return fresh_network(system, self.params, self.dataset, self.device)

    def steps_per_epoch(self) -> int:
        """
        Raises:
            UserError: fewer training samples than one batch.
        """
        try:
            return steps_per_epoch(len(self.labels.rows(TRAIN)), self.params.train.batch_size)
        except ValueError as error:
            raise UserError(f"train.batch_size: {error}; lower it") from error

    def _schedule(self, recipe: Recipe, iteration: int, meta: bool, per_epoch: int) -> Schedule:
        """Rates by step; without `meta`, η is 0."""
        train, mlnt, teacher, mentor = self.params.train, self.params.mlnt, self.params.teacher, self.params.mentor
        eta_ramp = mlnt.eta_ramp_length if iteration <= mlnt.eta_ramp_iterations else None
        gamma_start = teacher.gamma_start_length if iteration <= teacher.gamma_start_iterations else None
        return Schedule(
            lr=recipe.lr,
            lr_drop_steps=tuple(epoch * per_epoch for epoch in recipe.lr_drop_epochs),
            lr_drop_factor=train.lr_drop_factor,
            meta_lr=mlnt.eta if meta else 0.0,
            meta_lr_ramp=mlnt.eta_ramp,
            meta_lr_ramp_steps=in_steps(eta_ramp, per_epoch) if eta_ramp else 0,
            meta_lr_decays=mlnt.eta_decays,
            ema_decay_start=teacher.gamma_start,
            ema_decay_start_steps=in_steps(gamma_start, per_epoch) if gamma_start else 0,
            ema_decay=teacher.gamma,
            teacher_weight=mentor.lambda_,
            teacher_weight_ramp=mentor.lambda_ramp,
            num_steps=recipe.epochs * per_epoch,
        )
