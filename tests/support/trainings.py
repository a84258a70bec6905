"""Small trainings, and the steps that several files of tests have in common."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from layers import Layers
from torch import Tensor, nn

from mlnt.baselines.cnn_crf import CRFNetwork
from mlnt.baselines.joint_optimization import LabelCorrectionStep
from mlnt.images.batches import Augmentation, MemoryImages
from mlnt.images.statistics import InputStatistics
from mlnt.method.neighbors import draw
from mlnt.method.schedules import Schedule
from mlnt.method.step import MLNTStep
from mlnt.training.data import LabeledSet, TrainingData
from mlnt.training.loop import Training
from mlnt.training.state import Batch, Metrics, Rates, StepFunction, TrainState

NUM_CLASSES = 4
BATCH_SIZE = 8
SCHEDULE = Schedule(
    lr=0.1,
    lr_drop_steps=(8,),
    lr_drop_factor=0.1,
    meta_lr=0.3,
    meta_lr_ramp="linear",
    meta_lr_ramp_steps=4,
    meta_lr_decays=False,
    ema_decay_start=0.5,
    ema_decay_start_steps=6,
    ema_decay=0.9,
    teacher_weight=0.5,
    teacher_weight_ramp="linear",
    num_steps=12,
)
OPTIMIZER = {"momentum": 0.9, "weight_decay": 1e-3, "teacher_bn": "own"}
RATES = Rates(lr=0.1, meta_lr=0.0, ema_decay=0.9, teacher_weight=0.0)
SYMMETRIC = 0.6 * torch.eye(NUM_CLASSES, dtype=torch.float64) + 0.4 / NUM_CLASSES


def make_data(size: int = 27) -> TrainingData:
    """`size` noisy samples and ten clean ones, apart; rows in no order, so that a row is not its position."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (size + 10, 1, 8, 8), generator=generator, dtype=torch.uint8)
    labels = torch.randint(NUM_CLASSES, (size + 10,), generator=generator)
    rows = torch.randperm(size + 10, generator=generator)
    train, validation = rows[:size], rows[size:]
    statistics = InputStatistics(torch.tensor(0.5), torch.tensor(0.25))
    return TrainingData(
        images=MemoryImages(images, statistics, torch.device("cpu")),
        train=LabeledSet(train, labels[train]),
        evaluation={name: LabeledSet(validation, labels[validation]) for name in ("validation", "test")},
        features=torch.randn(size, 5, generator=generator),
    )


def make_network(seed: int = 0) -> nn.Module:
    """With BatchNorm and dropout: statistics and layers that draw."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Layers(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2), nn.Linear(144, NUM_CLASSES)
        )


def make_step(**changes: Any) -> MLNTStep:
    options = {"num_synthetic": 2, "replace_fraction": 0.5, "num_neighbors": 3, "inner_lr": 0.1}
    return MLNTStep(**(options | {"momentum": 0.9, "weight_decay": 1e-3} | changes))


def make_training(
    step: StepFunction | None = None, data: TrainingData | None = None, network: nn.Module | None = None, **changes: Any
) -> Training:
    options = {"seed": 1, "iteration": 2, "epochs": 4, "batch_size": BATCH_SIZE, "eval_batch_size": 4}
    augmentation = Augmentation(crop_padding=1, horizontal_flip=True)
    return Training(
        make_network() if network is None else network,
        make_step() if step is None else step,
        make_data() if data is None else data,
        SCHEDULE,
        **({"augmentation": augmentation} | options | changes),
    )


@dataclass
class FakeStep(StepFunction):
    """Records what the loop hands it; `action(state, number of the call)` may change the networks."""

    action: Callable[[TrainState, int], None] = lambda state, call: None
    class_losses: dict[int, float] = field(default_factory=dict)
    meta_losses: dict[int, float] = field(default_factory=dict)
    needs_features: bool = True
    batches: list[Batch] = field(default_factory=list)
    rates: list[Rates] = field(default_factory=list)
    num_synthetic: int = 2

    def draw(self, batch_size: int, generator: torch.Generator) -> dict[str, Tensor]:
        if not self.needs_features:
            return {}
        return draw(self.num_synthetic, batch_size, 3, batch_size // 2, generator)._asdict()

    def __call__(self, state: TrainState, batch: Batch, rates: Rates) -> Metrics:
        call = len(self.batches)
        self.batches.append(batch)
        self.rates.append(rates)
        self.action(state, call)
        metrics = {"class_loss": torch.tensor(self.class_losses.get(call, 1.0)), "student_correct": torch.tensor(2)}
        if call in self.meta_losses:
            metrics["meta_loss"] = torch.tensor(self.meta_losses[call])
        return metrics


def assert_same_state(one: Training, two: Training) -> None:
    tensors, values = one.state_dict()
    other_tensors, other_values = two.state_dict()
    assert values == other_values
    assert tensors.keys() == other_tensors.keys()
    assert [name for name in tensors if not torch.equal(tensors[name], other_tensors[name])] == []


class StoppedError(Exception):
    pass


def stopped_before(training: Training, step: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What a checkpoint before that step holds."""

    def on_step(number: int) -> None:
        if number == step:
            raise StoppedError

    try:
        list(training.epochs(on_step))
    except StoppedError:
        assert training.steps_done == step
    tensors, values = training.state_dict()
    return {name: tensor.clone() for name, tensor in tensors.items()}, json.loads(json.dumps(values))


def label_correction(size: int, labels: Tensor, first_update: int = 2, average_epochs: int = 3) -> LabelCorrectionStep:
    return LabelCorrectionStep(
        **OPTIMIZER,
        soft_labels=F.one_hot(labels, NUM_CLASSES).float(),
        prior_weight=1.2,
        entropy_weight=0.8,
        prior=torch.full((NUM_CLASSES,), 1 / NUM_CLASSES),
        first_update=first_update,
        average_epochs=average_epochs,
    )


def make_crf() -> CRFNetwork:
    backbone = make_network()
    backbone[-1] = nn.Linear(144, 2 * NUM_CLASSES)
    return CRFNetwork(backbone, NUM_CLASSES)
