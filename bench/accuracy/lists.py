"""The lists of images that docs/photographs.md measures on, as CSV files for `data.root`.

    python bench/accuracy/lists.py garments FOLDER --out garments.csv
    python bench/accuracy/lists.py cifar10n FOLDER --labels CIFAR-10_human.pt --label-set worse_label --out worse.csv

garments: of a folder of classes in any splits (clothing-dataset-small) 1,500 images to train on, all others for test.
cifar10n: of CIFAR-10 as CLASS/INDEX.jpg, the index being torchvision's, below train/ and test/, 12,000 images to train
on, with human labels and the true ones beside them, and 3,000 for test. Both draw by NumPy's default generator, seed 0.
"""

from __future__ import annotations

import argparse
import csv
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from pipeline.sources.human_labels import load_human_labels

Row = tuple[Path, str, str, str]
"""File, given label, split, true label."""


def garments(folder: Path, train: int = 1500) -> Iterable[Row]:
    paths = sorted(folder.rglob("*.jpg"), key=lambda path: (path.parent.name, path.name))
    for at, i in enumerate(np.random.default_rng(0).permutation(len(paths))):
        label = paths[i].parent.name
        yield paths[i], label, "train" if at < train else "test", label


def cifar10n(folder: Path, labels: Path, label_set: str) -> Iterable[Row]:
    of_index = {int(path.stem): path for path in (folder / "train").glob("*/*.jpg")}
    test = sorted((folder / "test").glob("*/*.jpg"), key=str)
    classes = sorted({path.parent.name for path in test})
    true, given = load_human_labels(labels, label_set)
    generator = np.random.default_rng(0)
    for i in generator.permutation(len(of_index))[:12_000]:
        yield of_index[int(i)], classes[given[i]], "train", classes[true[i]]
    for i in generator.permutation(len(test))[:3_000]:
        label = test[i].parent.name
        yield test[i], label, "test", label


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["garments", "cifar10n"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--labels", type=Path, help="of cifar10n: its label file")
    parser.add_argument("--label-set", default="worse_label")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    human = arguments.what == "cifar10n"
    rows = cifar10n(arguments.folder, arguments.labels, arguments.label_set) if human else garments(arguments.folder)
    with arguments.out.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "split", *(["true_label"] if human else [])])
        for path, given, split, true in rows:
            place = os.path.relpath(path, arguments.out.parent)
            writer.writerow([place, given, split, *([true] if human else [])])


if __name__ == "__main__":
    main()
