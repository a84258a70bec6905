"""reports/index.html and the terminal's table: what they hold, and what own names may do to them."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from pages import Page, check_self_contained
from projects import copy_outputs, digests, make_params, run_stage, write_picture
from runs import Run, run_all

from pipeline.report import figures
from pipeline.report.terminal import show
from pipeline.store import record
from pipeline.store.dataset import SPLITS, TRAIN, read_dataset, read_labels
from pipeline.systems.registry import DEFAULT

MODELS = ("student", "teacher")
CHOICES = ("best", "last")


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
    assert "last finished run" not in shown


@pytest.mark.parametrize("stage", ["noise", "pretrain", "features", "meta2"])
def test_the_table_is_said_to_be_older_than_what_has_run_since(
    stage: str, finished: Run, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy_outputs(finished.folder, project)
    found = record.read(stage)
    assert found is not None
    replace(found, outputs=dict.fromkeys(found.outputs, "another")).write()
    show()
    assert "last finished run" in capsys.readouterr().out


def test_the_table_is_said_to_be_old_where_a_training_is_going_on(
    finished: Run, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy_outputs(finished.folder, project)
    record.place("meta3").unlink()
    show()
    assert "last finished run" in capsys.readouterr().out


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
