"""The losses of 20 steps in double precision, committed beside this file: a change that should move none moves none.

`python tests/reference/test_golden.py` writes the file anew, for a change that is meant to move them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from mlnt import seeding
from mlnt.images.batches import Augmentation
from mlnt.method.schedules import Schedule
from mlnt.method.step import MLNTStep
from mlnt.networks import preact_resnet_tiny
from mlnt.noise.matrices import symmetric_labels
from mlnt.training.data import LabeledSet, TrainingData
from mlnt.training.loop import Training
from mlnt.training.passes import Network
from mlnt.training.state import Batch, Metrics, Rates, StepFunction, TrainState

GOLDEN = Path(__file__).with_name("golden.json")
SIZE, BATCH_SIZE, EPOCHS = 160, 32, 4  # five steps an epoch


@dataclass(frozen=True)
class DoubleImages:
    """An image store in double precision: float32 would leave no digits to compare."""

    images: Tensor

    @property
    def device(self) -> torch.device:
        return self.images.device

    def __len__(self) -> int:
        return len(self.images)

    def fetch(self, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        return iter(batches)

    def batch(self, fetched: Tensor) -> Tensor:
        return self.images[fetched]

    def close(self) -> None:
        pass


class Recorder(StepFunction):
    """A step function that keeps the losses of every step."""

    def __init__(self, step: MLNTStep) -> None:
        self.step = step
        self.needs_features = step.needs_features
        self.losses: list[tuple[float, float | None]] = []

    def draw(self, batch_size: int, generator: torch.Generator) -> dict[str, Tensor]:
        return self.step.draw(batch_size, generator)

    def __call__(self, state: TrainState, batch: Batch, rates: Rates) -> Metrics:
        metrics = self.step(state, batch, rates)
        meta_loss = metrics["meta_loss"].item() if "meta_loss" in metrics else None
        self.losses.append((metrics["class_loss"].item(), meta_loss))
        return metrics


def network(seed: int) -> nn.Module:
    """NumPy's normal numbers are the same on every processor, those of torch differ in the last digits."""
    generator = seeding.numpy_generator(seed, "golden network")
    module = preact_resnet_tiny().double()
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim > 1:
                scale = (2 / parameter[0].numel()) ** 0.5
                parameter.copy_(torch.from_numpy(scale * generator.standard_normal(tuple(parameter.shape))))
            elif parameter is module.fc.bias:
                parameter.zero_()
    return module


def run(iteration: int) -> list[tuple[float, float | None]]:
    pixels, true_labels = load_digits(return_X_y=True)
    pixels, true_labels = pixels[:SIZE] / 16, true_labels[:SIZE].astype(np.int64)
    generator = seeding.numpy_generator(0, "golden")
    labels = torch.from_numpy(symmetric_labels(true_labels, 10, 0.4, False, "exact", generator))
    # Projected, because distances between whole numbers tie, and the order of equals is nobody's promise.
    features = torch.from_numpy(pixels @ generator.standard_normal((64, 16)))
    everything = LabeledSet(torch.arange(SIZE), labels)
    data = TrainingData(
        images=DoubleImages(torch.from_numpy(pixels - pixels.mean(0)).reshape(-1, 1, 8, 8)),
        train=everything,
        evaluation={"validation": everything},
        kept=None if iteration == 1 else labels == torch.from_numpy(true_labels),
        features=features,
    )
    step = Recorder(
        MLNTStep(
            num_synthetic=3,
            replace_fraction=0.4,
            num_neighbors=10,
            inner_lr=0.1,
            momentum=0.9,
            weight_decay=1e-4,
            mentor=None if iteration == 1 else Network(network(1).eval()),
        )
    )
    schedule = Schedule(
        lr=0.02,
        lr_drop_steps=(15,),
        lr_drop_factor=0.1,
        meta_lr=0.2,
        meta_lr_ramp="linear",
        meta_lr_ramp_steps=10,
        meta_lr_decays=False,
        ema_decay_start=0.9,
        ema_decay_start_steps=10,
        ema_decay=0.99,
        teacher_weight=0.5,
        teacher_weight_ramp="linear",
        num_steps=20,
    )
    training = Training(
        network(0),
        step,
        data,
        schedule,
        seed=0,
        iteration=iteration,
        epochs=EPOCHS,
        batch_size=BATCH_SIZE,
        eval_batch_size=SIZE,
        augmentation=Augmentation(crop_padding=1, horizontal_flip=True),
    )
    list(training.epochs())
    return step.losses


@pytest.mark.parametrize("iteration", [1, 2])
def test_losses_of_20_steps_are_the_committed_ones(iteration: int) -> None:
    golden = json.loads(GOLDEN.read_text())[f"iteration_{iteration}"]
    losses = run(iteration)
    assert len(losses) == len(golden) == 20
    for (class_loss, meta_loss), (golden_class_loss, golden_meta_loss) in zip(losses, golden, strict=True):
        assert class_loss == pytest.approx(golden_class_loss, rel=1e-6)
        assert meta_loss == (None if golden_meta_loss is None else pytest.approx(golden_meta_loss, rel=1e-6))


if __name__ == "__main__":
    torch.set_num_threads(1)
    GOLDEN.write_text(json.dumps({f"iteration_{i}": run(i) for i in (1, 2)}, indent=1) + "\n")
