"""The trainings of gpu.py: CIFAR-10 as images, or digits, with half of the labels replaced."""

from __future__ import annotations

import io
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from steps import now

from mlnt.images.batches import Augmentation, ImageStore, MemoryImages
from mlnt.images.files import FileImages
from mlnt.images.statistics import input_statistics
from mlnt.method.schedules import Schedule
from mlnt.method.step import MLNTStep
from mlnt.networks import create_model
from mlnt.noise.matrices import symmetric_labels, validation_split
from mlnt.training.data import LabeledSet, TrainingData
from mlnt.training.loop import Training

Row = dict[str, Any]


class Pictures:
    """Files for `FileImages`."""

    def __init__(self, paths: list[Path]) -> None:
        self._paths = paths

    @property
    def decode(self) -> Callable[[Path], Any]:
        return decoded

    def __len__(self) -> int:
        return len(self._paths)

    def file(self, row: int) -> Path:
        return self._paths[row]


def decoded(path: Path | io.BytesIO) -> Any:
    """uint8 [3, H, W]."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).transpose(2, 0, 1)


@dataclass(frozen=True)
class Images:
    """uint8 images [N, 3, H, W] with true labels [N]; which of them are for test [N]."""

    pixels: Any
    labels: Any
    test: Any

    def part(self, size: int) -> Images:
        rows = np.random.default_rng(0).permutation(len(self.labels))[:size]
        return Images(self.pixels[rows], self.labels[rows], self.test[rows])

    def training(self, network: str, store: ImageStore, fast_weights: str, epochs: int, batch_size: int) -> Training:
        """Symmetric noise of 0.5 and a tenth for validation, its labels true; the paper's recipe, β dropped after two
        thirds, with `joint`'s η; `fast_weights` "" is cross entropy with its moving average."""
        draw = np.random.default_rng(1)
        train = np.flatnonzero(~self.test)
        apart = validation_split(self.labels[train], 0.1, draw)
        validation, train = train[apart], train[~apart]
        noisy = symmetric_labels(self.labels[train], 10, 0.5, False, "exact", draw)
        per_epoch = len(train) // batch_size
        drops, steps = (2 * epochs // 3 * per_epoch,), epochs * per_epoch
        eta = 0.4 if fast_weights else 0.0
        schedule = Schedule(
            0.2, drops, 0.1, eta, "linear", steps // 6, False, 0.99, steps // 6, 0.999, 0.5, "linear", steps
        )
        step = MLNTStep(10 if fast_weights else 0, 0.4, 10, 0.2, 0.9, 1e-4, fast_weights=fast_weights or "all")
        sets = {"validation": validation, "test": np.flatnonzero(self.test)}
        judged = {
            name: LabeledSet(torch.from_numpy(rows), torch.from_numpy(self.labels[rows])) for name, rows in sets.items()
        }
        # Neighbours by the pixels themselves: no network is pre-trained here.
        features = torch.from_numpy(self.pixels[train][:, :, ::2, ::2].reshape(len(train), -1).astype(np.float32))
        data = TrainingData(
            store, LabeledSet(torch.from_numpy(train), torch.from_numpy(noisy)), judged, features=features
        )
        return Training(
            create_model(network, num_classes=10, in_chans=3, seed=0).to(
                store.device, memory_format=torch.channels_last
            ),
            *(step, data, schedule),
            seed=0,
            iteration=1,
            epochs=epochs,
            batch_size=batch_size,
            eval_batch_size=1000,
            augmentation=Augmentation(4, True),
        )


def read_images(archive: Path | None) -> Images:
    if archive is None:
        from sklearn.datasets import load_digits

        digits = load_digits()
        pixels = np.repeat((digits.images[:, None] * 15.9).astype(np.uint8), 3, axis=1)
        return Images(pixels, digits.target.astype(np.int64), np.arange(len(pixels)) % 3 == 0)
    pixels, names, test = [], [], []
    with tarfile.open(archive) as content:
        for member in content:
            if member.isfile() and (file := content.extractfile(member)) is not None:
                split, name = member.name.split("/")[-3:-1]
                pixels.append(decoded(io.BytesIO(file.read())))
                names.append(name)
                test.append(split == "test")
    classes = {name: number for number, name in enumerate(sorted(set(names)))}
    return Images(np.stack(pixels), np.array([classes[name] for name in names]), np.array(test))


def trained(network: str, images: Images, fast_weights: str, device: torch.device, seconds: float, most: int) -> Row:
    """As many epochs as there are seconds for; stopped half-way, saved, and gone on with in another `Training`."""
    store = MemoryImages(
        torch.from_numpy(images.pixels), input_statistics(torch.from_numpy(images.pixels), "mean_image"), device, True
    )

    def begin(epochs: int) -> Training:
        training = images.training(network, store, fast_weights, epochs, 128)
        if device.type == "cuda":
            training.record()
        return training

    start = now(device)
    rehearsal = begin(2).epochs()
    next(rehearsal)  # with the recording
    start, before = now(device), start
    next(rehearsal)
    epoch = now(device) - start
    epochs = max(2, min(most, int((seconds - (now(device) - before)) / epoch)))
    training, stop = begin(epochs), epochs // 2
    start = now(device)
    rows = training.epochs()
    for _ in range(stop):
        next(rows)
    with tempfile.TemporaryFile() as file:
        torch.save(training.state_dict(), file)
        size = file.tell()
        file.seek(0)
        state = torch.load(file, map_location="cpu", weights_only=True)
    training = begin(epochs)
    training.load_state_dict(*state)
    history = [*training.history, *(row for row in training.epochs() if row)][-epochs:]
    last = training.history[-1]
    found = {f"{name} test": round(last[f"{name}_test_accuracy"] or 0, 4) for name in ("student", "teacher")}
    best = max(training.history, key=lambda row: row["student_validation_accuracy"] or 0)
    return {
        "epochs": epochs,
        "seconds an epoch": round((now(device) - start) / epochs, 2),
        "checkpoint MiB": round(size / 2**20, 1),
        "best student test": round(best["student_test_accuracy"] or 0, 4),
        **found,
        "result": "ran" if len(history) == epochs == last["epoch"] else "DIFFERENT: epochs are missing",
    }


def files_beside_memory(images: Images, device: torch.device) -> Row:
    """Two epochs of the loop on the same images, in memory and decoded by two workers."""
    losses = []
    with tempfile.TemporaryDirectory() as folder:
        some = images.part(512)
        paths = [Path(folder, f"{row}.png") for row in range(len(some.pixels))]
        for path, pixels in zip(paths, some.pixels, strict=True):
            Image.fromarray(pixels.transpose(1, 2, 0)).save(path)
        statistics = input_statistics(torch.from_numpy(some.pixels), "channel")
        stores: list[ImageStore] = [MemoryImages(torch.from_numpy(some.pixels), statistics, device, True)]
        stores.append(FileImages(Pictures(paths), statistics, device, channels_last=True, workers=2))
        for store in stores:
            training = some.training("preact_resnet_tiny", store, "classifier", 2, 64)
            losses.append([row["class_loss"] or 0.0 for row in training.epochs()])
            store.close()
    difference = max(abs(a - b) / a for a, b in zip(*losses, strict=True))
    return {"difference": difference, "result": "within rounding" if difference < 1e-3 else "DIFFERENT"}
