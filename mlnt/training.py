"""The loop that every system shares: it draws mini-batches, calls a step function, evaluates after each epoch.

The method and its baselines differ only in the step function.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mlnt import seeding
from mlnt.data import Augmentation, AugmentationDraws, ImageStore, augment, draw_augmentation
from mlnt.evaluation import accuracy, predict_logits
from mlnt.neighbors import Draws
from mlnt.recorded import RecordedStep, StepInputs, StepOn
from mlnt.schedules import Rates, Schedule
from mlnt.state import Batch, StepFunction, StepMetrics, TrainState

ModelName = Literal["student", "teacher"]
MODELS: tuple[ModelName, ModelName] = ("student", "teacher")
HistoryRow = dict[str, float | None]


class DivergedError(RuntimeError):
    """The loss of a step was not finite."""


@dataclass(frozen=True)
class LabeledSet:
    """Samples to evaluate on: rows of the image store and the labels to compare with."""

    indices: Tensor
    labels: Tensor


@dataclass(frozen=True)
class TrainingData:
    """What an iteration trains on and is judged by. Rows are rows of `images`.

    Attributes:
        images: all images.
        train: the noisy training set D, by rows and given labels.
        evaluation: sets evaluated after each epoch; `validation` chooses the best model, others only inform.
        kept: boolean over D, in the order of `train`: the samples of D′ (10); None keeps all.
        features: pre-logit features [len(D), D], in the order of `train`; None where no neighbours are needed.
    """

    images: ImageStore
    train: LabeledSet
    evaluation: Mapping[str, LabeledSet]
    kept: Tensor | None = None
    features: Tensor | None = None


@dataclass
class Best:
    """The weights of the epoch with the highest validation accuracy; the earliest of equals."""

    accuracy: float = -1.0
    epoch: int = -1
    weights: dict[str, Tensor] = field(default_factory=dict)


class Training:
    """One iteration: `epochs()` runs what is left of it and yields a row of history after each epoch.

    Randomness: `order`, `augmentation`, `synthetic labels` and `layers` (dropout) draw from streams named by
    seed, iteration and epoch or step, so a run resumed from `state_dict()` repeats the uninterrupted one.

    Raises (from `epochs`):
        DivergedError: a loss that is not finite; names the step.
        ValueError: fewer training samples than one batch.
    """

    def __init__(
        self,
        student: nn.Module,
        step: StepFunction,
        data: TrainingData,
        schedule: Schedule,
        *,
        seed: int,
        iteration: int,
        epochs: int,
        batch_size: int,
        eval_batch_size: int,
        augmentation: Augmentation,
        amp_dtype: torch.dtype | None = None,
    ) -> None:
        self.steps_per_epoch = steps_per_epoch(len(data.train.indices), batch_size)
        self.state = TrainState(student, amp_dtype)
        self.best: dict[ModelName, Best] = {name: Best() for name in MODELS}
        self.history: list[HistoryRow] = []
        self.num_epochs = epochs
        self._step = step
        self._data = data
        self._schedule = schedule
        self._address = (seed, iteration)
        self._batch_size = batch_size
        self._eval_batch_size = eval_batch_size
        self._augmentation = augmentation
        device = data.images.device
        # One copy of what a step looks up, so that no step waits for a transfer.
        self._rows = data.train.indices.to(device)
        self._labels = data.train.labels.to(device)
        self._kept = None if data.kept is None else data.kept.to(device)
        self._features = None if data.features is None or not step.needs_features else data.features.to(device)
        self._run_step: StepOn = self._step_on

    @property
    def kept(self) -> Tensor | None:
        """D′ over the training set, or None for all of it."""
        return self._data.kept

    def record(self) -> None:
        """Record the step as a CUDA graph and replay it, from now on. See `RecordedStep`."""
        self._run_step = RecordedStep(self._step_on, [*self.state.tensors(), *self._step.tensors().values()])

    def module(self, name: ModelName) -> nn.Module:
        """The network itself, as it is now."""
        return (self.state.student if name == "student" else self.state.teacher).module

    def compile(self) -> None:
        """Compile student and teacher with `torch.compile`; the fast passes go through the same compiled code."""
        for name in MODELS:
            self.module(name).compile()

    def epochs(self, on_step: Callable[[int], None] | None = None) -> Iterator[HistoryRow]:
        """Run the epochs that are left. `on_step` hears the step's number before each step."""
        while len(self.history) < self.num_epochs:
            row = self._run_epoch(len(self.history), on_step)
            self.history.append(row)
            yield row

    def mentor(self) -> ModelName:
        """The model of the best validation accuracy, the teacher of equals (the paper: "usually the teacher")."""
        return "student" if self.best["student"].accuracy > self.best["teacher"].accuracy else "teacher"

    def _run_epoch(self, epoch: int, on_step: Callable[[int], None] | None) -> HistoryRow:
        metrics: list[StepMetrics] = []
        seed, iteration = self._address
        with _layer_randomness(self._data.images.device, seeding.derive(seed, "layers", iteration, epoch)):
            first = epoch * self.steps_per_epoch
            order = torch.randperm(
                len(self._data.train.indices), generator=seeding.generator(seed, "order", iteration, epoch)
            )
            inputs, any_kept = self._inputs(order, first)
            self._step.begin_epoch(epoch)
            for number in range(self.steps_per_epoch):
                if on_step is not None:
                    on_step(first + number)
                metrics.append(self._run_step(inputs.at(number), self._schedule.at(first + number), any_kept[number]))
        self._stop_if_diverged(metrics, first)
        return self._evaluate(epoch, metrics)

    def _inputs(self, order: Tensor, first: int) -> tuple[StepInputs, list[bool]]:
        """The inputs of an epoch's steps, moved to the device at once, and whether each has a kept sample.

        Each step draws from streams of its own, so that nothing depends on how many steps are drawn at a time.
        """
        seed, iteration = self._address
        steps = range(first, first + self.steps_per_epoch)
        positions = order[: len(steps) * self._batch_size].view(len(steps), self._batch_size)
        augmentations = [
            draw_augmentation(
                self._augmentation, self._batch_size, seeding.generator(seed, "augmentation", iteration, step)
            )
            for step in steps
        ]
        draws = [
            self._step.draw(self._batch_size, seeding.generator(seed, "synthetic labels", iteration, step))
            for step in steps
        ]
        columns = [
            *(_stack(column) for column in zip(*augmentations, strict=True)),
            *(_stack(column) for column in zip(*(draw or (None, None) for draw in draws), strict=True)),
        ]
        kept = self._data.kept
        any_kept = [True] * len(steps) if kept is None else kept[positions].any(dim=1).tolist()
        device = self._data.images.device
        return StepInputs(positions, *columns).each(lambda values: values.to(device)), any_kept

    def _step_on(self, inputs: StepInputs, rates: Rates, any_kept: bool) -> StepMetrics:
        """One step from its inputs on the device."""
        return self._step(self.state, self._batch(inputs, any_kept), rates)

    def _batch(self, inputs: StepInputs, any_kept: bool) -> Batch:
        """Gather, normalise, augment, look up."""
        at = inputs.positions
        images = augment(
            self._data.images.batch(self._rows[at]), self._augmentation, AugmentationDraws(inputs.shift, inputs.flip)
        )
        return Batch(
            images=images,
            labels=self._labels[at],
            positions=at,
            kept=None if self._kept is None else self._kept[at],
            any_kept=any_kept,
            features=None if self._features is None else self._features[at],
            draws=None
            if inputs.replaced_MB is None or inputs.pick_MB is None
            else Draws(inputs.replaced_MB, inputs.pick_MB),
        )

    def _stop_if_diverged(self, metrics: list[StepMetrics], first: int) -> None:
        loss = torch.stack([m.class_loss if m.meta_loss is None else m.class_loss + m.meta_loss for m in metrics])
        finite = loss.isfinite()
        if not bool(finite.all()):
            step = first + int((~finite).nonzero()[0])
            raise DivergedError(f"the loss was {loss[step - first].item()} at step {step}")

    def _evaluate(self, epoch: int, metrics: list[StepMetrics]) -> HistoryRow:
        last = (epoch + 1) * self.steps_per_epoch - 1
        rates = self._schedule.at(last)
        row: HistoryRow = {
            "epoch": epoch + 1,
            "lr": float(rates.lr),
            "meta_lr": float(rates.meta_lr) if self._step.needs_features else 0.0,
            "class_loss": _mean([m.class_loss for m in metrics]),
            "meta_loss": _mean([m.meta_loss for m in metrics]),
            "student_train_accuracy": _share([m.student_correct for m in metrics], self._batch_size),
            "teacher_train_accuracy": _share([m.teacher_correct for m in metrics], self._batch_size),
        }
        for name in MODELS:
            network = self.state.student if name == "student" else self.state.teacher
            for set_name, labeled in self._data.evaluation.items():
                logits = predict_logits(network, self._data.images, labeled.indices, self._eval_batch_size)
                value = accuracy(logits, labeled.labels)
                row[f"{name}_{set_name}_accuracy"] = value
                if set_name == "validation" and value > self.best[name].accuracy:
                    weights = {k: v.detach().clone() for k, v in network.module.state_dict().items()}
                    self.best[name] = Best(value, epoch + 1, weights)
        return row

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything needed to go on after the last finished epoch: tensors, and plain values for JSON.

        They are the live ones: save them before the next epoch.
        """
        tensors = {f"momentum/{name}": v for name, v in zip(self.state.student.names, self.state.momentum, strict=True)}
        for name in MODELS:
            tensors |= {f"{name}/last/{k}": v for k, v in self.module(name).state_dict().items()}
            tensors |= {f"{name}/best/{k}": v for k, v in self.best[name].weights.items()}
        tensors |= {f"step/{name}": v for name, v in self._step.tensors().items()}
        best = {name: [self.best[name].accuracy, self.best[name].epoch] for name in MODELS}
        return tensors, {"history": self.history, "best": best}

    def load_state_dict(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Go back to what `state_dict` described."""
        for name, buffer in zip(self.state.student.names, self.state.momentum, strict=True):
            buffer.copy_(tensors[f"momentum/{name}"])
        for name, remembered in self._step.tensors().items():
            remembered.copy_(tensors[f"step/{name}"])
        best: dict[str, list[float]] = values["best"]
        for name in MODELS:
            self.module(name).load_state_dict(_below(tensors, f"{name}/last/"))
            weights = {k: v.to(self._data.images.device) for k, v in _below(tensors, f"{name}/best/").items()}
            self.best[name] = Best(float(best[name][0]), int(best[name][1]), weights)
        self.history = list(values["history"])


def steps_per_epoch(num_samples: int, batch_size: int) -> int:
    """Full batches only: the incomplete last one is dropped, its samples come up in another epoch's order."""
    if num_samples < batch_size:
        raise ValueError(f"need at least one batch of {batch_size} training samples, got {num_samples}")
    return num_samples // batch_size


def _stack(values: Sequence[Tensor | None]) -> Tensor | None:
    known = [value for value in values if value is not None]
    return torch.stack(known) if known else None


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


@contextmanager
def _layer_randomness(device: torch.device, seed: int) -> Iterator[None]:
    """Random layers (dropout) draw from the global generator: give it a seed, and put it back afterwards."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(seed)  # not torch.manual_seed, which reaches every GPU
        if devices:
            torch.cuda.default_generators[device.index or 0].manual_seed(seed)
        yield


def _mean(values: list[Tensor | None]) -> float | None:
    """The mean over the steps that have a value; None if there are none."""
    known = [value for value in values if value is not None]
    return torch.stack(known).double().mean().item() if known else None


def _share(counts: list[Tensor | None], batch_size: int) -> float | None:
    mean = _mean(counts)
    return None if mean is None else mean / batch_size
