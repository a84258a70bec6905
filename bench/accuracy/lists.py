"""The lists of images that docs/photographs.md measures on, as CSV files for `data.root`.

    python bench/accuracy/lists.py garments FOLDER --out garments.csv
    python bench/accuracy/lists.py cifar10n FOLDER --labels CIFAR-10_human.pt --label-set worse_label --out worse.csv

garments: of a folder of classes in any splits (clothing-dataset-small) 1,500 images to train on, all others for test.
cifar10n: of CIFAR-10 as CLASS/INDEX.jpg, the index being torchvision's, below train/ and test/, 12,000 images to train
on, with human labels and the true ones beside them, and 3,000 for test. Both draw by NumPy's default generator, seed 0.
With `--limit 11112 5000` it takes the images that the preset cifar10-16px takes of that folder.
"""

from __future__ import annotations

import argparse
import csv
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from pipeline.sources.human_labels import load_human_labels
from pipeline.sources.limit import limited_rows
from pipeline.store.dataset import TEST, TRAIN

Row = tuple[Path, str, str, str]
"""File, given label, split, true label."""


def garments(folder: Path, train: int = 1500) -> Iterable[Row]:
    paths = sorted(folder.rglob("*.jpg"), key=lambda path: (path.parent.name, path.name))
    for at, i in enumerate(np.random.default_rng(0).permutation(len(paths))):
        label = paths[i].parent.name
        yield paths[i], label, "train" if at < train else "test", label


def cifar10n(folder: Path, labels: Path, label_set: str, limit: list[int] | None) -> Iterable[Row]:
    paths = [sorted((folder / split).glob("*/*.jpg"), key=str) for split in ("train", "test")]
    train, test = limited(*paths, limit) if limit else drawn(*paths)
    true, given = load_human_labels(labels, label_set)
    classes = sorted({path.parent.name for path in test})
    for path in train:
        yield path, classes[given[int(path.stem)]], "train", classes[true[int(path.stem)]]
    for path in test:
        yield path, path.parent.name, "test", path.parent.name


def drawn(train: list[Path], test: list[Path]) -> tuple[list[Path], list[Path]]:
    by_index = sorted(train, key=lambda path: int(path.stem))
    generator = np.random.default_rng(0)
    first, second = (generator.permutation(len(paths)) for paths in (train, test))
    return [by_index[i] for i in first[:12_000]], [test[i] for i in second[:3_000]]


def limited(train: list[Path], test: list[Path], limits: list[int]) -> tuple[list[Path], list[Path]]:
    """What `data.limit` and `data.limit_test` keep, as they choose by the folders' names."""
    paths = [*train, *test]
    _, labels = np.unique([path.parent.name for path in paths], return_inverse=True)
    split = np.repeat([TRAIN, TEST], [len(train), len(test)]).astype(np.uint8)
    rows = limited_rows(labels, split, *limits)
    return [paths[row] for row in rows if split[row] == TRAIN], [paths[row] for row in rows if split[row] == TEST]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["garments", "cifar10n"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--labels", type=Path, help="of cifar10n: its label file")
    parser.add_argument("--label-set", default="worse_label")
    parser.add_argument("--limit", type=int, nargs=2, metavar=("TRAIN", "TEST"), help="of cifar10n: so many images")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    human = arguments.what == "cifar10n"
    if human:
        rows = cifar10n(arguments.folder, arguments.labels, arguments.label_set, arguments.limit)
    else:
        rows = garments(arguments.folder)
    with arguments.out.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "split", *(["true_label"] if human else [])])
        for path, given, split, true in rows:
            place = os.path.relpath(path, arguments.out.parent)
            writer.writerow([place, given, split, *([true] if human else [])])


if __name__ == "__main__":
    main()
