"""Fitting a network, whatever the system: what it trains on, the loop with its checkpoints, what it leaves behind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import PIL
import torch
from torch import Tensor, nn

from mlnt.data import Augmentation, ImageStore, InputStatistics
from mlnt.schedules import Schedule
from mlnt.state import StepFunction
from mlnt.training import DivergedError, Training, steps_per_epoch
from mlnt.training_data import FeatureRows, LabeledSet, TrainingData
from pipeline import artifacts, checkpoint, console, files, runtime, stopping, timing, weights
from pipeline.artifacts import TEST, TRAIN, VALIDATION, Dataset, Labels
from pipeline.errors import RunError, UserError
from pipeline.params import Params
from pipeline.systems import BASELINES


class Recipe(NamedTuple):
    """How long, and how fast."""

    epochs: int
    lr: float
    lr_drop_epochs: tuple[int, ...]


@dataclass(frozen=True)
class Workspace:
    """The parameters, and the data and labels that the stages before have left."""

    params: Params
    device: torch.device
    dataset: Dataset
    labels: Labels
    images: ImageStore
    statistics: InputStatistics

    @classmethod
    def open(cls, params: Params) -> Workspace:
        """
        Raises:
            UserError: inputs that are missing, damaged or of another run, or a device that is not there.
        """
        device = runtime.prepare(params.train)
        if params.train.compile:
            runtime.require_compiler(device)
        dataset = artifacts.read_dataset()
        labels = artifacts.read_labels(dataset)
        images, statistics = runtime.image_store(params, dataset, labels, device)
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
            amp_dtype=runtime.amp_dtype(train),
        )
        if train.compile:
            training.compile()
        if train.cuda_graphs and self.device.type == "cuda":
            training.record()
        return training


def fit(
    workspace: Workspace,
    stage: str,
    title: str,
    training: Training,
    inputs: list[str],
    rates: Mapping[str, float],
    also_write: Callable[[], None] = lambda: None,
) -> str:
    """Train, or go on from a checkpoint; write models, history and card; return a line that sums it up.

    Args:
        inputs: digests of everything it trains on apart from the labels, for the checkpoint's identity.
        rates: the parameters to lower where it diverges, by name.
        also_write: called when all epochs are done, before the checkpoint is removed.

    Raises:
        UserError: another process is training the same.
        RunError: the loss was not finite.
    """
    params = workspace.params
    trained_with = params.model_dump(mode="json", by_alias=True, exclude=_idle(stage))
    identity = {
        "stage": stage,
        "params": trained_with,
        "inputs": [workspace.labels.digest, *inputs, runtime.start_digest(params.model)],
        "code": [torch.__version__, PIL.__version__, checkpoint.code_digest()],
    }
    kept, purity = training.kept, workspace.correct()
    if purity is not None and kept is not None:
        purity = purity[kept]
    with checkpoint.opened(stage, identity) as saved, timing.measured(stage, workspace.device) as clock:
        console.say(f"{title} on {runtime.describe(workspace.device)}")
        try:
            _train(training, params, stage, saved, clock)
        except DivergedError as error:
            saved.note_divergence(stage, trained_with, str(error))
            raise RunError(
                f"{stage}: {error}; lower {' or '.join(f'{key} ({value})' for key, value in rates.items())}"
            ) from error
        card = weights.ModelCard(
            network=params.model.name,
            labels_digest=workspace.labels.digest,
            mentor=training.mentor(),
            best_epoch={name: best.epoch for name, best in training.best.items()},
            validation_accuracy={name: best.accuracy for name, best in training.best.items()},
            kept_fraction=1.0 if kept is None else float(kept.double().mean()),
            kept_purity=None if purity is None else float(purity.double().mean()),
        )
        weights.save_models(stage, training, workspace.statistics, card)
        files.write_csv(files.PLOTS / f"{stage}.csv", training.history)
        also_write()
        saved.remove()
    best = card.validation_accuracy[card.mentor]
    return f"{title}: best on validation is the {card.mentor} of epoch {card.best_epoch[card.mentor]}, {best:.2%}"


def _idle(stage: str) -> dict[str, Any]:
    """What of the parameters changes nothing about a stage's training."""
    others = {"evaluate", "report", "features", *(b.section for b in BASELINES.values())}
    own = {BASELINES[stage].section} if stage in BASELINES else set()
    return {"train": {"checkpoint_every"}, "data": {"workers"}, **dict.fromkeys(others - own, True)}


def _train(training: Training, params: Params, stage: str, saved: checkpoint.Checkpoint, clock: timing.Clock) -> None:
    if (state := saved.load()) is not None:
        training.load_state_dict(*state)
        console.say(f"{stage}: going on after step {training.steps_done} of {training.num_steps}")
    started = training.steps_done
    clock.steps = training.num_steps - started
    every = max(1, params.train.checkpoint_every.in_steps(training.steps_per_epoch))

    def before(step: int) -> None:
        bar.at(step)
        if step > started and (stop.requested or step % every == 0):
            with clock.saving():
                saved.save(*training.state_dict())
        if stop.requested:
            console.say(f"{stage}: stopped before step {step} of {training.num_steps}; the same command goes on there")
            stop.now()

    with stopping.deferred() as stop, console.progress(stage, training.num_steps) as bar:
        for row in training.epochs(on_step=before):
            bar.note(
                f"epoch {len(training.history)}/{training.num_epochs}  loss {row['class_loss']:.3f}  validation "
                f"{row['student_validation_accuracy']:.1%} / {row['teacher_validation_accuracy']:.1%}"
            )
