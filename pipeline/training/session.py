"""The parameters, the data and the labels of a run, and what every stage that has a network does with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mlnt.images.batches import Augmentation, ImageStore, MemoryImages
from mlnt.images.statistics import InputStatistics, PixelSums, statistics_of
from mlnt.method.schedules import Schedule
from mlnt.training.data import FeatureRows, LabeledSet, TrainingData
from mlnt.training.evaluation import predict_logits
from mlnt.training.loop import Training, steps_per_epoch
from mlnt.training.state import Network, StepFunction
from pipeline import console, files
from pipeline.errors import RunError, UserError
from pipeline.images.files import ImageFiles
from pipeline.params.schema import Params
from pipeline.store.dataset import TEST, TRAIN, VALIDATION, Dataset, Labels, read_dataset, read_labels
from pipeline.training.build import load_best
from pipeline.training.device import amp_dtype, prepare, require_compiler


class Recipe(NamedTuple):
    """How long, and how fast."""

    epochs: int
    lr: float
    lr_drop_epochs: tuple[int, ...]


@dataclass(frozen=True)
class Session:
    """The parameters, and the data and labels that the stages before have left."""

    params: Params
    device: torch.device
    dataset: Dataset
    labels: Labels
    images: ImageStore
    statistics: InputStatistics

    @classmethod
    def open(cls, params: Params) -> Session:
        """
        Raises:
            UserError: inputs that are missing, damaged or of another run, or a device that is not there.
        """
        device = prepare(params.train)
        if params.train.compile:
            require_compiler(device)
        dataset = read_dataset()
        labels = read_labels(dataset)
        images, statistics = image_store(params, dataset, labels, device)
        return cls(params, device, dataset, labels, images, statistics)

    def close(self) -> None:
        """End the processes that read images."""
        self.images.close()

    @property
    def recipe(self) -> Recipe:
        train = self.params.train
        return Recipe(train.epochs, train.lr, train.lr_drop_epochs)

    def split(self, split: int) -> LabeledSet:
        rows = self.labels.rows(split)
        return LabeledSet(torch.from_numpy(rows), torch.from_numpy(self.labels.labels[rows]))

    def training_data(self, kept: Tensor | None = None, features: Tensor | FeatureRows | None = None) -> TrainingData:
        sets = {"validation": self.split(VALIDATION), "test": self.split(TEST)}
        evaluation = {name: labeled for name, labeled in sets.items() if len(labeled.indices)}
        if "validation" not in evaluation:
            raise UserError(f"{files.LABELS}: no validation samples; raise noise.validation_fraction")
        return TrainingData(self.images, self.split(TRAIN), evaluation, kept, features)

    def best_network(self, stage: str) -> tuple[Network, str]:
        """A stage's best model on validation, in eval mode without gradient, and the digest of its weights.

        Raises:
            UserError: missing, damaged, or of another run.
        """
        module, digest = load_best(self.params, self.dataset, self.labels, stage, self.device)
        return Network(module, amp_dtype(self.params.train)), digest

    def logits(self, networks: Sequence[Network], split: int, title: str) -> tuple[Tensor, ...]:
        """Of each network [N, C], from one reading of the images; `title` is of the progress bar."""
        indices = self.split(split).indices
        with console.progress(title, len(indices)) as bar:
            return predict_logits(
                networks, self.images, indices, self.params.train.eval_batch_size, lambda done: bar.at(done - 1)
            )

    def correct(self) -> Tensor | None:
        """Which training labels are right [n]; None where nobody knows."""
        true = self.true_labels()
        return None if true is None else true == self.split(TRAIN).labels

    def true_labels(self) -> Tensor | None:
        """Of the training samples [n]; None where nobody knows."""
        true = self.labels.true_labels
        return None if true is None else torch.from_numpy(true[self.labels.rows(TRAIN)])

    def schedule(self, recipe: Recipe, iteration: int, meta: bool) -> Schedule:
        """Rates by step; without `meta`, η is 0."""
        train, mlnt = self.params.train, self.params.mlnt
        try:
            per_epoch = steps_per_epoch(len(self.labels.rows(TRAIN)), train.batch_size)
        except ValueError as error:
            raise UserError(f"train.batch_size: {error}; lower it") from error
        eta_ramp = mlnt.eta_ramp_length if iteration <= mlnt.eta_ramp_iterations else None
        gamma_start = mlnt.gamma_start_length if iteration <= mlnt.gamma_start_iterations else None
        return Schedule(
            lr=recipe.lr,
            lr_drop_steps=tuple(epoch * per_epoch for epoch in recipe.lr_drop_epochs),
            lr_drop_factor=train.lr_drop_factor,
            meta_lr=mlnt.eta if meta else 0.0,
            meta_lr_ramp=mlnt.eta_ramp,
            meta_lr_ramp_steps=eta_ramp.in_steps(per_epoch) if eta_ramp else 0,
            meta_lr_decays=mlnt.eta_decays,
            ema_decay_start=mlnt.gamma_start,
            ema_decay_start_steps=gamma_start.in_steps(per_epoch) if gamma_start else 0,
            ema_decay=mlnt.gamma,
            teacher_weight=self.params.mentor.lambda_,
            teacher_weight_ramp=self.params.mentor.lambda_ramp,
            num_steps=recipe.epochs * per_epoch,
        )

    def training(
        self,
        student: nn.Module,
        step: StepFunction,
        data: TrainingData,
        *,
        iteration: int = 1,
        meta: bool = False,
        recipe: Recipe | None = None,
    ) -> Training:
        """The loop, ready to run; `recipe` is that of `train.*` unless given."""
        train = self.params.train
        recipe = recipe or self.recipe
        training = Training(
            student,
            step,
            data,
            self.schedule(recipe, iteration, meta),
            seed=self.params.seed,
            iteration=iteration,
            epochs=recipe.epochs,
            batch_size=train.batch_size,
            eval_batch_size=train.eval_batch_size,
            augmentation=Augmentation(train.crop_padding, train.horizontal_flip),
            amp_dtype=amp_dtype(train),
        )
        if train.compile:
            training.compile()
        if train.cuda_graphs and self.device.type == "cuda":
            training.record()
        return training


def image_store(
    params: Params, dataset: Dataset, labels: Labels, device: torch.device
) -> tuple[ImageStore, InputStatistics]:
    """All images, on the device or read from their files, normalised by the statistics of the training split.

    Those of files were taken when each was decoded for the first time: before a validation split was taken off.
    """
    if isinstance(dataset.images, ImageFiles):
        # Imported here: without files nobody waits for torch.utils.data.
        from mlnt.images.files import FileImages

        statistics = statistics_of(dataset.images.sums, params.data.normalize)
        store = FileImages(
            dataset.images,
            statistics,
            device,
            channels_last=params.train.channels_last,
            workers=params.data.num_workers,
            lost=RunError,
        )
        return store, statistics
    images, train = dataset.images, labels.rows(TRAIN)
    # In pieces: those of all training images would be a second copy of them.
    pieces = (images[train[at : at + 4096]] for at in range(0, len(train), 4096))
    statistics = statistics_of(PixelSums.of(pieces, images.shape[1:]), params.data.normalize)
    return MemoryImages(torch.from_numpy(images), statistics, device, params.train.channels_last), statistics
