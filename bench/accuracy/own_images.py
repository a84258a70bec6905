"""cleanlab beside this package, on a run whose true labels are known, in lines of JSON like those of cells.py.

    python bench/accuracy/own_images.py FOLDER --cell garments --seed 0 --out results.jsonl
    python bench/accuracy/own_images.py FOLDER --stage pretrain --out results.jsonl

FOLDER is that of a run of `model.train: head`, up to stage embed. The labels are those that it has for training and
validation; judged are all of them and those for training. A line has test accuracies in percent, of logistic
regression on the standardised embeddings (on the given labels, and on the true ones) and of CleanLearning around it;
and how well wrong labels are found, by cleanlab from its out-of-fold probabilities.
With --stage it is method against method: FOLDER has models/STAGE, of any network, trained with `train.folds`. What it
says of the training labels is listed by cleanlab's rule and by this package's, out of fold and in sample.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cleanlab.classification import CleanLearning
from cleanlab.filter import find_label_issues
from cleanlab.rank import get_label_quality_scores
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits
from torch import Tensor

from mlnt.method.confident import LabelScores, issue_thresholds, least_share
from mlnt.method.mentor import filter_quality
from pipeline.base import files
from pipeline.base.errors import UserError
from pipeline.store import cards, hdf5, models
from pipeline.store.dataset import TEST, TRAIN, VALIDATION, Dataset, Labels, read_dataset, read_labels
from pipeline.systems.registry import BY_STAGE
from pipeline.use.prediction.classifier import Classifier

FOLDS = 5
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1)
"""Of sklearn's C, the inverse of the weight decay."""

Floats = NDArray[np.floating]


def embedded(dataset: Dataset) -> Floats:
    """The embeddings of a run [N, D].

    Raises:
        UserError: the file is missing, damaged or from another run.
    """
    with hdf5.opened(files.EMBEDDINGS, "embed") as file:
        if "embeddings" not in file:
            raise UserError(f"{files.EMBEDDINGS}: no embeddings in it; expected a run of model.train: head")
        hdf5.check_origin(file, files.EMBEDDINGS, "dataset", dataset.digest, "embed")
        return file["embeddings"][:].astype(np.float32)


def regression(C: float) -> LogisticRegression:
    return LogisticRegression(C=C, max_iter=300)


def out_of_fold(x: Floats, given: NDArray[np.int64]) -> tuple[float, Floats]:
    """The strength whose cross-validated accuracy on the given labels is best, and its probabilities [n, C]."""
    found = {C: cross_val_predict(regression(C), x, given, cv=FOLDS, method="predict_proba") for C in STRENGTHS}
    accuracies = {C: float((probs.argmax(axis=1) == given).mean()) for C, probs in found.items()}
    print({C: round(100 * accuracy, 1) for C, accuracy in accuracies.items()}, "% of the given labels, out of fold")
    best = max(accuracies, key=accuracies.__getitem__)
    return best, found[best]


def found(score: Floats, listed: NDArray[np.bool_], wrong: NDArray[np.bool_]) -> dict[str, float]:
    """How well the low scores, and the listed labels, are the wrong ones."""
    quality = filter_quality(score, ~listed, wrong)
    precision, recall = quality.precision, quality.recall
    values = {
        "auc": quality.auc,
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / (precision + recall) if precision + recall else 0.0,
        "false_alarms": float(listed[~wrong].mean()),
        "wrong": float(wrong.mean()),
    }
    return {name: round(value, 4) for name, value in values.items()}


def by_cleanlab(given: NDArray[np.int64], probs: Floats) -> tuple[Floats, NDArray[np.bool_]]:
    """cleanlab's scores of given labels, and which of them it lists."""
    score: Floats = get_label_quality_scores(given, probs, method="self_confidence")
    return score, find_label_issues(given, probs, n_jobs=1)


def on_embeddings(labels: Labels, embeddings: Floats) -> dict[str, Any]:
    start = time.perf_counter()
    rows, test = np.flatnonzero(np.isin(labels.split, (TRAIN, VALIDATION))), labels.rows(TEST)
    scaler = StandardScaler().fit(embeddings[rows])
    x, x_test = scaler.transform(embeddings[rows]), scaler.transform(embeddings[test])
    given, true = labels.labels[rows], labels.true_labels
    C, probs = out_of_fold(x, given)
    clean = CleanLearning(regression(C), seed=0, find_label_issues_kwargs={"n_jobs": 1})
    clean.fit(x, given)
    seconds = round(time.perf_counter() - start, 1)
    score, listed = by_cleanlab(given, probs)
    wrong, training = true[rows] != given, labels.split[rows] == TRAIN
    issues = {
        "all": found(score, listed, wrong),
        "training": found(score[training], listed[training], wrong[training]),
    }
    result: dict[str, Any] = {"C": C, "seconds": seconds, "issues": issues}
    if len(test):
        fitted = {
            "regression": regression(C).fit(x, given),
            "clean_learning": clean,
            "regression_on_true_labels": regression(C).fit(x, true[rows]),
        }
        result["test"] = {
            name: round(100 * float((model.predict(x_test) == true[test]).mean()), 2) for name, model in fitted.items()
        }
    return result


def of_stage(dataset: Dataset, labels: Labels, stage: str) -> dict[str, Any]:
    """What both rules make of a stage's probabilities of the training labels.

    Raises:
        UserError: the stage was not trained, or without folds.
    """
    rows = labels.rows(TRAIN)
    given, wrong = labels.labels[rows], labels.true_labels[rows] != labels.labels[rows]
    model = Classifier.load(cards.folder(stage))
    if not model.card.folds:
        raise UserError(f"{model.folder}: trained without folds; expected train.folds: 2 or more")

    def seen(split: int) -> Tensor:
        """The probabilities that the model gives to the samples of a split."""
        of_split = labels.rows(split)
        parts = np.array_split(of_split, -(-len(of_split) // 512))
        return torch.cat([model.probabilities(dataset.images[part]) for part in parts])

    def listed(probs: Tensor, split: int, at_least: float = 0.0) -> tuple[Floats, NDArray[np.bool_]]:
        """The scores of the given labels, and which are listed, as stage evaluate does it."""
        target = torch.from_numpy(labels.labels[labels.rows(split)])
        scores = LabelScores.of(probs, target)
        thresholds = issue_thresholds(target, scores, probs.shape[1], at_least)
        return scores.given.numpy(), (scores.given <= thresholds).numpy()

    _, of_validation = listed(seen(VALIDATION), VALIDATION)
    views = {
        "out of fold": (models.load_tensors(models.out_of_fold_file(stage))["probabilities"], 0.0),
        "in sample": (seen(TRAIN), least_share(torch.from_numpy(of_validation))),
    }
    return {
        name: {
            "mlnt": found(*listed(probs, TRAIN, at_least), wrong),
            "cleanlab": found(*by_cleanlab(given, probs.double().numpy()), wrong),
        }
        for name, (probs, at_least) in views.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cell", help="the name of the cell; the folder's where it is left out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stage", choices=list(BY_STAGE), help="judge by its networks instead of by the embeddings")
    parser.add_argument("--out", type=Path, required=True, help="JSON, a line each; appended to")
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    line = {"cell": arguments.cell or arguments.folder.resolve().name, "seed": arguments.seed}
    os.chdir(arguments.folder)
    dataset = read_dataset()
    labels = read_labels(dataset)
    if labels.true_labels is None:
        raise UserError(
            f"{arguments.folder}: the true labels are unknown; expected injected noise, or a column true_label"
        )
    warnings.simplefilter("ignore", ConvergenceWarning)  # 300 steps are what is asked for
    with threadpool_limits(1):  # on cores that others use, two threads took sixty times as long
        if arguments.stage:
            line |= {"stage": arguments.stage, "issues": of_stage(dataset, labels, arguments.stage)}
        else:
            line |= {"stage": "cleanlab", **on_embeddings(labels, embedded(dataset))}
    print(json.dumps(line, indent=2))
    with out.open("a", encoding="utf-8") as file:
        print(json.dumps(line), file=file)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
