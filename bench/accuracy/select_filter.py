"""Which rule `filter.tau: auto` should be, selected on noisy labels alone.

    python bench/accuracy/select_filter.py FOLDER... --out results.csv

FOLDER is a run of `model.train: head` with `train.folds`, such as a folder pretrain-… that cells.py leaves. By the
out-of-fold probabilities of cross entropy each rule keeps samples; logistic regression learns those outside of a
part, and is judged by how many of the given, noisy labels of the whole part it predicts. No true label is read.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import warnings
from pathlib import Path

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from mlnt.method import confident
from pipeline.base import files
from pipeline.store import hdf5, models
from pipeline.store.dataset import TRAIN, read_dataset, read_labels

WEIGHT_DECAY = 0.3


def rules(probs: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """What each rule keeps, boolean [n]."""
    classes = probs.shape[1]
    scores = confident.LabelScores.of(probs, labels)
    means = confident.confidence(labels, scores, classes)
    other = confident.sure(labels, scores, classes) & ~scores.agree
    return {
        "all": torch.ones(len(labels), dtype=torch.bool),
        "not sure of another label": ~other,
        "the same, or the given one has half of its class's mean": ~(other & (scores.given < means[labels] / 2)),
        "the same, or the other is less than three times as likely": ~(other & (scores.highest > 3 * scores.given)),
        "not pruned by noise rate": ~confident.pruned_by_noise_rate(probs, labels),
        "all but the n-hat least likely": scores.given > confident.issue_threshold(labels, scores, classes),
    }


def agreement(rows: np.ndarray, labels: np.ndarray, kept: np.ndarray, part: np.ndarray) -> float:
    """Share of the given labels that networks predict which have not seen them."""
    right = 0
    for j in np.unique(part):
        learnt = kept & (part != j)
        model = LogisticRegression(C=1 / (WEIGHT_DECAY * learnt.sum()), max_iter=100)
        model.fit(rows[learnt], labels[learnt])
        right += int((model.predict(rows[part == j]) == labels[part == j]).sum())
    return right / len(labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", ConvergenceWarning)
    out = arguments.out.resolve()
    with out.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["kind", "rate", "seed", "rule", "kept", "agreement"])
        for folder in [each.resolve() for each in arguments.folders]:
            os.chdir(folder)
            (record,) = json.loads(Path("records/noise.json").read_text())
            about = [record["params"][key] for key in ("noise.kind", "noise.rate", "seed")]
            labels = read_labels(read_dataset())
            train = labels.rows(TRAIN)
            with hdf5.opened(files.EMBEDDINGS, "embed") as embeddings:
                rows = StandardScaler().fit_transform(embeddings["embeddings"][:][train])
            given = labels.labels[train]
            tensors = models.load_tensors(models.out_of_fold_file("pretrain"))
            for rule, kept in rules(tensors["probabilities"], torch.from_numpy(given)).items():
                share = agreement(rows, given, kept.numpy(), tensors["part"].numpy())
                writer.writerow([*about, rule, f"{kept.double().mean():.4f}", f"{share:.4f}"])
                file.flush()


if __name__ == "__main__":
    main()
