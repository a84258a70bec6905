from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections import Counter
from contextlib import closing
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from projects import (
    ROOT,
    STAGES,
    TINY,
    changed,
    default_values,
    digests,
    listed_params,
    make_params,
    run_pipeline,
    run_stage,
    write_params,
    write_picture,
    written_by,
)
from runs import Run, run_all
from safetensors.torch import load_file
from torch.nn.modules.module import register_module_forward_pre_hook

from mlnt import seeding
from mlnt.method.confident import LabelScores, contradicted, issue_threshold
from mlnt.method.mentor import filter_samples
from mlnt.networks import PreActResNet, create_model, pre_logit_features
from mlnt.training.loop import Training
from pipeline.base import console, files
from pipeline.base.errors import RunError, UserError
from pipeline.before_training.trial import try_start
from pipeline.paper import figure7
from pipeline.params.load import check, read_yaml
from pipeline.params.schema import Params, leaf_keys
from pipeline.report import figures
from pipeline.report.terminal import show
from pipeline.stages.evaluate import Evaluation
from pipeline.stages.label_issues import other_labels
from pipeline.store import checkpoints
from pipeline.store.dataset import SPLITS, TRAIN, VALIDATION, read_dataset, read_labels
from pipeline.store.features import FeatureFile
from pipeline.store.record import Record
from pipeline.systems.mlnt import MLNT
from pipeline.systems.registry import BY_STAGE, CROSS_ENTROPY, DEFAULT, FINAL
from pipeline.training.build import fresh_network, load_best
from pipeline.training.device import require_compiler
from pipeline.training.filtering import kept_by
from pipeline.training.image_store import image_store
from pipeline.training.session import Session

TRAINING = [system.stage for system in DEFAULT]
MODELS = ("student", "teacher")
CHOICES = ("best", "last")


# What is written


def test_the_gallery_shows_what_the_mentor_filters_out_the_surest_first(copied: Run) -> None:
    """Figure 7."""
    found = figure7.filtered(make_params(filter__tau=0.1))
    assert found
    assert len(found) <= figure7.COUNT
    assert all(entry.given_score <= 0.1 < entry.predicted_score for entry in found)
    scores = [entry.predicted_score for entry in found]
    assert scores == sorted(scores, reverse=True)
    dataset = read_dataset()
    assert all(any(np.array_equal(entry.image, image) for image in dataset.images) for entry in found)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_writes_what_dvc_yaml_says(stage: str, finished: Run) -> None:
    listed = set(digests(finished.folder, *written_by(stage)))
    assert finished.written[stage] - {f"timings/{stage}.json", "timings/steps.json"} == listed
    assert (f"timings/{stage}.json" in finished.written[stage]) == (stage in TRAINING)


def test_the_plots_of_dvc_yaml_name_columns_that_exist(finished: Run) -> None:
    named: list[tuple[str, str]] = []
    for definition in STAGES.values():
        for entry in definition.get("plots", []):
            for path, options in entry.items():
                named += [(path, options[axis]) for axis in ("x", "y") if axis in options]
    for plot in read_yaml(ROOT / "dvc.yaml")["plots"]:
        for options in plot.values():
            for path, columns in options["y"].items():
                named += [
                    (path, name) for name in [options["x"], *([columns] if isinstance(columns, str) else columns)]
                ]
    assert named
    for path, column in named:
        assert column in finished.table(path)[0], (path, column)


def test_no_checkpoint_and_no_temporary_file_is_left(finished: Run) -> None:
    assert not [name for name in digests(finished.folder, "checkpoints") if not name.endswith("lock")]
    assert not [name for name in digests(finished.folder) if name.endswith(".tmp")]


def test_the_metrics_are_nested_as_documented(finished: Run) -> None:
    metrics = finished.json("metrics/evaluate.json")
    assert list(metrics) == ["samples", "cross_entropy", "ce_filter_2", "ce_filter_3", "mlnt_1", "mlnt_2", "mlnt_3"]
    assert metrics["samples"] == {"train": 159, "validation": 40, "test": 60}
    for system in DEFAULT:
        values = metrics[system.name]
        assert values["mentor"] in MODELS
        assert 0 < values["kept_fraction"] <= 1
        assert (values["kept_fraction"] == 1) or system.mentor is not None
        assert set(values["label_issues"]) == {"threshold", "found_fraction", "precision", "recall", "auc"}
        for model in MODELS:
            for choice in CHOICES:
                entry = values[model][choice]
                assert set(entry) == {"validation_accuracy", "test_accuracy", "test_accuracy_by_class"}
                assert 0 <= entry["test_accuracy"] <= 1
                assert list(entry["test_accuracy_by_class"]) == list("0123456789")


def test_the_metrics_agree_with_the_confusion_counts(finished: Run) -> None:
    metrics = finished.json("metrics/evaluate.json")
    counts: dict[tuple[str, ...], int] = {}
    for row in finished.table("reports/confusions.csv"):
        counts[row["system"], row["model"], row["choice"], row["actual"], row["predicted"]] = int(row["count"])
    assert min(counts.values()) > 0  # of 1,000 classes, all pairs would be 24 million rows
    classes = "0123456789"
    for system in DEFAULT:
        for model in MODELS:
            for choice in CHOICES:
                table = np.array(
                    [[counts.get((system.name, model, choice, i, j), 0) for j in classes] for i in classes]
                )
                entry = metrics[system.name][model][choice]
                assert table.sum() == 60
                assert entry["test_accuracy"] == pytest.approx(table.trace() / 60, abs=1e-6)
                by_class = table.diagonal() / table.sum(axis=1)
                assert list(entry["test_accuracy_by_class"].values()) == pytest.approx(by_class, abs=1e-6)


def test_the_summary_repeats_the_best_models(finished: Run) -> None:
    metrics, summary = finished.json("metrics/evaluate.json"), finished.json("metrics/summary.json")
    places = {
        "ce": ("cross_entropy", "student"),
        "ce_ema": ("cross_entropy", "teacher"),
        "ce_filter": ("ce_filter_3", "teacher"),
        "mlnt_1": ("mlnt_1", "teacher"),
        "mlnt_2": ("mlnt_2", "teacher"),
        "mlnt_3": ("mlnt_3", "teacher"),
    }
    assert summary == {
        "test_accuracy": {
            short: metrics[system][model]["best"]["test_accuracy"] for short, (system, model) in places.items()
        },
        "kept": metrics["mlnt_3"]["kept_fraction"],
        "issue_auc": metrics["mlnt_3"]["label_issues"]["auc"],
    }


@pytest.mark.parametrize("system", DEFAULT, ids=lambda system: system.name)
def test_the_history_agrees_with_the_models(system: Any, finished: Run) -> None:
    history = finished.table(f"plots/{system.stage}.csv")
    values = finished.json("metrics/evaluate.json")[system.name]
    card = finished.json(f"models/{system.stage}/model.json")
    rates = ["lr", "meta_lr", "class_loss", "meta_loss", "student_train_accuracy", "teacher_train_accuracy"]
    sets = [f"{model}_{name}_accuracy" for model in MODELS for name in ("validation", "test")]
    assert list(history[0]) == ["epoch", *rates, *sets]
    assert [row["epoch"] for row in history] == ["1", "2"]
    assert [float(row["lr"]) for row in history] == pytest.approx([0.1, 0.01])
    assert all((float(row["meta_lr"]) > 0) == (system in MLNT) for row in history)
    for model in MODELS:
        column = [float(row[f"{model}_validation_accuracy"]) for row in history]
        best = int(np.argmax(column))
        assert card["best_epoch"][model] == values["best_epoch"][model] == best + 1
        for name in ("validation", "test"):
            for choice, epoch in (("best", best), ("last", 1)):
                expected = values[model][choice][f"{name}_accuracy"]
                assert float(history[epoch][f"{model}_{name}_accuracy"]) == pytest.approx(expected, abs=1e-6)
    better = {model: max(float(row[f"{model}_validation_accuracy"]) for row in history) for model in MODELS}
    assert card["mentor"] == values["mentor"] == ("student" if better["student"] > better["teacher"] else "teacher")


def test_the_filter_keeps_what_the_mentor_believes(copied: Run) -> None:
    params = make_params(filter__tau=0.1)
    dataset = read_dataset()
    labels = read_labels(dataset)
    module, _ = load_best(BY_STAGE["meta1"], params, dataset, labels, torch.device("cpu"))
    images, _ = image_store(params, dataset, labels.rows(TRAIN), torch.device("cpu"))
    rows = labels.rows(TRAIN)
    with torch.no_grad():
        probs = module(images.batch(torch.from_numpy(rows))).softmax(dim=1).numpy()
    kept = probs[np.arange(len(rows)), labels.labels[rows]] > 0.1
    assert 0 < kept.sum() < len(rows)
    run_stage("meta2", params)
    card = copied.json("models/meta2/model.json")
    assert card["kept_fraction"] == pytest.approx(kept.mean(), abs=1e-6)
    assert labels.true_labels is not None
    right = labels.true_labels[rows] == labels.labels[rows]
    assert card["kept_purity"] == pytest.approx(right[kept].mean(), abs=1e-6)


@pytest.mark.parametrize("tau", [0.1, "auto"])
def test_the_filter_needs_no_table_of_all_probabilities(
    tau: float | str, copied: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = make_params(filter__tau=tau, compute__eval_batch_size=64)
    with closing(Session.open(params)) as session:
        network, _ = session.best_network(BY_STAGE["meta1"])
        (logits,) = session.logits([network], SPLITS.index("train"), "table")
        given = session.split(SPLITS.index("train")).labels
        if tau == "auto":
            expected = ~contradicted(given, LabelScores.of(logits.softmax(dim=1), given), 10)
        else:
            expected = filter_samples(logits.softmax(dim=1), given, float(tau))
        monkeypatch.setattr(Session, "logits", None)
        found = kept_by(session, BY_STAGE["meta1"])
    assert 0 < found.sum() < len(found)
    assert torch.equal(found, expected)


def test_the_features_are_those_of_the_pretrained_network_in_sample_order(copied: Run) -> None:
    params, device = copied.params, torch.device("cpu")
    dataset = read_dataset()
    labels = read_labels(dataset)
    module, digest = load_best(CROSS_ENTROPY, params, dataset, labels, device)
    stored = FeatureFile(labels, digest, np.arange(len(dataset.labels))).read().numpy()
    images, _ = image_store(params, dataset, labels.rows(TRAIN), device)
    shuffled = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        rows = [pre_logit_features(module, images.batch(chunk)) for chunk in torch.split(shuffled, 7)]
    again = torch.empty(stored.shape)
    again[shuffled] = torch.cat(rows)
    assert stored.shape == (259, 32)
    assert stored.dtype == np.float32
    assert stored == pytest.approx(again.numpy(), rel=1e-4, abs=1e-5)
    assert len(np.unique(stored, axis=0)) > 250


def test_the_features_may_be_stored_in_half_the_space(copied: Run) -> None:
    whole = h5py.File("data/features.h5")["features"][:]
    run_stage("features", make_params(features__dtype="float16"))
    half = h5py.File("data/features.h5")["features"][:]
    assert half.dtype == np.float16
    assert half == pytest.approx(whole, rel=2e-3, abs=1e-4)
    run_stage("meta1", make_params(features__dtype="float16"))


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


# The report


class Page(HTMLParser):
    """Tags with their attributes, and the text that a reader sees."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self._style = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._style = tag == "style"

    def handle_endtag(self, tag: str) -> None:
        self._style = False

    def handle_data(self, data: str) -> None:
        if not self._style:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def check_self_contained(text: str) -> Page:
    """No resource from elsewhere, no script, nothing that could not be computed."""
    page = Page(text)
    assert not [tag for tag, _ in page.tags if tag in ("script", "link", "iframe", "object", "base", "b>x<")]
    for _, attributes in page.tags:
        for key, value in attributes.items():
            assert not key.startswith("on"), key
            if key in ("src", "href", "xlink:href", "srcset", "data"):
                assert (value or "").startswith(("#", "review.html", "data:image/"))
    for address in re.findall(r"url\(\s*['\"]?([^)]*)", text):
        assert address.startswith(("#", "data:"))
    assert "@import" not in text
    assert not re.findall(r"\b(?:None|NaN|nan|Undefined|inf)\b", page.text)
    assert not re.findall(r"[a-z] %", page.text)  # a number is missing before it
    return page


def test_the_report_is_one_self_contained_page(finished: Run) -> None:
    page = check_self_contained(finished.text("reports/index.html"))
    metrics = finished.json("metrics/evaluate.json")
    for title in ("Cross Entropy", "CE-EMA", "CE + filter 3", "MLNT 3 student", "MLNT 3 teacher"):
        assert title in page.text
    for system in DEFAULT:
        for model in MODELS:
            for choice in CHOICES:
                assert f"{100 * metrics[system.name][model][choice]['test_accuracy']:.1f}" in page.text
    assert sum(tag == "svg" for tag, _ in page.tags) >= 4
    for text in ("train.lr: 0.1", "mlnt.eta_ramp_length: 5"):
        assert text in page.text


def gallery_of(page: Page) -> list[list[str | None]]:
    """The images of each card by name: the doubtful one, then the neighbours that speak against its label."""
    cards: list[list[str | None]] = []
    for tag, attributes in page.tags:
        if tag == "img":
            if attributes["alt"]:
                cards.append([])
            cards[-1].append(attributes["title"])
    return cards


@pytest.fixture
def doubted(copied: Run) -> Run:
    """The finished run, with a third of all labels for issues."""
    scores = sorted(float(row["label_score"]) for row in copied.table("reports/label_issues.csv"))
    params = make_params(evaluate__label_issue_threshold=scores[len(scores) // 3])
    run_stage("evaluate", params)
    return replace(copied, params=params)


def test_the_gallery_shows_the_most_doubtful_images_of_each_split(doubted: Run) -> None:
    table = [row for row in doubted.table("reports/label_issues.csv") if row["is_label_issue"] == "True"]
    of_split = Counter(row["split"] for row in table)
    assert set(of_split) == set(SPLITS)
    most = min(of_split.values()) + 1
    threshold = doubted.params.evaluate.label_issue_threshold
    run_stage("report", make_params(evaluate__label_issue_threshold=threshold, report__gallery=most))
    page = check_self_contained(doubted.text("reports/index.html"))
    shown = [card[0] for card in gallery_of(page)]
    expected = [[row["name"] for row in table if row["split"] == split][:most] for split in SPLITS]
    assert shown == [name for names in expected for name in names]
    first, text = table[0], " ".join(page.text.split())
    assert f"given: {first['given_label']}, {100 * float(first['label_score']):.1f}" in text
    assert f"suggested: {first['predicted_label']}, {100 * float(first['predicted_score']):.1f}" in text


def test_the_gallery_shows_the_neighbours_that_speak_against_a_label(doubted: Run) -> None:
    run_stage("report", doubted.params)
    text = doubted.text("reports/index.html")
    dataset = read_dataset()
    labels, names = read_labels(dataset), list(dataset.names)
    with h5py.File("data/features.h5") as file:
        table = file["features"][:].astype(np.float64)
    train, cards = labels.rows(TRAIN), gallery_of(Page(text))
    assert len(cards) > 12
    expected = []
    for name, *_ in cards:
        row = names.index(str(name))
        others = train[train != row]
        near = others[np.argsort(np.linalg.norm(table[others] - table[row], axis=1), kind="stable")][:10]
        expected.append([names[other] for other in near if labels.labels[other] != labels.labels[row]])
    assert [against for _, *against in cards] == [against[:4] for against in expected]
    counts = re.findall(r"(\d+) of 10 nearest neighbours ha(?:ve|s) another label", text)
    assert [int(count) for count in counts] == [len(against) for against in expected]
    said = re.findall(r'alt="" title="([^"]*)">([^<]*)<', text)
    assert said == [(n, str(labels.labels[names.index(n)])) for _, *against in cards for n in against if n]


def test_the_report_shows_the_confusion_of_the_final_model(copied: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pairs that no sample has are 0 there."""
    drawn: list[Any] = []
    monkeypatch.setattr(figures, "confusion_matrix", lambda names, counts: drawn.append(counts) or "")
    run_stage("report", copied.params)
    expected = np.zeros((10, 10))
    for row in copied.table("plots/confusion.csv"):
        expected[int(row["actual"]), int(row["predicted"])] += 1
    assert (expected == 0).any()
    assert np.array_equal(drawn, [expected])


def test_the_report_has_no_gallery_where_none_is_wanted(copied: Run) -> None:
    run_stage("report", make_params(report__gallery=0))
    page = check_self_contained(copied.text("reports/index.html"))
    assert not [tag for tag, _ in page.tags if tag == "img"]


@pytest.mark.parametrize("changes", [{"noise__rate": 0.0}, {"noise__kind": "none"}], ids=["rate 0", "none"])
def test_the_report_copes_with_labels_that_are_all_right(changes: dict[str, Any], project: Path) -> None:
    run = run_all(project, make_params(**changes))
    metrics = run.json("metrics/evaluate.json")
    assert metrics["mlnt_3"]["kept_purity"] == 1
    assert metrics["mlnt_3"]["label_issues"]["auc"] is None
    check_self_contained(run.text("reports/index.html"))


HOSTILE = ("<b>x</b>", "50 $ or $\\frac", "a & b_c^d\n猫</text></svg><script>alert(1)</script>" + "y" * 300)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Own images: no validation, no test, nobody knows the truth, and names that are made to break a page."""
    folder = tmp_path_factory.mktemp("own")
    lines = ["path,label"]
    for i in range(90):
        name = f'images/{"<i>" if i == 0 else ""}{i}" onerror="x.png'
        write_picture(folder / name, i, size=(8, 8))
        quoted = name.replace('"', '""')
        lines.append(f'"{quoted}","{HOSTILE[i % 3]}"')
    (folder / "labels.csv").write_text("\n".join(lines), encoding="utf-8")
    changes = {"data__source": "imagefolder", "data__root": "labels.csv", "data__limit": None, "data__limit_test": None}
    return run_all(folder, make_params(**changes, noise__kind="none", filter__tau=0.2, report__gallery=100))


def test_own_images_without_test_and_truth_leave_out_what_nobody_knows(own: Run) -> None:
    metrics = own.json("metrics/evaluate.json")
    assert metrics["samples"] == {"train": 72, "validation": 18, "test": 0}
    for system in DEFAULT:
        assert metrics[system.name]["kept_purity"] is None
        assert set(metrics[system.name]["label_issues"]) == {"threshold", "found_fraction"}
        for model in MODELS:
            for choice in CHOICES:
                assert set(metrics[system.name][model][choice]) == {"validation_accuracy"}
    summary = own.json("metrics/summary.json")
    assert set(summary) == {"validation_accuracy", "kept"}
    assert not any(key.endswith("test_accuracy") for key in own.table("plots/meta1.csv")[0])
    assert own.table("reports/confusions.csv") == []
    assert len(own.table("plots/confusion.csv")) == 18
    table = own.table("reports/label_issues.csv")
    assert Counter(row["split"] for row in table) == {"train": 72, "validation": 18}
    assert "true_label" not in table[0]
    assert {row["given_label"] for row in table} == set(HOSTILE)


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


def test_the_report_on_own_images_escapes_their_names(own: Run) -> None:
    text = own.text("reports/index.html")
    page = check_self_contained(text)
    assert "<b>x</b>" not in text
    assert "<i>0" not in text
    assert "<script" not in text
    assert text.count("</svg>") == text.count("<svg")
    assert "<b>x</b>" in page.text  # as text
    assert "50 $ or $\\frac" in page.text
    table = own.table("reports/label_issues.csv")
    assert {card[0] for card in gallery_of(page)} == {r["name"] for r in table if r["is_label_issue"] == "True"}
    for word in (
        "on test",
        "true: <b>",
        "true: 50",
        "true: a &",
        "recall",
        "precision",
        "ROC",
        "of the wrong labels",
        "realised rate",
    ):
        assert word not in page.text
    assert "not known" in page.text
    assert "for the same noise" not in page.text  # as the paper's, when nobody knows which it is


@pytest.mark.parametrize("name", ["a_b^c", "$5", "US$ and A$", "$x_1$", "$\\frac$", "<b>x</b>", "größe"])
def test_a_figure_takes_class_names_as_they_are(name: str) -> None:
    page = Page(figures.noise_matrices(["other", name], {"realised": np.eye(2)}))
    assert page.texts.count(name) == 2


@pytest.mark.parametrize(
    ("name", "shown"),
    [("x" * 5000, "x" * 31 + "…"), ("a\nb\x00\x1b[2J", "a b  [2J"), ("猫", "猫"), ("</text></svg>", "</text></svg>")],
)
def test_a_figure_has_room_for_any_class_name(name: str, shown: str) -> None:
    text = figures.noise_matrices(["", name], {"realised": np.eye(2)})
    assert Page(text).texts.count(shown) == 2
    assert text.count("</svg>") == 1
    assert len(text) < 20_000


@pytest.mark.parametrize("path", ["metrics/evaluate.json", "metrics/summary.json", "plots", "reports"])
def test_no_table_holds_a_word_for_nothing(path: str, own: Run) -> None:
    for name in digests(own.folder, path):
        if not name.endswith(".html"):
            assert not re.search(r"\b(None|NaN|nan|inf)\b", own.text(name)), name


@pytest.mark.parametrize("kind", ["finished", "own"])
def test_the_table_of_results_for_the_terminal(
    kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run: Run = request.getfixturevalue(kind)
    monkeypatch.chdir(run.folder)
    monkeypatch.setenv("COLUMNS", "120")
    show()
    shown = capsys.readouterr().out
    metrics = run.json("metrics/evaluate.json")
    assert f"{metrics['samples']['train']} train" in shown
    assert f"{metrics['samples']['validation']} validation" in shown
    for title in ("Cross Entropy", "CE-EMA", "CE + filter 2", "CE + filter 3 EMA", "MLNT 1 student", "MLNT 3 teacher"):
        assert title in shown
    assert ("test best" in shown) == (kind == "finished")
    (line,) = [line for line in shown.splitlines() if "MLNT 3 teacher" in line]
    best = metrics["mlnt_3"]["teacher"]["best"]
    for key in ("validation_accuracy", "test_accuracy"):
        if key in best:
            assert f"{100 * best[key]:.1f}" in line
    assert not re.findall(r"\b(?:None|NaN|nan)\b", shown)


@pytest.mark.parametrize("width", [1, 20, 40, 60, 64, 70, 80])
def test_every_number_is_shown_whatever_the_width(
    width: int, finished: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(finished.folder)
    numbers = []
    for columns in (200, width):
        monkeypatch.setenv("COLUMNS", str(columns))
        show()
        shown = capsys.readouterr().out
        assert "…" not in shown
        numbers.append(re.findall(r"\d+\.\d\b", shown))
    assert len(numbers[0]) == 5 * 2 * len(DEFAULT)
    assert numbers[1] == numbers[0]


# The same again, and not the same


def test_the_same_run_gives_the_same_bytes(finished: Run, tmp_path: Path) -> None:
    again = run_all(tmp_path, finished.params)
    outputs = ("data", "models", "metrics", "plots", "reports")
    assert digests(again.folder, *outputs) == digests(finished.folder, *outputs)


def test_another_seed_gives_other_models(finished: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for stage in ("download", "noise", "pretrain"):
        run_stage(stage, make_params(seed=1))
    ours, other = (
        load_file(folder / "models/pretrain/student_last.safetensors") for folder in (tmp_path, finished.folder)
    )
    assert not torch.equal(ours["stem.weight"], other["stem.weight"])


ALTERNATIVES: dict[str, Any] = {
    "seed": 7,
    "data.source": "imagefolder",
    "data.root": "elsewhere",
    "data.url": "file:///elsewhere.zip",
    "data.sha256": "0" * 64,
    "data.limit": 300,
    "data.limit_test": 100,
    "data.channels": 3,
    "data.resize": 4,
    "data.interpolation": "bicubic",
    "data.crop": 4,
    "data.background": "black",
    "data.on_bad_image": "skip",
    "data.max_image_mpixels": 7,
    "run.max_unpacked_gib": 7,
    "run.max_download_gib": 7,
    "model.normalize": "channel",
    "data.storage": "files",
    "run.workers": 0,
    "noise.kind": "matrix",
    "noise.rate": 0.1,
    "noise.symmetric_excludes_true": True,
    "noise.sampling": "bernoulli",
    "noise.mapping": {"1": "2"},
    "noise.matrix_file": "elsewhere.csv",
    "noise.human_file": "elsewhere.pt",
    "noise.human_labels": "aggre_label",
    "noise.validation": "noisy",
    "noise.validation_fraction": 0.3,
    "noise.corrections": "elsewhere.csv",
    "model.name": "preact_resnet32_narrow",
    "model.pretrained": True,
    "model.weights": None,
    "model.train": "all",  # not together with the augmentation below
    "train.epochs": 3,
    "train.batch_size": 31,
    "train.lr": 0.03,
    "train.lr_drop_epochs": [],
    "train.lr_drop_factor": 0.5,
    "train.momentum": 0.5,
    "train.weight_decay": 0.01,
    "train.crop_padding": 1,
    "train.horizontal_flip": True,
    "train.evaluate_every": "3 steps",
    "train.folds": 2,
    "compute.eval_batch_size": 33,
    "compute.device": "auto",
    "compute.threads": 2,
    "compute.amp": "bfloat16",
    "compute.channels_last": False,
    "compute.compile": False,  # not together with the second order below
    "compute.cuda_graphs": True,
    "compute.deterministic": True,
    "run.checkpoint_every": 7,
    "run.processes": 2,
    "features.dtype": "float16",
    "run.max_features_gib": 0.0,
    "mlnt.M": 3,
    "mlnt.rho": 0.2,
    "mlnt.neighbors": 5,
    "mlnt.alpha": 0.05,
    "mlnt.eta": 0.1,
    "mlnt.eta_ramp": "sigmoid",
    "mlnt.eta_ramp_length": "3 steps",
    "mlnt.eta_ramp_iterations": 0,
    "mlnt.eta_decays": True,
    "teacher.gamma_start": 0.5,
    "teacher.gamma_start_length": "3 steps",
    "teacher.gamma_start_iterations": 0,
    "teacher.gamma": 0.9,
    "mlnt.fast_weights": "classifier",
    "mlnt.order": "second",
    "mlnt.update": "joint",
    "mlnt.kl_reduction": "mean",
    "teacher.batch_norm": "ema",
    "filter.tau": 0.2,
    "mentor.lambda": 0.1,
    "mentor.lambda_ramp": "constant",
    "forward.percentile": 90,
    "joint_optimization.epochs": 3,
    "joint_optimization.lr": 0.07,
    "joint_optimization.lr_drop_epochs": [],
    "joint_optimization.alpha": 0.3,
    "joint_optimization.beta": 0.3,
    "joint_optimization.first_update": 2,
    "joint_optimization.average_epochs": 3,
    "cnn_crf.auxiliary": "transition_matrix",
    "cnn_crf.clean_fraction": 0.0,
    "cnn_crf.weight_start": 3,
    "cnn_crf.weight_end": 2,
    "cnn_crf.weight_epochs": 1,
    "gce.q": 0.5,
    "gce.k": 0.3,
    "gce.first_pruning": 2,
    "gce.pruning_every": 2,
    "meta_weight_net.clean_fraction": 0.2,
    "meta_weight_net.hidden": 7,
    "meta_weight_net.lr": 0.3,
    "elr.lambda": 1.0,
    "elr.beta": 0.5,
    "sop.u_lr": 1.0,
    "sop.v_lr": 1.0,
    "co_teaching.noise_rate": 0.3,
    "co_teaching.ramp_epochs": 1,
    "divide_mix.warm_up": 1,
    "divide_mix.confidence_penalty": True,
    "divide_mix.threshold": 0.6,
    "divide_mix.augmentations": 3,
    "divide_mix.temperature": 0.7,
    "divide_mix.beta": 0.5,
    "divide_mix.unlabeled_weight": 1,
    "divide_mix.unlabeled_ramp_length": "3 steps",
    "evaluate.label_issue_threshold": 0.7,
    "report.gallery": 1,
    "report.review": 1,
}


@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage not in ("look", "report")])
def test_parameters_that_a_stage_does_not_list_change_nothing(stage: str, copied: Run) -> None:
    """Else DVC would take results for valid that are not."""
    assert set(ALTERNATIVES) == set(leaf_keys())
    unlisted = {key: value for key, value in ALTERNATIVES.items() if key not in listed_params(stage)}
    before = digests(copied.folder, *written_by(stage))
    assert before
    run_stage(stage, check(changed(default_values(), {**TINY, **unlisted}), Path("params.yaml")))
    assert digests(copied.folder, *written_by(stage)) == before


@pytest.mark.parametrize("change", [{"mlnt__M": 0}, {"mlnt__eta": 0.0}])
def test_without_a_meta_update_iteration_1_is_cross_entropy_to_the_bit(change: dict[str, Any], copied: Run) -> None:
    run_stage("meta1", make_params(**change))
    models = {Path(name).name: digest for name, digest in digests(copied.folder, "models/meta1").items()}
    pretrain = {Path(name).name: digest for name, digest in digests(copied.folder, "models/pretrain").items()}
    assert models.pop("model.json") != pretrain.pop("model.json")
    assert models == pretrain
    assert {**copied.json("models/meta1/model.json"), "system": "pretrain"} == copied.json("models/pretrain/model.json")


def test_all_of_validation_and_test_may_be_large_or_small(project: Path) -> None:
    """Sets smaller and larger than `eval_batch_size` give the same numbers."""
    results = []
    for size in (7, 512):
        params = make_params(compute__eval_batch_size=size)
        for stage in ("download", "noise", "pretrain"):
            run_stage(stage, params)
        results.append(files.read_json(Path("models/pretrain/model.json")))
    assert results[0] == results[1]


# Checkpoints


def stop_at(step: int, patch: pytest.MonkeyPatch) -> None:
    """Training is stopped before this step, as by a signal."""

    def at(_: console.Lines, number: int) -> None:
        if number == step:
            raise SystemExit(143)

    patch.setattr(console.Lines, "at", at)


@pytest.mark.parametrize("stage", ["pretrain", "meta1", "meta2", "control2"])
def test_a_stopped_stage_goes_on_and_gives_the_same_bits(
    stage: str, finished: Run, copied: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MLNT_CHECKPOINT_DIR", str(tmp_path / "elsewhere"))
    for path in written_by(stage):
        shutil.rmtree(path) if Path(path).is_dir() else Path(path).unlink()
    with monkeypatch.context() as patch:
        stop_at(5, patch)  # four steps an epoch
        with pytest.raises(SystemExit):
            run_stage(stage, copied.params)
    assert set(digests(copied.folder, *written_by(stage))) == {f"plots/{stage}.csv"}  # the epoch that was done
    assert [row["epoch"] for row in copied.table(f"plots/{stage}.csv")] == ["1"]
    said: list[str] = []
    monkeypatch.setattr(console, "say", said.append)
    run_stage(stage, copied.params)
    assert f"{stage}: going on after step 4 of 8" in said
    assert digests(copied.folder, *written_by(stage)) == digests(finished.folder, *written_by(stage))
    assert not list(copied.folder.rglob("state.safetensors"))


def test_a_stop_while_the_last_epoch_is_judged_counts_too(
    finished: Run, copied: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate = Training._evaluate

    def stopped(training: Training, step: int) -> Any:
        if step == training.num_steps:
            os.kill(os.getpid(), signal.SIGINT)
        return evaluate(training, step)

    said: list[str] = []
    monkeypatch.setattr(console, "say", said.append)
    with monkeypatch.context() as patch:
        patch.setattr(Training, "_evaluate", stopped)
        with pytest.raises(SystemExit) as caught:
            run_stage("pretrain", copied.params)
    assert caught.value.code == 130
    run_stage("pretrain", copied.params)
    assert any(line.startswith("pretrain: stopped after its last step") for line in said)
    assert "pretrain: going on after step 8 of 8" in said
    assert digests(copied.folder, *written_by("pretrain")) == digests(finished.folder, *written_by("pretrain"))


@pytest.mark.parametrize("in_the_way", ["timings", "timings/pretrain.json"])
def test_a_time_that_cannot_be_written_costs_no_training(
    in_the_way: str, finished: Run, copied: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    if in_the_way == "timings":
        Path(in_the_way).write_text("a file where the folder should be", encoding="utf-8")
    else:
        Path(in_the_way).mkdir(parents=True)
    run_stage("pretrain", copied.params)
    said = capsys.readouterr().err
    assert "warning: timings/pretrain.json: could not be written: " in said
    assert digests(copied.folder, *written_by("pretrain")) == digests(finished.folder, *written_by("pretrain"))
    assert not list(copied.folder.rglob("state.safetensors"))


def test_a_folder_that_vanishes_is_not_made_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(RunError, match="could not be made"), checkpoints.opened(Record("pretrain", {}, {}, {}, "", {})):
        pass


def test_a_table_of_other_precision_is_another_input(copied: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        stop_at(5, patch)
        with pytest.raises(SystemExit):
            run_stage("meta1", copied.params)
    said: list[str] = []
    monkeypatch.setattr(console, "say", said.append)
    for stage in ("features", "meta1"):
        run_stage(stage, make_params(features__dtype="float16"))
    assert copied.params.features.dtype == "float32"
    assert not any("going on" in line for line in said)


def test_the_checkpoint_of_other_parameters_or_inputs_is_left_alone(
    finished: Run, copied: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stop_at(5, patch)
        with pytest.raises(SystemExit):
            run_stage("meta2", copied.params)
    before = digests(copied.folder, "checkpoints")
    said: list[str] = []
    monkeypatch.setattr(console, "say", said.append)
    run_stage("meta2", make_params(mlnt__M=1))
    run_stage("meta1", make_params(mlnt__M=1))
    run_stage("meta2", copied.params)  # under another mentor
    assert not any("going on" in line for line in said)
    assert before.items() <= digests(copied.folder, "checkpoints").items()
    assert sum(name.endswith("state.safetensors") for name in before) == 1


# Inputs that do not fit


def refused(stage: str, params: Params, *expected: str, error: type[Exception] = UserError) -> None:
    """The stage ends with one line that contains all of this, and writes nothing."""
    folder = Path.cwd()
    before = digests(folder, *written_by(stage))
    with pytest.raises(error) as caught:
        run_stage(stage, params)
    assert all(part in str(caught.value) for part in expected), caught.value
    assert "\n" not in str(caught.value)
    assert digests(folder, *written_by(stage)) == before


# Damage


def spoil(path: Path, at: int, count: int = 8) -> None:
    content = bytearray(path.read_bytes())
    for i in range(at, at + count):
        content[i] ^= 0xFF
    path.write_bytes(content)


@pytest.mark.parametrize("text", [b"digit 1", b'"0", "1"'], ids=["name", "class name"])
def test_damaged_names_are_noticed(text: bytes, copied: Run) -> None:
    content = Path("data/dataset.h5").read_bytes()
    spoil(Path("data/dataset.h5"), content.index(text), len(text))
    write_params(copied.folder)
    # In a process of its own: HDF5 has been seen to read damaged strings for ever.
    try:
        result = run_pipeline(copied.folder, "inject-noise", timeout=120)
    except subprocess.TimeoutExpired:
        pytest.fail("reading the damaged file takes for ever")
    assert result.returncode == 2, result.stderr
    assert "data/dataset.h5: damaged" in result.stderr


# Parameters that do not fit the data


def test_a_filter_that_keeps_little_is_said(copied: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("pipeline.base.console.warn", said.append)
    run_stage("meta2", copied.params)
    assert said == []
    table = copied.table("reports/label_issues.csv")
    scores = [float(row["label_score"]) for row in table if row["split"] == "train"]
    tau = sorted(scores)[int(0.9 * len(scores))]
    run_stage("meta3", make_params(filter__tau=tau))
    assert len(said) == 1
    assert "filter.tau" in said[0]


def test_weights_to_start_from_are_taken(copied: Run) -> None:
    path = Path("models/pretrain/teacher_best.safetensors").resolve()
    start = load_file(path)
    run_stage("meta1", make_params(model__weights=str(path), train__lr=1e-30, mlnt__eta=0.0))
    after = load_file("models/meta1/student_last.safetensors")
    assert torch.equal(after["stem.weight"], start["stem.weight"])


def test_a_network_of_timm_is_tried_and_left_as_it_was(copied: Run) -> None:
    params = make_params(model__name="resnet10t")
    images: list[torch.Size] = []
    before = torch.get_rng_state()
    hook = register_module_forward_pre_hook(
        lambda module, given: images.append(given[0].shape[1:]) if hasattr(module, "pretrained_cfg") else None
    )
    with closing(Session.open(params)) as session:
        try:
            try_start(session, CROSS_ENTROPY)
        finally:
            hook.remove()
        module = fresh_network(CROSS_ENTROPY, params, session.dataset, session.device)
    assert set(images) == {(1, 8, 8)}
    assert torch.equal(torch.get_rng_state(), before)
    seed = seeding.derive(params.seed, "initialisation", 1)
    plain = create_model("resnet10t", num_classes=10, in_chans=1, seed=seed)
    assert all(part.training for part in module.modules())
    assert all(torch.equal(one, plain.state_dict()[name]) for name, one in module.state_dict().items())


def test_a_built_in_network_is_not_tried(copied: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(PreActResNet, "forward")
    with closing(Session.open(copied.params)) as session:
        try_start(session, CROSS_ENTROPY)


def test_a_gpu_that_is_not_there_is_refused(copied: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    refused("pretrain", make_params(compute__device="cuda"), "compute.device: found cuda", "auto or cpu")


@pytest.mark.parametrize("each", [1, 4])
def test_validation_takes_one_of_a_class_that_can_spare_it(each: int, project: Path) -> None:
    for i in range(8):
        write_picture(project / "images" / f"class {i // each}" / f"{i}.png", i, size=(8, 8))
    changes = {"data__source": "imagefolder", "data__root": "images", "data__limit": None}
    params = make_params(**changes, noise__kind="none", train__batch_size=4, mlnt__neighbors=2)
    run_stage("download", params)
    if each == 1:
        refused("noise", params, "noise.validation_fraction: found 0.2, but each class has one", "val/CLASS/")
    else:
        run_stage("noise", params)
        assert len(read_labels(read_dataset()).rows(VALIDATION)) == 2
        run_stage("pretrain", params)


@pytest.mark.parametrize("stage", ["download", "noise", "pretrain", "features", "evaluate", "report"])
def test_a_folder_that_cannot_be_written_leaves_the_old_files(
    stage: str, copied: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    refused(stage, copied.params, "could not be written", "No space left", "as it was before", error=RunError)
    assert not [name for name in digests(copied.folder) if name.endswith(".tmp")]


@pytest.mark.parametrize(("device", "missing"), [("cpu", "not g++, which"), ("cuda", "not gcc or clang")])
def test_compiling_without_a_compiler_is_refused(
    device: str, missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"compute\.compile: found true.*COMPILE=yes") as caught:
        require_compiler(torch.device(device))
    assert missing in str(caught.value)
    for name in ("g++", "gcc"):
        (tmp_path / name).touch(mode=0o755)
    require_compiler(torch.device("cpu"))
