"""reports/label_issues.csv: what it says of each label, and in which order."""

from __future__ import annotations

import re
from contextlib import closing
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from pages import check_self_contained
from projects import make_params, run_stage, write_picture
from runs import Run, run_all

from mlnt.method.confident import LabelScores, issue_threshold
from pipeline.stages.evaluate import Evaluation
from pipeline.stages.label_issues import other_labels
from pipeline.store.dataset import SPLITS, TRAIN, read_dataset, read_labels
from pipeline.systems.registry import FINAL
from pipeline.training.session import Session


def test_the_label_issues_are_cleanlabs_table_in_the_order_of_suspicion(copied: Run) -> None:
    table = copied.table("reports/label_issues.csv")
    assert list(table[0]) == [
        "index", "name", "split", "is_label_issue", "label_score", "score_kind", "given_label", "predicted_label",
        "predicted_score", "true_label",
    ]  # fmt: skip
    scores = [float(row["label_score"]) for row in table]
    assert all(a <= b for a, b in pairwise(scores))
    dataset = read_dataset()
    labels = read_labels(dataset)
    assert sorted(int(row["index"]) for row in table) == list(range(259))
    assert {row["is_label_issue"] for row in table} <= {"True", "False"}
    for row, score in zip(table, scores, strict=True):
        index = int(row["index"])
        assert row["name"] == dataset.names[index]
        assert row["split"] == SPLITS[labels.split[index]]
        assert row["score_kind"] == ("in sample" if index in labels.rows(TRAIN) else "held out")
        assert score <= float(row["predicted_score"]) <= 1
        assert (score == float(row["predicted_score"])) == (row["given_label"] == row["predicted_label"])
        assert row["given_label"] == str(labels.labels[index])
        assert row["true_label"] == str(dataset.labels[index])


def test_as_many_labels_are_issues_as_are_probably_wrong_in_each_split(finished: Run) -> None:
    """The labels that the threshold of their split makes issues, where the model has another one."""
    classes = {str(c): c for c in range(10)}
    table = finished.table("reports/label_issues.csv")
    for split in SPLITS:
        rows = [row for row in table if row["split"] == split]
        given, predicted = (
            torch.tensor([classes[row[f"{kind}_label"]] for row in rows]) for kind in ("given", "predicted")
        )
        score, highest = (torch.tensor([float(row[key]) for row in rows]) for key in ("label_score", "predicted_score"))
        threshold = issue_threshold(given, LabelScores(predicted, score, highest), 10)
        assert threshold > 0
        expected = (score <= threshold) & (given != predicted)
        assert 0 < expected.sum() < len(rows)
        assert [row["is_label_issue"] == "True" for row in rows] == expected.tolist()
        if split == "train":
            found = finished.json("metrics/evaluate.json")["mlnt_3"]["label_issues"]
            assert found["threshold"] == pytest.approx(threshold, abs=1e-6)
            assert found["found_fraction"] == pytest.approx(expected.double().mean().item(), abs=1e-6)


@pytest.mark.parametrize("threshold", [0.0, 0.1, 1.0])
def test_the_threshold_of_label_issues_may_be_set(threshold: float, copied: Run) -> None:
    run_stage("evaluate", make_params(evaluate__label_issue_threshold=threshold))
    every = copied.table("reports/label_issues.csv")
    assert all((row["is_label_issue"] == "True") == (float(row["label_score"]) <= threshold) for row in every)
    table = [row for row in every if row["split"] == "train"]
    listed = [row for row in table if row["is_label_issue"] == "True"]
    values = copied.json("metrics/evaluate.json")["mlnt_3"]["label_issues"]
    assert values["found_fraction"] == pytest.approx(len(listed) / len(table), abs=1e-6)
    wrong = [row for row in table if row["true_label"] != row["given_label"]]
    found = [row for row in listed if row["true_label"] != row["given_label"]]
    assert values["recall"] == pytest.approx(len(found) / len(wrong), abs=1e-6)
    if listed:
        assert values["precision"] == pytest.approx(len(found) / len(listed), abs=1e-6)


def test_a_wrong_label_is_found_in_every_split_and_the_metrics_are_of_training_alone(copied: Run) -> None:
    params = make_params(evaluate__label_issue_threshold=0.1)  # the least of ten probabilities is never above
    run_stage("evaluate", params)
    before = copied.table("reports/label_issues.csv")
    surest = {row["split"]: row for row in before if row["given_label"] == row["predicted_label"]}
    with closing(Session.open(params)) as session:
        network, _ = session.best_network(FINAL)
        given = session.labels.labels.copy()
        for split in ("validation", "test"):
            assert surest[split]["is_label_issue"] == "False"
            index = int(surest[split]["index"])
            (logits,) = session.logits([network], SPLITS.index(split), split)
            at = int(np.searchsorted(session.labels.rows(SPLITS.index(split)), index))
            given[index] = logits[at].argmin()
        evaluation = Evaluation(replace(session, labels=replace(session.labels, labels=given)))
        metrics, _, issues = evaluation.judge([FINAL])
        every = evaluation.with_held_out(issues)[FINAL]
        after = {row["name"]: row for row in evaluation.issue_rows(FINAL, every)}
    for split in ("validation", "test"):
        row = after[surest[split]["name"]]
        assert (row["split"], row["score_kind"], row["is_label_issue"]) == (split, "held out", True)
        assert row["predicted_label"] == row["true_label"] == surest[split]["given_label"] != row["given_label"]
        assert row["predicted_score"] == pytest.approx(float(surest[split]["label_score"]), abs=1e-6)
        listed = sum(row["is_label_issue"] == "True" for row in before if row["split"] == split)
        assert f"{listed + 1} of {metrics['samples'][split]} {split}" in evaluation.doubted(every)
    assert metrics[FINAL.name]["label_issues"] == pytest.approx(
        copied.json("metrics/evaluate.json")[FINAL.name]["label_issues"], abs=1e-6
    )


def test_labels_that_contradict_each_other_lead_the_issues(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One picture in both classes, one as another kind of file, one in training and test."""
    images = tmp_path / "images"
    for i in range(60):
        write_picture(images / "train" / "ab"[i % 2] / f"{i}.png", i, size=(8, 8))
    write_picture(images / "train" / "a" / "again.png", 1, size=(8, 8))
    write_picture(images / "train" / "a" / "again.bmp", 1, size=(8, 8))
    write_picture(images / "train" / "b" / "same class.png", 3, size=(8, 8))
    write_picture(images / "test" / "b" / "4.png", 4, size=(8, 8))
    write_picture(images / "test" / "a" / "5.png", 500, size=(8, 8))
    for i, label in enumerate("ab"):
        write_picture(images / "val" / label / "1.png", 600 + i, size=(8, 8))
    changes = {"data__source": "imagefolder", "data__root": "images", "data__limit": None, "data__limit_test": None}
    params = make_params(**changes, noise__kind="none", evaluate__label_issue_threshold=0.0, report__gallery=5)
    run = run_all(tmp_path, params)
    table = run.table("reports/label_issues.csv")
    certain = {"train/b/1.png": "a", "train/a/again.png": "b", "train/a/again.bmp": "b", "train/a/4.png": "b"}
    certain["test/b/4.png"] = "a"
    assert {row["name"]: row["also_labelled"] for row in table[:5]} == certain
    assert [float(row["label_score"]) for row in table[:5]] == sorted(float(row["label_score"]) for row in table[:5])
    assert all(row["is_label_issue"] == "True" for row in table[:5])
    assert all((row["is_label_issue"], row["also_labelled"]) == ("False", "") for row in table[5:])
    found = run.json("metrics/evaluate.json")["mlnt_3"]["label_issues"]["found_fraction"]
    assert found == pytest.approx(4 / 63, abs=1e-6)
    page = check_self_contained(run.text("reports/index.html")).text
    assert "4 of 63 training labels, 0 of 2 validation labels and 1 of 2 test labels have" in " ".join(page.split())
    assert "include 5 labels of images that have another label elsewhere" in " ".join(page.split())
    assert page.count("also labelled: ") == 5
    assert re.findall(r"(Training|Validation|Test): (\d+) ", page) == [("Training", "4"), ("Test", "1")]


@pytest.mark.parametrize(
    ("same", "labels", "expected"),
    [
        (None, [0, 1], {}),
        ([-1, -1], [0, 1], {}),
        ([0, 0, -1], [1, 1, 0], {}),
        ([0, 1, 0, 1, -1], [0, 1, 2, 1, 0], {0: [2], 2: [0]}),
        ([0, 0, 0], [2, 0, 1], {0: [0, 1], 1: [1, 2], 2: [0, 2]}),
    ],
)
def test_other_labels_of_the_same_picture(
    same: list[int] | None, labels: list[int], expected: dict[int, list[int]]
) -> None:
    assert other_labels(None if same is None else np.array(same), np.array(labels)) == expected
