"""The loop that every system shares: it draws mini-batches, calls a step function, evaluates every so many steps.

The method and its baselines differ only in the step function.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mlnt import seeding
from mlnt.images.batches import Augmentation, augment
from mlnt.training.cuda_graph import RecordedStep, StepOn
from mlnt.training.data import TrainingData
from mlnt.training.distributed import ALONE, Ranks
from mlnt.training.draws import StepInputs, augmentation_draws, below, draw_inputs, layer_randomness
from mlnt.training.evaluation import accuracy, predict_logits
from mlnt.training.metrics import history_columns, metrics_table, total_loss
from mlnt.training.passes import Network
from mlnt.training.state import Batch, EpochContext, Metrics, Rates, RatesByStep, StepFunction, TrainState

ModelName = Literal["student", "teacher"]
MODELS: tuple[ModelName, ModelName] = ("student", "teacher")
HistoryRow = dict[str, float | None]
STEPS_AHEAD = 256
"""Steps whose random numbers are drawn, and whose losses are looked at, together: memory does not grow with D."""


class DivergedError(RuntimeError):
    """The loss of a step was not finite."""


@dataclass
class Best:
    """The weights of the evaluation with the highest validation accuracy; the earliest of equals.

    Attributes:
        epoch: how many epochs were done then, whole or in part.
    """

    accuracy: float = -1.0
    epoch: float = -1
    weights: dict[str, Tensor] = field(default_factory=dict)


class Training:
    """One iteration: `epochs()` runs what is left of it and yields a row of history after each evaluation.

    Evaluated is after every `evaluate_every` steps of the whole training, and after the last one; None is an epoch.
    `epoch` counts the epochs done until then: 1 at the end of the first, 0.25 after its first quarter. Metrics of steps
    are averaged since the row before.

    Several `ranks` have a training each, in the same state, and go through the same steps and evaluations; only the
    step and the predictions divide their work. What is written of it, one of them writes.

    Randomness: the order of the samples, the inputs of each step (`draw_inputs`) and random layers (dropout) draw from
    streams named by seed, iteration and epoch or step, so a run resumed from `state_dict()` repeats the uninterrupted
    one. No generator but these is read or moved.

    Raises:
        ValueError: fewer training samples than one batch.
        DivergedError: from `epochs` and `state_dict`: a loss is not finite; the message names the step.
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
        evaluate_every: int | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        self.steps_per_epoch = steps_per_epoch(len(data.train.indices), batch_size)
        self.state = TrainState(student, amp_dtype)
        self.best: dict[ModelName, Best] = {name: Best() for name in MODELS}
        self.history: list[HistoryRow] = []
        self.num_epochs = epochs
        self.evaluate_every = self.steps_per_epoch if evaluate_every is None else evaluate_every
        self._step = step
        self._data = data
        self._schedule = schedule
        self._address = (seed, iteration)
        self._batch_size = batch_size
        self._eval_batch_size = eval_batch_size
        self._augmentation = augmentation
        self._ranks = ranks
        device = data.images.device
        # One copy of what a step looks up, so that no step waits for a transfer.
        self._labels = data.train.labels.to(device)
        self._kept = None if data.kept is None else data.kept.to(device)
        features = data.features if step.needs_features else None
        self._features = features.to(device) if isinstance(features, Tensor) else None
        self._feature_rows = None if isinstance(features, Tensor) else features
        self._run_step: StepOn = self._step_on
        self._epochs_begun = 0
        self._evaluated = 0  # the steps that were done at the last evaluation
        # Since then: the metrics of the steps so far, looked at, and those of the last few, not yet.
        self._metrics = metrics_table([], step.metrics, device)
        self._pending: list[Metrics] = []

    @property
    def kept(self) -> Tensor | None:
        """D′ over the training set, or None for all of it."""
        return self._data.kept

    def record(self) -> None:
        """Record the step as a CUDA graph and replay it, from now on. See `RecordedStep`."""
        changed = [*self.state.tensors(), *self._step.tensors().values()]
        self._run_step = RecordedStep(self._step_on, changed, phase=lambda: self._step.phase)

    def module(self, name: ModelName) -> nn.Module:
        """The network itself, as it is now."""
        return (self.state.student if name == "student" else self.state.teacher).module

    @property
    def num_steps(self) -> int:
        return self.num_epochs * self.steps_per_epoch

    @property
    def steps_done(self) -> int:
        return self._evaluated + len(self._metrics) + len(self._pending)

    def epochs(self, on_step: Callable[[int], None] | None = None) -> Iterator[HistoryRow]:
        """Run what is left, and yield a row of history after each evaluation.

        `on_step` is called with each step's number before it runs: it may take `state_dict()`, or raise to stop.
        """
        while self._evaluated < self.num_steps:
            done = self.steps_done
            epoch = done // self.steps_per_epoch
            due = min((done // self.evaluate_every + 1) * self.evaluate_every, self.num_steps)
            self._run_steps(epoch, min((epoch + 1) * self.steps_per_epoch, due), on_step)
            if self.steps_done == due:
                self.history.append(self._evaluate(due))
                yield self.history[-1]

    def mentor(self) -> ModelName:
        """The model of the best validation accuracy; of equal ones the teacher (the paper: "usually the teacher")."""
        return "student" if self.best["student"].accuracy > self.best["teacher"].accuracy else "teacher"

    def _run_steps(self, epoch: int, end: int, on_step: Callable[[int], None] | None) -> None:
        """Those of an epoch that are not done, before step `end`: nothing random depends on what came before."""
        seed, iteration = self._address
        first, start = epoch * self.steps_per_epoch, self.steps_done
        context = EpochContext(epoch, self.state, self._data.train.labels, self._predict)
        if self._epochs_begun == epoch:  # else the call was made before an evaluation, or a stop, in this epoch
            self._step.begin_epoch(context)
            self._epochs_begun += 1
        samples, generator = len(self._data.train.indices), seeding.generator(seed, "order", iteration, epoch)
        positions_SB = self._step.mini_batches(epoch, samples, self._batch_size, generator)[start - first : end - first]
        # A fetch ends with the next one, and an evaluation fetches: this one asks for no more than the steps up to it.
        fetched = self._data.images.fetch(self._data.train.indices[rows] for rows in positions_SB)
        for ahead in range(0, len(positions_SB), STEPS_AHEAD):
            positions = positions_SB[ahead : ahead + STEPS_AHEAD]
            inputs, any_kept = self._inputs(positions, start + ahead)
            for offset, kept in enumerate(any_kept):
                step = start + ahead + offset
                if on_step is not None:
                    on_step(step)
                one = {name: values[offset] for name, values in inputs.items()} | {"fetched": next(fetched)}
                if self._feature_rows is not None:
                    rows = self._feature_rows.rows(positions[offset])
                    one["features"] = rows.to(self._data.images.device, non_blocking=True)
                with layer_randomness(self._data.images.device, seeding.derive(seed, "layers", iteration, step)):
                    self._pending.append(self._run_step(one, self._schedule.at(step), kept))
            self._look_at_losses()
        if end == first + self.steps_per_epoch:
            self._step.end_epoch(context)

    def _inputs(self, positions_SB: Tensor, first: int) -> tuple[StepInputs, list[bool]]:
        """The inputs of some steps, on the device, and whether each has a kept sample."""
        inputs = draw_inputs(self._step, self._augmentation, positions_SB, first, *self._address)
        kept = self._data.kept
        any_kept = [True] * len(positions_SB) if kept is None else kept[positions_SB].any(dim=1).tolist()
        return {name: values.to(self._data.images.device) for name, values in inputs.items()}, any_kept

    def _step_on(self, inputs: StepInputs, rates: Rates, any_kept: bool) -> Metrics:
        """One step from its inputs on the device."""
        return self._step(self.state, self._batch(inputs, any_kept), rates)

    def _batch(self, inputs: StepInputs, any_kept: bool) -> Batch:
        """Gather, normalise, augment, look up."""
        at = inputs["positions"]
        plain = self._data.images.batch(inputs["fetched"])
        images, *others = (
            augment(plain, self._augmentation, augmentation_draws(inputs, view)) for view in range(self._step.views)
        )
        return Batch(
            images=images,
            labels=self._labels[at],
            positions=at,
            kept=None if self._kept is None else self._kept[at],
            any_kept=any_kept,
            features=inputs.get("features") if self._features is None else self._features[at],
            draws=below(inputs, "draws/"),
            other_views=tuple(others),
        )

    def _predict(self, network: Network | nn.Module) -> Tensor:
        """Logits over D, for a step function between two epochs."""
        if isinstance(network, nn.Module):
            network = Network(network, self.state.student.amp_dtype)
        indices = self._data.train.indices
        return predict_logits([network], self._data.images, indices, self._eval_batch_size, ranks=self._ranks)[0]

    def _look_at_losses(self) -> None:
        """Move pending metrics to those looked at.

        Raises:
            DivergedError: one of their losses is not finite.
        """
        if not self._pending:
            return
        loss = torch.stack([total_loss(metrics) for metrics in self._pending])
        finite = loss.isfinite()
        if not bool(finite.all()):
            at = int((~finite).nonzero()[0])
            step = self.steps_done - len(self._pending) + at
            raise DivergedError(f"the loss was {loss[at].item()} at step {step}")
        looked_at = metrics_table(self._pending, self._step.metrics, self._metrics.device)
        self._metrics = torch.cat([self._metrics, looked_at])
        self._pending = []

    def _evaluate(self, step: int) -> HistoryRow:
        """The row of history after `step` steps; the weights are kept if they are the best so far."""
        rates = self._schedule.at(step - 1)
        whole, part = divmod(step, self.steps_per_epoch)
        epoch = step / self.steps_per_epoch if part else whole
        row: HistoryRow = {
            "epoch": epoch,
            "lr": float(rates.lr),
            "meta_lr": float(rates.meta_lr) if self._step.needs_features else 0.0,
            **history_columns(self._metrics, self._step.metrics, self._batch_size),
        }
        networks = (self.state.student, self.state.teacher)
        values: dict[str, float] = {}
        for set_name, labeled in self._data.evaluation.items():
            logits = predict_logits(
                networks, self._data.images, labeled.indices, self._eval_batch_size, ranks=self._ranks
            )
            for name, of_model in zip(MODELS, logits, strict=True):
                values[f"{name}_{set_name}_accuracy"] = accuracy(of_model, labeled.labels)
        for name in MODELS:
            row |= {key: value for key, value in values.items() if key.startswith(name)}
            if (value := values[f"{name}_validation_accuracy"]) > self.best[name].accuracy:
                weights = {k: v.detach().clone() for k, v in self.module(name).state_dict().items()}
                self.best[name] = Best(value, epoch, weights)
        self._evaluated, self._metrics = step, self._metrics[:0]
        return row

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything needed to go on after the last finished step: tensors, and plain values for JSON.

        The tensors are not copies: save them before the next step.
        """
        self._look_at_losses()
        tensors = {f"momentum/{name}": v for name, v in zip(self.state.student.names, self.state.momentum, strict=True)}
        for name in MODELS:
            tensors |= {f"{name}/last/{k}": v for k, v in self.module(name).state_dict().items()}
            tensors |= {f"{name}/best/{k}": v for k, v in self.best[name].weights.items()}
        tensors |= {f"step/{name}": v for name, v in self._step.tensors().items()}
        tensors["metrics"] = self._metrics
        best = {name: [self.best[name].accuracy, self.best[name].epoch] for name in MODELS}
        counts = {"epochs_begun": self._epochs_begun, "evaluated": self._evaluated}
        return tensors, {"history": self.history, "best": best, **counts}

    def load_state_dict(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned, in place: networks, momentum, the step's tensors, history."""
        for name, buffer in zip(self.state.student.names, self.state.momentum, strict=True):
            buffer.copy_(tensors[f"momentum/{name}"])
        for name, remembered in self._step.tensors().items():
            remembered.copy_(tensors[f"step/{name}"])
        best: dict[str, list[float]] = values["best"]
        for name in MODELS:
            self.module(name).load_state_dict(below(tensors, f"{name}/last/"))
            weights = {k: v.to(self._data.images.device) for k, v in below(tensors, f"{name}/best/").items()}
            self.best[name] = Best(float(best[name][0]), best[name][1], weights)
        self.history = list(values["history"])
        self._epochs_begun, self._evaluated = int(values["epochs_begun"]), int(values["evaluated"])
        self._metrics, self._pending = tensors["metrics"].to(self._data.images.device), []


def steps_per_epoch(num_samples: int, batch_size: int) -> int:
    """Full batches only: the incomplete last one is dropped, its samples come up in another epoch's order."""
    if num_samples < batch_size:
        raise ValueError(f"need at least one batch of {batch_size} training samples, got {num_samples}")
    return num_samples // batch_size
