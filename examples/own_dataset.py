"""MLNT on a data set of one's own, from a training loop of one's own: any torch Dataset, any DataLoader, any device.

Here: scikit-learn's digits, half of whose training labels are replaced at random. `python examples/own_dataset.py`
"""

from __future__ import annotations

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mlnt import Batch, MLNTStep, Rates, TrainState, create_model, generator
from mlnt.networks import pre_logit_features
from mlnt.noise.matrices import symmetric_labels
from mlnt.seeding import numpy_generator

EPOCHS, LR = 20, 0.2


class NoisyDigits(Dataset[tuple[Tensor, int, int]]):
    """Images in [−1, 1], labels, and positions, by which the features of a sample are found."""

    def __init__(self, train: bool) -> None:
        images, labels = load_digits(return_X_y=True)
        part = slice(None, 1200) if train else slice(1200, None)
        self.images = torch.from_numpy(images[part]).float().view(-1, 1, 8, 8) / 8 - 1
        self.labels = labels[part].astype(np.int64)
        if train:
            self.labels = symmetric_labels(self.labels, 10, 0.5, False, "exact", numpy_generator(0, "noise"))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, position: int) -> tuple[Tensor, int, int]:
        return self.images[position], int(self.labels[position]), position


def train(step: MLNTStep, data: NoisyDigits, features: Tensor | None, meta_lr: float) -> TrainState:
    """Train a fresh network; what is random comes from named streams."""
    state = TrainState(create_model("preact_resnet_tiny", num_classes=10, in_chans=1, seed=0))
    loader = DataLoader(data, batch_size=64, shuffle=True, drop_last=True, generator=generator(0, "order"))
    number = 0
    for epoch in range(EPOCHS):
        rates = Rates(
            lr=LR if epoch < EPOCHS * 2 // 3 else LR / 10,
            meta_lr=meta_lr * min(1.0, (epoch + 1) / 5),
            ema_decay=0.99 if epoch < 5 else 0.997,
            teacher_weight=0.0,
        )
        for images, labels, positions in loader:
            draws = step.draw(len(labels), generator(0, "synthetic labels", number))
            near = None if features is None else features[positions]
            step(state, Batch(images, labels, features=near, draws=draws), rates)
            number += 1
    state.student.module.eval()
    state.teacher.module.eval()
    return state


@torch.no_grad()
def accuracy(module: torch.nn.Module, data: NoisyDigits) -> float:
    predicted = module(data.images).argmax(dim=1)
    return float((predicted == torch.from_numpy(data.labels)).float().mean())


def main() -> dict[str, float]:
    torch.set_num_threads(1)
    data, test = NoisyDigits(train=True), NoisyDigits(train=False)
    # Cross entropy is the step without synthetic mini-batches. Neighbours are found by what its network sees.
    plain = train(MLNTStep(0, 0.0, 1, 0.0, momentum=0.9, weight_decay=1e-4), data, None, meta_lr=0.0)
    with torch.no_grad():
        features = pre_logit_features(plain.student.module, data.images)
    step = MLNTStep(
        num_synthetic=5,
        replace_fraction=0.4,
        num_neighbors=10,
        inner_lr=0.1,
        momentum=0.9,
        weight_decay=1e-4,
        fast_weights="classifier",  # "all" is the paper's, and takes 13 forward and backward passes
    )
    meta = train(step, data, features, meta_lr=2.7)
    found = {
        "Cross Entropy": accuracy(plain.student.module, test),
        "MLNT student": accuracy(meta.student.module, test),
        "MLNT teacher": accuracy(meta.teacher.module, test),
    }
    for name, value in found.items():
        print(f"{name:14} {value:.1%} of the test images, after the last epoch")
    return found


if __name__ == "__main__":
    main()
