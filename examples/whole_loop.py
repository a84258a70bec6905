"""The whole loop on a small folder of images: init, train, find, review, correct, train again, predict.

The commands run in this process here, one after the other, to be done in seconds; on a terminal it is `mlnt init
--images photos work`, then `dvc repro` for all the stages. The folder is made of scikit-learn's digits, four tenths
of those for training in the folder of another class. `python examples/whole_loop.py [FOLDER]`
"""

from __future__ import annotations

import contextlib
import csv
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from mlnt.noise.matrices import symmetric_labels
from mlnt.seeding import numpy_generator
from pipeline.base.files import read_csv, read_json
from pipeline.cli import app

# A small network from nothing: the preset's own, pretrained, is for photographs. A file in presets/ is a preset.
PRESET = """\
# Small grey images, in seconds
data: {channels: 1, resize: }
model: {name: preact_resnet_tiny, pretrained: false, train: all, normalize: mean_image}
train: {epochs: 12, batch_size: 64, lr: 0.2, lr_drop_epochs: [8], weight_decay: 1.0e-4, folds: 0}
compute: {threads: 1}
mlnt: {alpha: 0.1, eta: 2.0}
filter: {tau: 0.2}
run: {workers: 0}
"""
STAGES = (
    "look", "download", "inject-noise", "embed", "pretrain", "extract-features", "meta-train --iteration 1",
    "meta-train --iteration 2", "meta-train --iteration 3", "meta-train --iteration 2 --control",
    "meta-train --iteration 3 --control", "evaluate", "report",
)  # fmt: skip


def mlnt(command: str, *more: str) -> None:
    if status := app([*command.split(), *more], standalone_mode=False):
        raise SystemExit(status)


def make_photos(folder: Path) -> dict[str, str]:
    """SPLIT/CLASS/FILE for 1,500 images; returns path → the true class."""
    images, true = load_digits(return_X_y=True)
    images, true = images[:1500].reshape(-1, 8, 8), true[:1500]
    labels = true.astype(np.int64)
    labels[:900] = symmetric_labels(labels[:900], 10, 0.4, True, "exact", numpy_generator(0, "wrong folder"))
    truth = {}
    for i, image in enumerate(images):
        path = f"{'train' if i < 900 else 'test'}/{labels[i]}/{i}.png"
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image * 15).astype(np.uint8)).save(folder / path)
        truth[path] = str(true[i])
    return truth


def review(truth: dict[str, str]) -> list[dict[str, str]]:
    """What a person decides in reports/review.html about the images listed there: here, by the truth."""
    decisions = []
    for row in read_csv(Path("reports/label_issues.csv")):
        if row["is_label_issue"] != "True":
            continue
        path, given = row["name"], row["given_label"]
        right = truth[path] == given
        kind = {"decision": "keep", "label": ""} if right else {"decision": "relabel", "label": truth[path]}
        decisions.append({"path": path, "given_label": given, **kind})
    return decisions


def accuracy() -> float:
    metrics: dict[str, Any] = read_json(Path("metrics/summary.json"))
    return float(metrics["test_accuracy"]["mlnt_3"])


def main(folder: Path) -> dict[str, float]:
    truth = make_photos(folder / "photos")
    wrong = {path for path, label in truth.items() if path.split("/")[1] != label}
    mlnt("init", "--images", str(folder / "photos"), str(folder / "work"))
    with contextlib.chdir(folder / "work"):
        Path("presets/small.yaml").write_text(PRESET, encoding="utf-8")
        mlnt("preset small")
        for stage in STAGES:
            mlnt(stage)
        before = accuracy()

        decisions = review(truth)
        with Path("decisions.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, ["path", "given_label", "decision", "label"])
            writer.writeheader()
            writer.writerows(decisions)
        Path("presets/corrected.yaml").write_text("# As reviewed\nnoise: {corrections: decisions.csv}\n", "utf-8")
        mlnt("preset corrected")
        for stage in STAGES[STAGES.index("inject-noise") :]:  # `dvc repro` knows where to begin
            mlnt(stage)
        after = accuracy()

        mlnt("predict", str(folder / "photos/test/0"), "--topk", "1")
        predicted = [row["label"] for row in read_csv(Path("predictions.csv"))]

    found = {row["path"] for row in decisions} & wrong
    print(f"{len(decisions)} labels reviewed, {len(found)} of {len(wrong)} wrong ones among them")
    print(f"test accuracy of MLNT 3: {before:.1%} before, {after:.1%} after")
    print(f"{predicted.count('0')} of {len(predicted)} images in photos/test/0 are taken for a 0")
    return {
        "reviewed": len(decisions),
        "found": len(found) / len(wrong),
        "before": before,
        "after": after,
        "zeros": predicted.count("0") / len(predicted),
    }


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(sys.argv[1] if len(sys.argv) > 1 else temporary).absolute())
