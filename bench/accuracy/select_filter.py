"""Which rule `filter.tau: auto` should be, selected on noisy labels alone.

    python bench/accuracy/select_filter.py FOLDER... --out results.csv

FOLDER is a run of `model.train: head` with `train.folds`, such as a folder pretrain-… that cells.py leaves. By the
out-of-fold probabilities of cross entropy each rule keeps training samples; logistic regression with the heads' weight
decay learns those, and is judged by how many of the given, noisy labels for validation it predicts: on samples that
had no part in what is kept. No true label is read.
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
from cleanlab.filter import find_label_issues
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from mlnt.method import confident
from mlnt.method.mentor import filter_by_margin
from pipeline.base import files
from pipeline.store import hdf5, models
from pipeline.store.dataset import TRAIN, VALIDATION, read_dataset, read_labels

WEIGHT_DECAY = 0.3


def rules(probs: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """What each rule keeps, boolean [n]."""
    scores = confident.LabelScores.of(probs, labels)
    pruned = find_label_issues(labels.numpy(), probs.numpy(), filter_by="prune_by_noise_rate", n_jobs=1)
    return {
        "all": torch.ones(len(labels), dtype=torch.bool),
        "by margin": filter_by_margin(probs, labels),
        "not pruned by noise rate": torch.from_numpy(~pruned),
        "not sure of another label": ~confident.sure(labels, scores, probs.shape[1]) | scores.agree,
        "all but the n-hat least likely": scores.given > confident.issue_threshold(labels, scores, probs.shape[1]),
    }


def agreement(rows: np.ndarray, labels: np.ndarray, held_out: np.ndarray, given: np.ndarray) -> float:
    """Share of the given labels of the held-out samples that a classifier predicts which has learnt what is kept."""
    model = LogisticRegression(C=1 / (WEIGHT_DECAY * len(rows)), max_iter=300)
    return float((model.fit(rows, labels).predict(held_out) == given).mean())


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
            train, held_out = labels.rows(TRAIN), labels.rows(VALIDATION)
            with hdf5.opened(files.EMBEDDINGS, "embed") as embeddings:
                table = embeddings["embeddings"][:]
            scaler = StandardScaler().fit(table[train])
            rows, others = scaler.transform(table[train]), scaler.transform(table[held_out])
            given = labels.labels[train]
            probs = models.load_tensors(models.out_of_fold_file("pretrain"))["probabilities"]
            for rule, kept in rules(probs, torch.from_numpy(given)).items():
                share = agreement(rows[kept.numpy()], given[kept.numpy()], others, labels.labels[held_out])
                writer.writerow([*about, rule, f"{kept.double().mean():.4f}", f"{share:.4f}"])
                file.flush()


if __name__ == "__main__":
    main()
