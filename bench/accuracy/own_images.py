"""cleanlab beside this package: on the embeddings of a run of `model.train: head` whose true labels are known.

    python bench/accuracy/own_images.py FOLDER --cell garments --seed 0 --out results.jsonl
    python bench/accuracy/own_images.py FOLDER --pred-probs out_of_fold.npz --out results.jsonl

FOLDER has data/dataset.h5, labels.h5 and embeddings.h5. The labels are those that the run has for training and
validation, judged are all of them and those for training. Appended is a line of JSON, like those of cells.py: test
accuracies in percent, of logistic regression on the standardised embeddings (on the given labels, and on the true ones)
and of CleanLearning around it; and how well wrong labels are found, by cleanlab from its out-of-fold probabilities.
With --pred-probs, the same from those of another model: an .npz with `rows` of the data set and `pred_probs`
[len(rows), classes], so that it is method against method.
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
from cleanlab.classification import CleanLearning
from cleanlab.filter import find_label_issues
from cleanlab.rank import get_label_quality_scores
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from mlnt.method.mentor import filter_quality
from pipeline.base import files
from pipeline.base.errors import UserError
from pipeline.store import hdf5
from pipeline.store.dataset import TEST, TRAIN, VALIDATION, Labels, read_dataset, read_labels

FOLDS = 5
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1)
"""Of sklearn's C, the inverse of the weight decay."""

Floats = NDArray[np.floating]


def read(folder: Path) -> tuple[Labels, Floats]:
    """The labels of a run, and its embeddings [N, D].

    Raises:
        UserError: a file is missing, damaged or from another run, or the true labels are unknown.
    """
    os.chdir(folder)
    dataset = read_dataset()
    labels = read_labels(dataset)
    if labels.true_labels is None:
        raise UserError(f"{folder}: the true labels are unknown; expected injected noise, or a column true_label")
    with hdf5.opened(files.EMBEDDINGS, "embed") as file:
        if "embeddings" not in file:
            raise UserError(f"{folder}: no embeddings; expected a run of model.train: head")
        hdf5.check_origin(file, files.EMBEDDINGS, "dataset", dataset.digest, "embed")
        return labels, file["embeddings"][:].astype(np.float32)


def regression(C: float) -> LogisticRegression:
    return LogisticRegression(C=C, max_iter=300)


def out_of_fold(x: Floats, given: NDArray[np.int64]) -> tuple[float, Floats]:
    """The strength whose cross-validated accuracy on the given labels is best, and its probabilities [n, C]."""
    found = {C: cross_val_predict(regression(C), x, given, cv=FOLDS, method="predict_proba") for C in STRENGTHS}
    accuracies = {C: float((probs.argmax(axis=1) == given).mean()) for C, probs in found.items()}
    print({C: round(100 * accuracy, 1) for C, accuracy in accuracies.items()}, "% of the given labels, out of fold")
    best = max(accuracies, key=accuracies.__getitem__)
    return best, found[best]


def judged(labels: Labels, rows: NDArray[np.int64], probs: Floats) -> dict[str, Any]:
    """What cleanlab makes of out-of-fold probabilities of these samples, over all of them and those for training."""
    given = labels.labels[rows]
    wrong = labels.true_labels[rows] != given
    score = get_label_quality_scores(given, probs, method="self_confidence")
    listed = find_label_issues(given, probs, n_jobs=1)

    def over(part: NDArray[np.bool_]) -> dict[str, float]:
        quality = filter_quality(score[part], ~listed[part], wrong[part])
        precision, recall = quality.precision, quality.recall
        values = {
            "auc": quality.auc,
            "precision": precision,
            "recall": recall,
            "f1": 2 * precision * recall / (precision + recall),
            "false_alarms": float(listed[part & ~wrong].mean()),
            "wrong": float(wrong[part].mean()),
        }
        return {name: round(value, 4) for name, value in values.items()}

    return {"all": over(np.ones(len(rows), dtype=bool)), "training": over(labels.split[rows] == TRAIN)}


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
    result: dict[str, Any] = {"C": C, "seconds": seconds, "issues": judged(labels, rows, probs)}
    if len(test):
        models = {
            "regression": regression(C).fit(x, given),
            "clean_learning": clean,
            "regression_on_true_labels": regression(C).fit(x, true[rows]),
        }
        result["test"] = {
            name: round(100 * float((model.predict(x_test) == true[test]).mean()), 2) for name, model in models.items()
        }
    return result


def of_network(labels: Labels, path: Path) -> dict[str, Any]:
    with np.load(path) as file:
        rows, probs = file["rows"], file["pred_probs"].astype(np.float64)
    if len(rows) != len(probs) or not np.isin(labels.split[rows], (TRAIN, VALIDATION)).all():
        raise UserError(f"{path}: {rows.shape}, {probs.shape}; expected rows for training or validation, and theirs")
    return judged(labels, rows, probs / probs.sum(axis=1, keepdims=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--cell", help="the name of the cell; the folder's where it is left out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pred-probs", type=Path, help="out-of-fold probabilities of another model")
    parser.add_argument("--out", type=Path, required=True, help="JSON, a line each; appended to")
    arguments = parser.parse_args()
    out, pred_probs = arguments.out.resolve(), arguments.pred_probs and arguments.pred_probs.resolve()
    labels, embeddings = read(arguments.folder)
    warnings.simplefilter("ignore", ConvergenceWarning)  # 300 steps are what is asked for
    line = {"cell": arguments.cell or arguments.folder.resolve().name, "seed": arguments.seed, "stage": "cleanlab"}
    with threadpool_limits(1):  # on cores that others use, two threads took sixty times as long
        line |= on_embeddings(labels, embeddings)
    if pred_probs is not None:
        line["issues_of_network"] = of_network(labels, pred_probs)
    print(json.dumps(line, indent=2))
    with out.open("a", encoding="utf-8") as file:
        print(json.dumps(line), file=file)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
