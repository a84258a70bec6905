"""Stage evaluate: every model on the test split, and the labels that are probably wrong."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mlnt.method.confident import LabelScores, issue_thresholds
from mlnt.noise.matrices import realised_matrix
from mlnt.training.evaluation import Confusion, accuracy, confusion
from mlnt.training.loop import MODELS
from mlnt.training.passes import Network
from pipeline.base import files
from pipeline.base.errors import UserError
from pipeline.params.load import values_of
from pipeline.params.schema import Params
from pipeline.stages.label_issues import LabelIssues, other_labels
from pipeline.store import cards, models
from pipeline.store.dataset import DROPPED, SPLITS, TEST, TRAIN, VALIDATION
from pipeline.store.record import Record
from pipeline.systems.registry import DEFAULT, FINAL, GROUPS, Group, GroupName
from pipeline.training import device, folds
from pipeline.training.filtering import least_doubted
from pipeline.training.plan import System
from pipeline.training.processes import joined, require_same
from pipeline.training.session import Session

SUMMARY = files.METRICS / "summary.json"
CONFUSION = files.PLOTS / "confusion.csv"


def processes(params: Params) -> int:
    """How many processes the stage is worth: `run.processes`, where whole networks predict."""
    return 1 if params.model.train == "head" else device.processes(params)


def run(params: Params, group: GroupName | None = None) -> str:
    """Write accuracies, confusion matrices and the table of label issues; what cannot be known is left out.

    Processes that a launcher has started divide the predictions, and rank 0 writes.

    Args:
        group: evaluate those of this group that were trained, instead of the systems of the default run.

    Raises:
        UserError: inputs are missing, damaged or from another run.
    """
    with joined(params, processes(params)) as ranks, closing(Session.open(params, ranks)) as session:
        if ranks.size > 1:
            require_same(ranks, _about(session))
        evaluation = Evaluation(session)
        return _default(evaluation) if group is None else _of_group(evaluation, GROUPS[group])


def _about(session: Session) -> Record:
    """What the numbers come from, of all models that there are."""
    weights = {str(path): files.file_digest(path) for path in files.MODELS.glob("*/*.safetensors")}
    inputs = {"labels": session.labels.digest, **weights}
    return Record.of("evaluate", values_of(session.params, ("model", "compute", "evaluate")), [__name__], inputs)


def _default(evaluation: Evaluation) -> str:
    metrics, confusions, issues = evaluation.judge(DEFAULT)
    final = issues[FINAL]
    predictions = evaluation.final_predictions()
    every = evaluation.with_held_out({FINAL: final})[FINAL]
    if evaluation.session.ranks.rank:
        return ""
    files.write_json(files.EVALUATION, metrics)
    files.write_json(SUMMARY, _summary(metrics))
    files.write_csv(files.CONFUSIONS, _confusion_rows(evaluation.dataset.class_names, confusions))
    files.write_csv(CONFUSION, predictions)
    files.write_csv(files.NOISE_ESTIMATED, evaluation.estimated_matrix(final))
    files.write_csv(files.LABEL_ISSUES, evaluation.issue_rows(FINAL, every))
    return f"evaluate: {len(DEFAULT)} systems; probably wrong are {evaluation.doubted(every)} labels"


def _of_group(evaluation: Evaluation, group: Group) -> str:
    trained = [system for system in group.systems if system.in_tables and cards.is_there(system.stage)]
    if not trained:
        raise UserError(f"{files.MODELS}: no {group.stage} was trained; `dvc repro {group.dvc_yaml}` trains them")
    metrics, confusions, issues = evaluation.judge(trained)
    every = evaluation.with_held_out(issues)
    if evaluation.session.ranks.rank:
        return ""
    # With the digest of their labels: they may be older than the default run.
    files.write_json(group.evaluation, {"labels_digest": evaluation.labels.digest, **metrics})
    files.write_csv(group.confusions, _confusion_rows(evaluation.dataset.class_names, confusions))
    rows = ({"system": system.name, **row} for system, of in every.items() for row in evaluation.issue_rows(system, of))
    files.write_csv(group.label_issues, rows)
    return f"evaluate: {len(trained)} {group.name}: {', '.join(system.title for system in trained)}"


class Evaluation:
    """Computes accuracies, confusion matrices and label issues of models from one session.

    Attributes:
        of_validation: the label issues that each system finds in the validation split, once it was judged.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self.params = session.params
        self.dataset = session.dataset
        self.labels = session.labels
        same = self.dataset.same_picture
        same = None if same is None else np.where(self.labels.split == DROPPED, -1, same)
        self.also_labelled = other_labels(same, self.labels.labels)
        self.of_validation: dict[System, LabelIssues] = {}

    def count(self, split: int) -> int:
        return len(self.labels.rows(split))

    def judge(
        self, systems: Sequence[System]
    ) -> tuple[dict[str, Any], dict[tuple[System, str, str], Confusion], dict[System, LabelIssues]]:
        """The metrics of these systems by name, their confusion matrices on the test split, their label issues in
        the training split; sets `of_validation`."""
        metrics: dict[str, Any] = {"samples": {name: self.count(i) for i, name in enumerate(SPLITS)}}
        confusions: dict[tuple[System, str, str], Confusion] = {}
        self.of_validation = self.label_issues(systems, VALIDATION)
        issues = self.label_issues(systems, TRAIN)
        for system in systems:
            values, counts = self.accuracies(system)
            metrics[system.name] = {**values, "label_issues": issues[system].metrics()}
            confusions |= {(system, *kind): matrix for kind, matrix in counts.items()}
        return metrics, confusions, issues

    def accuracies(self, system: System) -> tuple[dict[str, Any], dict[tuple[str, str], Confusion]]:
        """model → choice → accuracies, and the confusion matrices on the test split."""
        card = cards.read_card(system.stage, self.params.model.name, self.labels.digest)
        values: dict[str, Any] = {
            "mentor": card.mentor,
            "best_epoch": card.best_epoch,
            "kept_fraction": card.kept_fraction,
            "kept_purity": card.kept_purity,
        }
        counts: dict[tuple[str, str], Confusion] = {}
        kinds = [(model, choice) for model in MODELS for choice in models.CHOICES]
        networks = [self._network(system, model, choice) for model, choice in kinds]
        on_validation, labels = self._logits(networks, VALIDATION)
        for (model, choice), logits in zip(kinds, on_validation, strict=True):
            values.setdefault(model, {})[choice] = {"validation_accuracy": accuracy(logits, labels)}
        if self.count(TEST):
            on_test, labels = self._logits(networks, TEST)
            for (model, choice), logits in zip(kinds, on_test, strict=True):
                counts[model, choice] = matrix = confusion(logits, labels)
                by_class = dict(zip(self.dataset.class_names, matrix.per_class_accuracy, strict=True))
                values[model][choice] |= {
                    "test_accuracy": accuracy(logits, labels),
                    "test_accuracy_by_class": by_class,
                }
        return values, counts

    def label_issues(self, systems: Sequence[System], split: int) -> dict[System, LabelIssues]:
        """The label issues that each system finds in a split: out of fold in the training split where it was trained in
        folds, otherwise by its best model on validation, from one reading of the images."""
        rows, true = self.labels.rows(split), self.labels.true_labels
        given = self.labels.labels[rows]
        return {
            system: LabelIssues(
                rows=rows,
                given=given,
                predicted=scores.predicted.numpy(),
                score=scores.given.numpy(),
                highest=scores.highest.numpy(),
                threshold=self._thresholds(system, split, scores),
                contradicted=np.isin(rows, list(self.also_labelled)),
                known=self.labels.known[rows],
                wrong=None if true is None else true[rows] != given,
            )
            for system, scores in folds.label_scores(self.session, systems, split, f"evaluate, {SPLITS[split]}").items()
        }

    def _thresholds(self, system: System, split: int, scores: LabelScores) -> NDArray[np.float64]:
        """At or below which score each label of this split is listed: from the data, or the number that was chosen."""
        chosen, labels, at_least = self.params.evaluate.label_issue_threshold, self.session.split(split).labels, 0.0
        if chosen is not None:
            return np.full(len(labels), chosen)
        if split == TRAIN and folds.learnt(self.session, system):
            others = self.of_validation[system]
            at_least = least_doubted(self.session, torch.from_numpy(others.score <= others.threshold))
        return issue_thresholds(labels, scores, len(self.dataset.class_names), at_least).numpy()

    def with_held_out(self, training: dict[System, LabelIssues]) -> dict[System, LabelIssues]:
        """The label issues of the training split joined by those of validation and test."""
        held_out = [self.of_validation]
        if self.count(TEST):
            held_out.append(self.label_issues(list(training), TEST))
        return {
            system: LabelIssues.joined([issues, *(of[system] for of in held_out)])
            for system, issues in training.items()
        }

    def doubted(self, issues: LabelIssues) -> str:
        """How many labels of each split are issues, for people."""
        split, listed = self.labels.split[issues.rows], issues.listed()
        words = [
            f"{int(listed[split == i].sum())} of {self.count(i)} {name}"
            for i, name in enumerate(("training", *SPLITS[1:]))
            if self.count(i)
        ]
        return ", ".join(words)

    def issue_rows(self, system: System, issues: LabelIssues) -> Iterator[dict[str, Any]]:
        """The table of label issues in cleanlab's columns and some more, most suspicious first; a column more where
        equal images have other labels."""
        names, classes, true = self.dataset.names, self.dataset.class_names, self.labels.true_labels
        listed = issues.listed()
        card = cards.read_card(system.stage, self.params.model.name, self.labels.digest)
        kinds = ("out of fold" if card.folds else "in sample", "held out", "held out")
        for i in issues.order():
            row = int(issues.rows[i])
            entry: dict[str, Any] = {
                "index": row,
                "name": names[row],
                "split": SPLITS[self.labels.split[row]],
                "is_label_issue": bool(listed[i]),
                "label_score": float(issues.score[i]),
                "score_kind": kinds[self.labels.split[row]],
                "given_label": classes[issues.given[i]],
                "predicted_label": classes[issues.predicted[i]],
                "predicted_score": float(issues.highest[i]),
            }
            if true is not None:
                entry["true_label"] = classes[true[row]]
            if self.also_labelled:
                entry["also_labelled"] = "; ".join(classes[label] for label in self.also_labelled.get(row, ()))
            yield entry

    def estimated_matrix(self, issues: LabelIssues) -> list[dict[str, Any]]:
        """The noise matrix with the model's labels in the place of the true ones."""
        classes = self.dataset.class_names
        matrix = realised_matrix(issues.predicted, issues.given, len(classes))
        return [
            {"predicted": predicted, "label": label, "estimated": matrix[i, j]}
            for i, predicted in enumerate(classes)
            for j, label in enumerate(classes)
        ]

    def final_predictions(self) -> list[dict[str, Any]]:
        """The final model on the test split (validation, where there is none), a row per sample."""
        network, _ = self.session.best_network(FINAL)
        (logits,), labels = self._logits([network], TEST if self.count(TEST) else VALIDATION)
        classes = self.dataset.class_names
        return [
            {"actual": classes[int(actual)], "predicted": classes[int(predicted)]}
            for actual, predicted in zip(labels, logits.argmax(dim=1), strict=True)
        ]

    def _network(self, system: System, model: str, choice: str) -> Network:
        return self.session.network(system, models.weights_file(system.stage, model, choice))

    def _logits(self, networks: list[Network], split: int) -> tuple[tuple[Tensor, ...], Tensor]:
        """The logits [N, C] of each network on a split, and its labels [N]."""
        found = self.session.logits(networks, split, f"evaluate, {SPLITS[split]}")
        return found, self.session.split(split).labels


def _summary(metrics: dict[str, Any]) -> dict[str, Any]:
    """A few numbers, so that `dvc exp show` and `dvc metrics diff` stay readable.

    They are those of one fixed model a system, so that a difference is one of the system: the student of cross entropy,
    the averages of the others, each at the epoch that is its best on validation. The mentor may be the other one.
    """
    kind = "test_accuracy" if metrics["samples"]["test"] else "validation_accuracy"
    chosen = {"ce": ("cross_entropy", "student"), "ce_ema": ("cross_entropy", "teacher")}
    chosen |= {"ce_filter": ("ce_filter_3", "teacher")}
    chosen |= {f"mlnt_{i}": (f"mlnt_{i}", "teacher") for i in (1, 2, 3)}
    summary: dict[str, Any] = {
        kind: {short: metrics[system][model]["best"][kind] for short, (system, model) in chosen.items()}
    }
    summary["kept"] = metrics[FINAL.name]["kept_fraction"]
    if (auc := metrics[FINAL.name]["label_issues"].get("auc")) is not None:
        summary["issue_auc"] = auc
    return summary


def _confusion_rows(
    class_names: list[str], confusions: dict[tuple[System, str, str], Confusion]
) -> Iterator[dict[str, Any]]:
    """A row for each pair of classes that occurs; for 1,000 classes, all pairs would be a million rows per model."""
    for (system, model, choice), matrix in confusions.items():
        for i, j in np.argwhere(matrix.counts):
            yield {
                "system": system.name,
                "model": model,
                "choice": choice,
                "actual": class_names[i],
                "predicted": class_names[j],
                "count": int(matrix.counts[i, j]),
            }
