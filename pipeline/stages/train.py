"""Stages pretrain, meta1-3 and control2-3: one iteration of training, of whichever system."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from mlnt import data, mentor
from mlnt.evaluation import predict_logits
from mlnt.functional import Network
from mlnt.schedules import Schedule
from mlnt.step import MLNTStep
from mlnt.training import DivergedError, LabeledSet, Training, TrainingData, steps_per_epoch
from pipeline import artifacts, checkpoint, console, files, runtime, timing, weights
from pipeline.artifacts import TEST, TRAIN, VALIDATION, Dataset, Labels
from pipeline.errors import RunError, UserError
from pipeline.params import Params
from pipeline.systems import BY_STAGE, System

FEW_KEPT = 0.3


def run(params: Params, stage: str) -> str:
    """Train one system; writes its models, history and metrics; returns a line that sums it up.

    Raises:
        UserError: parameters or inputs that do not fit.
        RunError: the loss was not finite.
    """
    system = BY_STAGE[stage]
    device = runtime.prepare(params.train)
    if params.train.compile:
        runtime.require_compiler(device)
    dataset = artifacts.read_dataset()
    labels = artifacts.read_labels(dataset)
    images, statistics = runtime.image_store(params, dataset, labels, device)
    inputs = Inputs(params, system, dataset, labels, images, device)

    network, mentor_digest = inputs.mentor()
    kept = inputs.filter(network)
    features, features_digest = inputs.features()
    student = runtime.build_network(params, dataset, device, system.iteration)
    training = _training(params, system, student, network, inputs.training_data(kept, features))
    if params.train.compile:
        training.compile()
    if params.train.cuda_graphs and device.type == "cuda":
        training.record()
    identity = {
        "stage": stage,
        "params": params.model_dump(
            mode="json",
            include={"seed": True, "data": True, "model": True, "train": True, "mlnt": True, "mentor": True},
            exclude={"train": {"checkpoint_epochs"}},
        ),
        "inputs": [labels.digest, features_digest, mentor_digest, runtime.start_digest(params.model)],
        "code": [torch.__version__, checkpoint.code_digest()],
    }
    with checkpoint.opened(stage, identity) as saved, timing.measured(stage, device) as clock:
        console.say(f"{system.title} on {runtime.describe(device)}")
        _train(training, params, system, saved, clock)
        card = weights.ModelCard(
            network=params.model.name,
            labels_digest=labels.digest,
            mentor=training.mentor(),
            best_epoch={name: best.epoch for name, best in training.best.items()},
            validation_accuracy={name: best.accuracy for name, best in training.best.items()},
            kept_fraction=1.0 if kept is None else float(kept.double().mean()),
            kept_purity=inputs.purity(kept),
        )
        weights.save_models(stage, training, statistics, card)
        files.write_csv(files.PLOTS / f"{stage}.csv", training.history)
        saved.remove()
    best = card.validation_accuracy[card.mentor]
    return (
        f"{system.title}: best on validation is the {card.mentor} of epoch {card.best_epoch[card.mentor]}, {best:.2%}"
    )


@dataclass(frozen=True)
class Inputs:
    """What a training stage reads."""

    params: Params
    system: System
    dataset: Dataset
    labels: Labels
    images: data.MemoryImages
    device: torch.device

    def split(self, split: int) -> LabeledSet:
        rows = self.labels.rows(split)
        return LabeledSet(torch.from_numpy(rows), torch.from_numpy(self.labels.labels[rows]))

    def training_data(self, kept: Tensor | None, features: Tensor | None) -> TrainingData:
        sets = {"validation": self.split(VALIDATION), "test": self.split(TEST)}
        evaluation = {name: labeled for name, labeled in sets.items() if len(labeled.indices)}
        if "validation" not in evaluation:
            raise UserError(f"{files.LABELS}: no validation samples; raise noise.validation_fraction")
        return TrainingData(self.images, self.split(TRAIN), evaluation, kept, features)

    def mentor(self) -> tuple[Network | None, str]:
        """θ*: the best model of the iteration before, in eval mode, and the digest of its weights."""
        stage = self.system.mentor_stage
        if stage is None:
            return None, ""
        module, digest = load_best(self.params, self.dataset, self.labels, stage, self.device)
        return Network(module, runtime.amp_dtype(self.params.train)), digest

    def filter(self, network: Network | None) -> Tensor | None:
        """D′ over the training set; None keeps all."""
        if network is None:
            return None
        train = self.split(TRAIN)
        logits = predict_logits(network, self.images, train.indices, self.params.train.eval_batch_size)
        tau = self.params.mentor.tau
        kept = mentor.filter_samples(logits.softmax(dim=1), train.labels, tau)
        share = float(kept.double().mean())
        if not kept.any():
            raise UserError(f"mentor.tau: {tau} keeps none of {len(kept)} training samples; lower it")
        if share < FEW_KEPT:
            console.warn(
                f"mentor.tau {tau} keeps {share:.1%} of the training samples; "
                f"below {FEW_KEPT:.0%} training often collapses"
            )
        return kept

    def purity(self, kept: Tensor | None) -> float | None:
        """Share of correct labels in D′, where the truth is known."""
        if self.labels.true_labels is None:
            return None
        rows = self.labels.rows(TRAIN)
        correct = torch.from_numpy(self.labels.true_labels[rows] == self.labels.labels[rows])
        return float((correct if kept is None else correct[kept]).double().mean())

    def features(self) -> tuple[Tensor | None, str]:
        """Rows of the feature store for the training set, where the step needs neighbours."""
        if not self.system.meta or self.params.mlnt.M == 0:
            return None, ""
        digest = files.file_digest(best_weights(self.params, self.labels, "pretrain"))
        table = artifacts.read_features(self.labels, digest)
        return torch.from_numpy(table[self.labels.rows(TRAIN)]), digest


def best_weights(params: Params, labels: Labels, stage: str) -> Path:
    """The file with the weights of a stage's best model."""
    card = weights.read_card(stage, params.model.name, labels.digest)
    return weights.weights_file(stage, card.mentor, "best")


def load_best(
    params: Params, dataset: Dataset, labels: Labels, stage: str, device: torch.device
) -> tuple[nn.Module, str]:
    """A stage's best model on validation, in eval mode without gradient, and the digest of its weights."""
    path = best_weights(params, labels, stage)
    module = weights.load_into(runtime.empty_network(params, dataset, device), path)
    return module.eval().requires_grad_(False), files.file_digest(path)


def _training(
    params: Params, system: System, student: nn.Module, network: Network | None, training_data: TrainingData
) -> Training:
    train, mlnt = params.train, params.mlnt
    try:
        per_epoch = steps_per_epoch(len(training_data.train.indices), train.batch_size)
    except ValueError as error:
        raise UserError(f"train.batch_size: {error}; lower it") from error
    schedule = Schedule(
        lr=train.lr,
        lr_drop_steps=tuple(epoch * per_epoch for epoch in train.lr_drop_epochs),
        lr_drop_factor=train.lr_drop_factor,
        meta_lr=mlnt.eta if system.meta else 0.0,
        meta_lr_ramp=mlnt.eta_ramp,
        meta_lr_ramp_steps=mlnt.eta_ramp_length.in_steps(per_epoch)
        if system.iteration <= mlnt.eta_ramp_iterations
        else 0,
        meta_lr_decays=mlnt.eta_decays,
        ema_decay_start=mlnt.gamma_start,
        ema_decay_start_steps=mlnt.gamma_start_length.in_steps(per_epoch)
        if system.iteration <= mlnt.gamma_start_iterations
        else 0,
        ema_decay=mlnt.gamma,
        teacher_weight=params.mentor.lambda_,
        teacher_weight_ramp=params.mentor.lambda_ramp,
        num_steps=train.epochs * per_epoch,
    )
    step = MLNTStep(
        num_synthetic=mlnt.M if system.meta else 0,
        replace_fraction=mlnt.rho,
        num_neighbors=mlnt.neighbors,
        inner_lr=mlnt.alpha,
        momentum=train.momentum,
        weight_decay=train.weight_decay,
        order=mlnt.order,
        update=mlnt.update,
        kl_reduction=mlnt.kl_reduction,
        teacher_bn=mlnt.teacher_bn,
        mentor=network,
    )
    return Training(
        student,
        step,
        training_data,
        schedule,
        seed=params.seed,
        iteration=system.iteration,
        epochs=train.epochs,
        batch_size=train.batch_size,
        eval_batch_size=train.eval_batch_size,
        augmentation=data.Augmentation(train.crop_padding, train.horizontal_flip),
        amp_dtype=runtime.amp_dtype(train),
    )


def _train(
    training: Training, params: Params, system: System, saved: checkpoint.Checkpoint, clock: timing.Clock
) -> None:
    if (state := saved.load()) is not None:
        training.load_state_dict(*state)
        console.say(f"{system.stage}: going on after epoch {len(training.history)}")
    done = len(training.history)
    clock.steps = (params.train.epochs - done) * training.steps_per_epoch
    with console.progress(system.stage, params.train.epochs * training.steps_per_epoch) as bar:
        try:
            for row in training.epochs(on_step=bar.at):
                epoch = len(training.history)
                if epoch % params.train.checkpoint_epochs == 0 and epoch < params.train.epochs:
                    saved.save(*training.state_dict())
                bar.note(
                    f"epoch {epoch}/{params.train.epochs}  loss {row['class_loss']:.3f}  validation "
                    f"{row['student_validation_accuracy']:.1%} / {row['teacher_validation_accuracy']:.1%}"
                )
        except DivergedError as error:
            raise RunError(
                f"{system.stage}: {error}; lower train.lr ({params.train.lr}), mlnt.eta ({params.mlnt.eta}) "
                f"or mlnt.alpha ({params.mlnt.alpha})"
            ) from error
