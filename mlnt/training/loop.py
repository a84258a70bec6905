"""The loop that every system shares: it draws mini-batches, calls a step function, evaluates after each epoch.

The method and its baselines differ only in the step function.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mlnt import seeding
from mlnt.images.batches import Augmentation, AugmentationDraws, augment
from mlnt.method.neighbors import Draws
from mlnt.training.cuda_graph import RecordedStep, StepOn
from mlnt.training.data import TrainingData
from mlnt.training.draws import StepInputs, draw_inputs
from mlnt.training.evaluation import accuracy, predict_logits
from mlnt.training.state import Batch, Rates, RatesByStep, StepFunction, StepMetrics, TrainState, metrics_table

ModelName = Literal["student", "teacher"]
MODELS: tuple[ModelName, ModelName] = ("student", "teacher")
HistoryRow = dict[str, float | None]
STEPS_AHEAD = 256
"""Steps whose random numbers are drawn, and whose losses are looked at, together: memory does not grow with D."""


class DivergedError(RuntimeError):
    """The loss of a step was not finite."""


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

    Raises:
        ValueError: fewer training samples than one batch.
        DivergedError: from `epochs` and `state_dict`: a loss that is not finite; names the step.
    """

    def __init__(
        self,
        student: nn.Module,
        step: StepFunction,
        data: TrainingData,
        schedule: RatesByStep,
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
        self._labels = data.train.labels.to(device)
        self._kept = None if data.kept is None else data.kept.to(device)
        features = data.features if step.needs_features else None
        self._features = features.to(device) if isinstance(features, Tensor) else None
        self._feature_rows = None if isinstance(features, Tensor) else features
        self._run_step: StepOn = self._step_on
        # Of the epoch that is running: the metrics of its steps so far, looked at, and those of the last few, not yet.
        self._metrics = metrics_table([], device)
        self._pending: list[StepMetrics] = []

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

    @property
    def num_steps(self) -> int:
        return self.num_epochs * self.steps_per_epoch

    @property
    def steps_done(self) -> int:
        return len(self.history) * self.steps_per_epoch + len(self._metrics) + len(self._pending)

    def epochs(self, on_step: Callable[[int], None] | None = None) -> Iterator[HistoryRow]:
        """Run what is left.

        `on_step` hears the step's number before each step: the time to take `state_dict()`, or to stop by raising.
        """
        while len(self.history) < self.num_epochs:
            row = self._run_epoch(len(self.history), on_step)
            self.history.append(row)
            yield row

    def mentor(self) -> ModelName:
        """The model of the best validation accuracy, the teacher of equals (the paper: "usually the teacher")."""
        return "student" if self.best["student"].accuracy > self.best["teacher"].accuracy else "teacher"

    def _run_epoch(self, epoch: int, on_step: Callable[[int], None] | None) -> HistoryRow:
        """From the first step that is not done; a step's randomness does not depend on how many came before it."""
        seed, iteration = self._address
        first = epoch * self.steps_per_epoch
        order = torch.randperm(
            len(self._data.train.indices), generator=seeding.generator(seed, "order", iteration, epoch)
        )
        positions_SB = order[: self.steps_per_epoch * self._batch_size].view(self.steps_per_epoch, self._batch_size)
        self._step.begin_epoch(epoch)
        done = self.steps_done - first
        fetched = self._data.images.fetch(self._data.train.indices[rows] for rows in positions_SB[done:])
        for start in range(done, self.steps_per_epoch, STEPS_AHEAD):
            positions = positions_SB[start : start + STEPS_AHEAD]
            inputs, any_kept = self._inputs(positions, first + start)
            for offset, kept in enumerate(any_kept):
                step = first + start + offset
                if on_step is not None:
                    on_step(step)
                one = inputs.at(offset)._replace(fetched=next(fetched), features=self._read_features(positions[offset]))
                with _layer_randomness(self._data.images.device, seeding.derive(seed, "layers", iteration, step)):
                    self._pending.append(self._run_step(one, self._schedule.at(step), kept))
            self._look_at_losses()
        self._step.end_epoch(epoch)
        row = self._evaluate(epoch, self._metrics)
        self._metrics = self._metrics[:0]
        return row

    def _inputs(self, positions_SB: Tensor, first: int) -> tuple[StepInputs, list[bool]]:
        """The inputs of some steps, on the device, and whether each has a kept sample."""
        inputs = draw_inputs(self._step, self._augmentation, positions_SB, first, *self._address)
        kept = self._data.kept
        any_kept = [True] * len(positions_SB) if kept is None else kept[positions_SB].any(dim=1).tolist()
        device = self._data.images.device
        return inputs.each(lambda values: values.to(device)), any_kept

    def _read_features(self, positions: Tensor) -> Tensor | None:
        if self._feature_rows is None:
            return None
        return self._feature_rows.rows(positions).to(self._data.images.device, non_blocking=True)

    def _step_on(self, inputs: StepInputs, rates: Rates, any_kept: bool) -> StepMetrics:
        """One step from its inputs on the device."""
        return self._step(self.state, self._batch(inputs, any_kept), rates)

    def _batch(self, inputs: StepInputs, any_kept: bool) -> Batch:
        """Gather, normalise, augment, look up."""
        at = inputs.positions
        if inputs.fetched is None:
            raise ValueError("a step needs its images, got none")
        images = augment(
            self._data.images.batch(inputs.fetched), self._augmentation, AugmentationDraws(inputs.shift, inputs.flip)
        )
        return Batch(
            images=images,
            labels=self._labels[at],
            positions=at,
            kept=None if self._kept is None else self._kept[at],
            any_kept=any_kept,
            features=inputs.features if self._features is None else self._features[at],
            draws=None
            if inputs.replaced_MB is None or inputs.pick_MB is None
            else Draws(inputs.replaced_MB, inputs.pick_MB),
        )

    def _look_at_losses(self) -> None:
        """Move pending metrics to those looked at.

        Raises:
            DivergedError: one of their losses is not finite.
        """
        if not self._pending:
            return
        loss = torch.stack([m.class_loss if m.meta_loss is None else m.class_loss + m.meta_loss for m in self._pending])
        finite = loss.isfinite()
        if not bool(finite.all()):
            at = int((~finite).nonzero()[0])
            step = self.steps_done - len(self._pending) + at
            raise DivergedError(f"the loss was {loss[at].item()} at step {step}")
        self._metrics = torch.cat([self._metrics, metrics_table(self._pending, self._metrics.device)])
        self._pending = []

    def _evaluate(self, epoch: int, metrics: Tensor) -> HistoryRow:
        last = (epoch + 1) * self.steps_per_epoch - 1
        rates = self._schedule.at(last)
        class_loss, meta_loss, student_correct, teacher_correct = (_mean(column) for column in metrics.unbind(dim=1))
        row: HistoryRow = {
            "epoch": epoch + 1,
            "lr": float(rates.lr),
            "meta_lr": float(rates.meta_lr) if self._step.needs_features else 0.0,
            "class_loss": class_loss,
            "meta_loss": meta_loss,
            "student_train_accuracy": None if student_correct is None else student_correct / self._batch_size,
            "teacher_train_accuracy": None if teacher_correct is None else teacher_correct / self._batch_size,
        }
        networks = (self.state.student, self.state.teacher)
        values: dict[str, float] = {}
        for set_name, labeled in self._data.evaluation.items():
            logits = predict_logits(networks, self._data.images, labeled.indices, self._eval_batch_size)
            for name, of_model in zip(MODELS, logits, strict=True):
                values[f"{name}_{set_name}_accuracy"] = accuracy(of_model, labeled.labels)
        for name in MODELS:
            row |= {key: value for key, value in values.items() if key.startswith(name)}
            if (value := values[f"{name}_validation_accuracy"]) > self.best[name].accuracy:
                weights = {k: v.detach().clone() for k, v in self.module(name).state_dict().items()}
                self.best[name] = Best(value, epoch + 1, weights)
        return row

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything needed to go on after the last finished step: tensors, and plain values for JSON.

        They are the live ones: save them before the next step.
        """
        self._look_at_losses()
        tensors = {f"momentum/{name}": v for name, v in zip(self.state.student.names, self.state.momentum, strict=True)}
        for name in MODELS:
            tensors |= {f"{name}/last/{k}": v for k, v in self.module(name).state_dict().items()}
            tensors |= {f"{name}/best/{k}": v for k, v in self.best[name].weights.items()}
        tensors |= {f"step/{name}": v for name, v in self._step.tensors().items()}
        tensors["metrics"] = self._metrics
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
        self._metrics, self._pending = tensors["metrics"].to(self._data.images.device), []


def steps_per_epoch(num_samples: int, batch_size: int) -> int:
    """Full batches only: the incomplete last one is dropped, its samples come up in another epoch's order."""
    if num_samples < batch_size:
        raise ValueError(f"need at least one batch of {batch_size} training samples, got {num_samples}")
    return num_samples // batch_size


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


def _mean(column: Tensor) -> float | None:
    """The mean over the steps that have a value; None if there are none."""
    known = column[~column.isnan()]
    return known.mean().item() if len(known) else None
