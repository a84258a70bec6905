"""`train.folds`: networks that have not seen a part of the labels, and what goes by them; `filter.tau: auto`."""

from __future__ import annotations

import shutil
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from projects import copy_outputs, digests, make_params, run_stage, write_picture, written_by
from runs import Run, run_all
from safetensors.torch import load_file, save_file
from sklearn.metrics import precision_score, recall_score, roc_auc_score
from torch import Tensor

from mlnt.method.confident import LabelScores, issue_thresholds, least_share
from mlnt.method.mentor import filter_by_margin
from mlnt.networks import create_model
from pipeline.base import console, files
from pipeline.base.errors import UserError
from pipeline.paper import figure7
from pipeline.params.schema import Params
from pipeline.stages import evaluate
from pipeline.store import models
from pipeline.store.dataset import DECISIONS, DROPPED, TRAIN, VALIDATION, read_dataset, read_labels, write_labels
from pipeline.systems.registry import BY_STAGE, DEFAULT, FINAL, GROUPS
from pipeline.training import filtering, folds
from pipeline.training import session as session_module
from pipeline.training.image_store import image_store
from pipeline.training.session import Session
from pipeline.use.export import labels as export_labels

K = 3
TRAINING = [system.stage for system in DEFAULT]


def folded(**changes: Any) -> Params:
    return make_params(**{"train__folds": K, "filter__tau": 0.1, **changes})


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of all stages, in folds."""
    return run_all(tmp_path_factory.mktemp("folded"), folded())


@pytest.fixture
def copied(finished: Run, project: Path) -> Run:
    copy_outputs(finished.folder, project)
    return Run(project, finished.params, finished.written)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, finished: Run) -> Path:
    """The same data and labels, trained without folds."""
    folder = tmp_path_factory.mktemp("plain")
    shutil.copytree(finished.folder / "data", folder / "data")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for stage in ("pretrain", "features", "meta1"):
            run_stage(stage, make_params())
    return folder


def table(stage: str) -> dict[str, Tensor]:
    return load_file(models.out_of_fold_file(stage))


def train_labels() -> tuple[Tensor, NDArray[np.bool_]]:
    """The given labels of the training samples, and which of them are wrong."""
    dataset = read_dataset()
    labels = read_labels(dataset)
    rows = labels.rows(TRAIN)
    assert labels.true_labels is not None
    return torch.from_numpy(labels.labels[rows]), labels.true_labels[rows] != labels.labels[rows]


def of_given(probs: Tensor, labels: Tensor) -> Tensor:
    return probs[torch.arange(len(labels)), labels]


def refused(stage: str, params: Params, *expected: str) -> None:
    """The stage ends with one line that contains all of this, and writes nothing."""
    before = digests(Path.cwd(), *written_by(stage))
    with pytest.raises(UserError) as caught:
        run_stage(stage, params)
    assert all(part in str(caught.value) for part in expected), caught.value
    assert "\n" not in str(caught.value)
    assert digests(Path.cwd(), *written_by(stage)) == before


# The parts


def parts(session: Session, **changes: Any) -> Tensor:
    train = session.params.train.model_copy(update={"folds": changes.pop("count", K)})
    params = session.params.model_copy(update={"train": train, **changes})
    return folds.assigned(replace(session, params=params))


@pytest.mark.parametrize("count", [2, 3, 7])
def test_the_parts_are_stratified_within_one(count: int, copied: Run) -> None:
    with closing(Session.open(copied.params)) as session:
        part, labels = parts(session, count=count), session.split(TRAIN).labels
        assert part.shape == (159,)
        for of in (part, *(part[labels == c] for c in range(10))):
            sizes = of.bincount(minlength=count)
            assert len(sizes) == count
            assert sizes.max() - sizes.min() <= 1
        # By chance, not by their place.
        assert not torch.equal(part.sort().values, part)


def test_the_parts_are_those_of_the_seed(copied: Run) -> None:
    with closing(Session.open(copied.params)) as session:
        assert torch.equal(parts(session), parts(session))
        assert torch.equal(parts(session), table("pretrain")["part"])
        assert not torch.equal(parts(session, seed=1), parts(session))


def test_equal_images_are_left_out_together(copied: Run) -> None:
    with closing(Session.open(copied.params)) as session:
        rows, same = session.labels.rows(TRAIN), np.full(len(session.labels.labels), -1)
        groups = [rows[[0, 50]], rows[[3, 4, 5, 140]], rows[[7, 8]]]  # of whatever labels
        for number, group in enumerate(groups):
            same[group] = number
        same[[int(each) for each in session.labels.rows(1)[:2]]] = 0  # one that is not trained on
        part = parts(replace(session, dataset=replace(session.dataset, same_picture=same)))
        for group in groups:
            assert len(part[np.searchsorted(rows, group)].unique()) == 1
        sizes = part.bincount(minlength=K)
        assert sizes.sum() == 159
        assert sizes.max() - sizes.min() <= 1 + 4


# Who has seen what


def flipped(labels: Any, at: int) -> Any:
    """The labels, that of one training sample another."""
    given, row = labels.labels.copy(), labels.rows(TRAIN)[at]
    given[row] = (given[row] + 1) % 10
    return replace(labels, labels=given)


def after_a_flip(stages: list[str], params: Params, monkeypatch: pytest.MonkeyPatch) -> tuple[Tensor, Tensor, Tensor]:
    """The out-of-fold probabilities of the last of the stages, with the labels as they are and with another given label
    of one sample, and its part; the parts, which are stratified by given labels, stay those of before."""
    part, before = table(stages[-1])["part"], table(stages[-1])["probabilities"]
    at = 20
    write_labels(flipped(read_labels(read_dataset()), at))
    monkeypatch.setattr(folds, "assigned", lambda session: part)
    for stage in stages:
        run_stage(stage, params)
    return before, table(stages[-1])["probabilities"], part == part[at]


def test_a_label_does_not_change_what_is_said_of_its_part(copied: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    before, after, own = after_a_flip(["pretrain"], copied.params, monkeypatch)
    assert torch.equal(after[own], before[own])
    assert all(not torch.equal(after[i], before[i]) for i in (~own).nonzero().flatten().tolist())


def without(session: Session, out: Tensor) -> Session:
    """The session of labels that lack a part."""
    split = session.labels.split.copy()
    split[session.labels.rows(TRAIN)[out.numpy()]] = DROPPED
    return replace(session, labels=replace(session.labels, split=split))


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_part_is_judged_by_a_training_on_the_data_without_it(copied: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the bit, by the stage itself on such data; but images are normalised by all of the training split, as ever."""
    number = 1
    network = load_file(models.fold_file("pretrain", number))
    with closing(Session.open(copied.params)) as session:
        every = session.labels.rows(TRAIN)
        write_labels(without(session, table("pretrain")["part"] == number).labels)
    monkeypatch.setattr(
        session_module, "image_store", lambda params, dataset, _, device: image_store(params, dataset, every, device)
    )
    run_stage("pretrain", make_params())
    mentor = copied.json("models/pretrain/model.json")["mentor"]
    assert equal(network, load_file(models.weights_file("pretrain", mentor, "best")))


def test_in_later_iterations_the_mentor_has_not_seen_the_part_and_the_others_are_filtered(copied: Run) -> None:
    number, system = 1, BY_STAGE["meta2"]
    out = table("meta2")["part"] == number
    with closing(Session.open(copied.params)) as session:
        kept = of_given(table("meta1")["probabilities"], session.split(TRAIN).labels) > copied.params.filter.tau
        assert 0 < kept[~out].sum() < len(kept[~out])
        smaller = without(session, out)
        mentor = smaller.network(BY_STAGE["meta1"], models.fold_file("meta1", number))
        mentor.module.eval().requires_grad_(False)
        training = smaller.training(system, system.build(smaller, mentor), kept[~out])
        for _ in training.epochs():
            pass
    assert equal(load_file(models.fold_file("meta2", number)), training.best[training.mentor()].weights)
    assert copied.json("models/meta2/model.json")["kept_fraction"] == pytest.approx(
        kept.double().mean().item(), abs=1e-6
    )


@pytest.mark.parametrize("stage", ["pretrain", "control3", "meta3"])
def test_the_probabilities_are_those_of_the_networks_beside_them(stage: str, copied: Run) -> None:
    assert copied.json(f"models/{stage}/model.json")["folds"] == K
    labels = read_labels(read_dataset())
    rows = torch.from_numpy(labels.rows(TRAIN))
    images, _ = image_store(copied.params, read_dataset(), labels.rows(TRAIN), torch.device("cpu"))
    found = table(stage)
    for number in range(K):
        network = create_model("preact_resnet_tiny", num_classes=10, in_chans=1, seed=0).eval()
        network.load_state_dict(load_file(models.fold_file(stage, number)))
        own = found["part"] == number
        with torch.no_grad():
            probs = network(images.batch(rows[own])).softmax(dim=1)
        torch.testing.assert_close(found["probabilities"][own], probs)


@pytest.mark.parametrize("stage", ["pretrain", "meta1"])
def test_the_training_of_all_samples_is_the_one_that_it_is_without_folds(
    stage: str, finished: Run, plain: Path
) -> None:
    found, expected = digests(finished.folder / f"models/{stage}"), digests(plain / f"models/{stage}")
    folds_alone = {"out_of_fold.safetensors", *(f"fold_{number}.safetensors" for number in range(K))}
    assert found.keys() - expected.keys() == folds_alone
    assert {name for name in expected if found[name] != expected[name]} == {"model.json"}
    assert digests(finished.folder, f"plots/{stage}.csv") == digests(plain, f"plots/{stage}.csv")
    cards = [
        finished.json(f"models/{stage}/model.json"),
        Run(plain, finished.params, {}).json(f"models/{stage}/model.json"),
    ]
    assert [card.pop("folds") for card in cards] == [K, 0]
    assert cards[0] == cards[1]


def test_the_baselines_have_no_folds(plain: Path, finished: Run, project: Path) -> None:
    found = []
    for params, folder in ((make_params(), plain), (folded(), finished.folder)):
        shutil.rmtree("data", ignore_errors=True)
        shutil.rmtree("models", ignore_errors=True)
        shutil.copytree(folder / "data", "data")
        shutil.copytree(folder / "models/pretrain", "models/pretrain")
        run_stage("forward", params)
        found.append(digests(project, "models/forward"))
        evaluate.run(params, "baselines")
        assert "out of fold" not in GROUPS["baselines"].label_issues.read_text(encoding="utf-8")
    assert found[0] == found[1]


# Stops


def stop_at(training: int, step: int, patch: pytest.MonkeyPatch) -> None:
    """The stage is stopped before this step of one of its trainings, the parts' first."""
    begun = 0

    def at(_: console.Lines, number: int) -> None:
        nonlocal begun
        begun += number == 0
        if (begun - 1, number) == (training, step):
            raise SystemExit(143)

    patch.setattr(console.Lines, "at", at)


@pytest.mark.parametrize(
    ("stage", "training", "step", "resumed"),
    [
        ("pretrain", 0, 5, "pretrain, part 1/3: going on after step 3 of 6"),
        ("meta2", 1, 4, "meta2, part 2/3: going on after step 3 of 6"),
        ("pretrain", 2, 0, None),
        ("control2", K, 2, None),
        ("pretrain", K, 5, "pretrain: going on after step 4 of 8"),
    ],
)
def test_a_stop_at_any_time_costs_no_finished_part_and_no_bit(
    stage: str,
    training: int,
    step: int,
    resumed: str | None,
    finished: Run,
    copied: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.rmtree(f"models/{stage}")
    with monkeypatch.context() as patch:
        stop_at(training, step, patch)
        with pytest.raises(SystemExit):
            run_stage(stage, copied.params)
    assert not Path(f"models/{stage}").exists()
    said: list[str] = []
    bars: list[str] = []
    progress = console.progress
    monkeypatch.setattr(console, "say", said.append)
    monkeypatch.setattr(console, "progress", lambda title, *rest: bars.append(title) or progress(title, *rest))
    run_stage(stage, copied.params)
    assert [line for line in said if "going on" in line] == ([] if resumed is None else [resumed])
    of_parts = [f"{stage}, part {number + 1}/{K}" for number in range(training, K)]
    assert bars == [*of_parts, stage]
    assert digests(copied.folder, *written_by(stage)) == digests(finished.folder, *written_by(stage))
    assert not list(Path("checkpoints").rglob("*.safetensors"))


# What goes by them


def test_label_issues_are_judged_out_of_fold(copied: Run) -> None:
    labels, wrong = train_labels()
    rows = read_labels(read_dataset()).rows(TRAIN)
    probs = table(FINAL.stage)["probabilities"]
    lines = {int(row["index"]): row for row in copied.table("reports/label_issues.csv")}
    assert {row["score_kind"] for row in lines.values() if row["split"] == "train"} == {"out of fold"}
    assert {row["score_kind"] for row in lines.values() if row["split"] != "train"} == {"held out"}
    for row, label, of in zip(rows.tolist(), labels.tolist(), probs, strict=True):
        assert float(lines[row]["label_score"]) == pytest.approx(of[label].item(), rel=1e-5)
        assert float(lines[row]["predicted_score"]) == pytest.approx(of.max().item(), rel=1e-5)
        assert lines[row]["predicted_label"] == str(of.argmax().item())
    listed = np.array([lines[row]["is_label_issue"] == "True" for row in rows.tolist()])
    assert 0 < listed.sum() < len(listed)
    metrics = copied.json("metrics/evaluate.json")
    for system in DEFAULT:
        scores = of_given(table(system.stage)["probabilities"], labels)
        found = metrics[system.name]["label_issues"]
        assert found["auc"] == pytest.approx(roc_auc_score(wrong, -scores.numpy()), abs=1e-6)
    assert found["precision"] == pytest.approx(precision_score(wrong, listed), abs=1e-6)
    assert found["recall"] == pytest.approx(recall_score(wrong, listed), abs=1e-6)
    assert found["found_fraction"] == pytest.approx(listed.mean(), abs=1e-6)
    assert "are out of fold" in copied.text("reports/index.html")


def test_the_gallery_and_what_cleanlab_gets_are_out_of_fold(copied: Run) -> None:
    shown = figure7.filtered(copied.params)
    labels, _ = train_labels()
    scores = of_given(table("meta2")["probabilities"], labels)
    passed_over = scores <= copied.params.filter.tau
    assert len(shown) == min(figure7.COUNT, int(passed_over.sum()))
    assert {entry.given_score for entry in shown} <= set(scores[passed_over].tolist())
    export_labels.run(copied.params, "cleanlab", "review", False, Path("out"))
    found = np.load("out/cleanlab.npz")
    train = found["split"] == "train"
    assert np.array_equal(found["pred_probs"][train], table(FINAL.stage)["probabilities"].numpy())
    by_index = {int(row["index"]): float(row["label_score"]) for row in copied.table("reports/label_issues.csv")}
    own = found["pred_probs"][np.arange(len(train)), found["labels"]]
    assert own == pytest.approx([by_index[index] for index in found["index"].tolist()], abs=1e-5)


@pytest.mark.parametrize("stage", ["control2", "meta2"])
def test_what_the_filter_goes_by_is_recorded(stage: str, copied: Run) -> None:
    mentor = BY_STAGE[stage].mentor
    name = f"out of fold of {mentor}"
    (before,), (after,) = (copied.json(f"records/{each}.json") for each in (mentor, stage))
    assert after["inputs"][name] == before["outputs"][name] == files.file_digest(models.out_of_fold_file(str(mentor)))


def test_fewer_folds_or_none_leave_nothing_of_an_earlier_run(copied: Run) -> None:
    run_stage("pretrain", folded(train__folds=2))
    assert {path.name for path in Path("models/pretrain").glob("*fold*")} == {
        "fold_0.safetensors", "fold_1.safetensors", "out_of_fold.safetensors",
    }  # fmt: skip
    run_stage("pretrain", make_params())
    assert not list(Path("models/pretrain").glob("*fold*"))
    run_stage("control2", make_params(filter__tau=0.1))
    labels, _ = train_labels()
    with closing(Session.open(copied.params)) as session:
        network, _ = session.best_network(BY_STAGE["pretrain"])
        (logits,) = session.logits([network], TRAIN, "in sample")
        run_stage("evaluate", copied.params)
    in_sample = of_given(logits.softmax(dim=1), labels)
    kept = copied.json("models/control2/model.json")["kept_fraction"]
    assert kept == pytest.approx((in_sample > 0.1).double().mean().item(), abs=1e-6)
    metrics = copied.json("metrics/evaluate.json")
    _, wrong = train_labels()
    expected = roc_auc_score(wrong, -in_sample.numpy())
    assert metrics["cross_entropy"]["label_issues"]["auc"] == pytest.approx(expected, abs=1e-6)


# Without folds: the network has learnt the labels that it judges, but for those of validation


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory) -> Run:
    changes = {"noise__rate": 0.2, "noise__validation": "noisy", "filter__tau": "auto", "train__epochs": 8}
    return run_all(tmp_path_factory.mktemp("learnt"), make_params(**changes, train__lr_drop_epochs=[6]))


def judged(params: Params, stage: str, split: int) -> tuple[Tensor, Tensor]:
    """The probabilities that the best model of a stage gives to the samples of a split, and their labels."""
    with closing(Session.open(params)) as session:
        network, _ = session.best_network(BY_STAGE[stage])
        (logits,) = session.logits([network], split, "judged")
        return logits.softmax(dim=1), session.split(split).labels


def doubted(probs: Tensor, labels: Tensor, at_least: float = 0.0) -> Tensor:
    scores = LabelScores.of(probs, labels)
    return scores.given <= issue_thresholds(labels, scores, 10, at_least)


def test_auto_keeps_no_more_of_learnt_labels_than_of_others(learnt: Run, project: Path) -> None:
    copy_outputs(learnt.folder, project)
    for stage, mentor in (("control2", "pretrain"), ("meta2", "meta1")):
        training, held_out = (judged(learnt.params, mentor, split) for split in (TRAIN, VALIDATION))
        at_most = 1 - least_share(~filter_by_margin(*held_out))
        kept = filter_by_margin(*training, at_most)
        assert kept.sum() < filter_by_margin(*training).sum()
        card = learnt.json(f"models/{stage}/model.json")
        assert card["kept_fraction"] == pytest.approx(kept.double().mean().item(), abs=1e-6)


def test_as_large_a_share_of_learnt_labels_is_listed_as_of_others(learnt: Run, project: Path) -> None:
    copy_outputs(learnt.folder, project)
    metrics, topped_up = learnt.json("metrics/evaluate.json"), 0
    for system in DEFAULT:
        training, held_out = (judged(learnt.params, system.stage, split) for split in (TRAIN, VALIDATION))
        listed = doubted(*training, least_share(doubted(*held_out)))
        topped_up += int(listed.sum() > doubted(*training).sum())
        found = metrics[system.name]["label_issues"]["found_fraction"]
        assert found == pytest.approx(listed.double().mean().item(), abs=1e-6)
    assert topped_up


@pytest.mark.parametrize("noise", [{"noise__validation": "clean"}, {"noise__kind": "none", "noise__rate": 0.0}])
def test_clean_validation_labels_say_nothing_of_the_others(noise: dict[str, Any], learnt: Run, project: Path) -> None:
    """What a network doubts of them are its own mistakes."""
    copy_outputs(learnt.folder, project)
    section = {key.removeprefix("noise__"): value for key, value in noise.items()}
    params = learnt.params.model_copy(update={"noise": learnt.params.noise.model_copy(update=section)})
    with closing(Session.open(params)) as session:
        everything = torch.ones(len(session.split(VALIDATION).indices), dtype=torch.bool)
        assert filtering.least_doubted(session, everything) == 0


def test_labels_that_people_know_count_in_no_share(learnt: Run, project: Path) -> None:
    copy_outputs(learnt.folder, project)
    with closing(Session.open(learnt.params)) as session:
        rows = {split: session.labels.rows(split) for split in (TRAIN, VALIDATION)}
        doubted = torch.arange(len(rows[VALIDATION])) % 2 == 0
        expected = least_share(doubted)
        assert 0 < filtering.least_doubted(session, doubted) == expected < 0.5
        decisions = np.zeros(len(session.labels.labels), np.uint8)
        decisions[rows[TRAIN][: len(rows[TRAIN]) // 2]] = DECISIONS.index("keep")
        decisions[rows[VALIDATION][1::2]] = DECISIONS.index("relabel")  # left are those that it doubts
        reviewed = replace(session, labels=replace(session.labels, decisions=decisions, reviewed=session.labels.labels))
        share = 1 - (len(rows[TRAIN]) // 2) / len(rows[TRAIN])
        assert filtering.least_doubted(reviewed, doubted) == pytest.approx(share)
        decisions[rows[VALIDATION]] = DECISIONS.index("keep")
        assert filtering.least_doubted(reviewed, doubted) == 0


# Heads, and images that are read from their files


@pytest.fixture(scope="module")
def heads(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("heads")
    save_file(
        create_model("preact_resnet_tiny", num_classes=3, in_chans=1, seed=5).state_dict(), folder / "start.safetensors"
    )
    changes = {"model__train": "head", "model__weights": str(folder / "start.safetensors"), "train__epochs": 16}
    return run_all(folder, folded(**changes, train__folds=2, mlnt__alpha=0.01, mlnt__eta=0.05, filter__tau="auto"))


@pytest.mark.parametrize("stage", ["pretrain", "meta1"])
def test_a_head_does_not_know_the_labels_of_its_part(
    stage: str, heads: Run, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does MLNT: the neighbours of a head are found by embeddings, which depend on no label."""
    copy_outputs(heads.folder, project)
    before, after, own = after_a_flip([stage], heads.params, monkeypatch)
    assert torch.equal(after[own], before[own])
    assert not torch.equal(after, before)


def by_confidence(probs: Tensor) -> Tensor:
    labels, _ = train_labels()
    return filter_by_margin(probs, labels)


def test_heads_are_filtered_and_judged_out_of_fold(heads: Run, project: Path) -> None:
    copy_outputs(heads.folder, project)
    kept = by_confidence(table("meta1")["probabilities"])
    assert 0 < kept.sum() < len(kept)
    assert heads.json("models/meta2/model.json")["kept_fraction"] == pytest.approx(
        kept.double().mean().item(), abs=1e-6
    )
    labels, wrong = train_labels()
    scores = of_given(table(FINAL.stage)["probabilities"], labels)
    found = heads.json("metrics/evaluate.json")[FINAL.name]["label_issues"]
    assert found["auc"] == pytest.approx(roc_auc_score(wrong, -scores.numpy()), abs=1e-6)
    assert found["auc"] > 0.6
    with closing(Session.open(heads.params)) as session:
        head = session.empty(FINAL)
        head.load_state_dict(load_file(models.fold_file(FINAL.stage, 1)))
        own = table(FINAL.stage)["part"] == 1
        with torch.no_grad():
            probs = head(session.images.batch(session.split(TRAIN).indices[own])).softmax(dim=1)
    torch.testing.assert_close(probs, table(FINAL.stage)["probabilities"][own])


def test_what_people_know_is_kept_by_auto_too(heads: Run, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy_outputs(heads.folder, project)
    dropped = (~by_confidence(table("pretrain")["probabilities"])).nonzero().flatten()
    assert len(dropped) > 2
    found: list[Tensor | None] = []
    training = Session.training

    def seen(session: Session, system: Any, plan: Any, kept: Tensor | None = None) -> Any:
        found.append(kept)
        return training(session, system, plan, kept)

    labels = read_labels(read_dataset())
    decisions = np.zeros(len(labels.labels), np.uint8)
    decisions[labels.rows(TRAIN)[dropped[:2].numpy()]] = DECISIONS.index("keep")
    write_labels(replace(labels, decisions=decisions, reviewed=labels.labels))
    run_stage("pretrain", heads.params)
    monkeypatch.setattr(Session, "training", seen)
    run_stage("control2", heads.params)
    kept, *of_parts = found
    assert kept is not None
    assert kept[dropped[:2]].all()
    assert not kept[dropped[2:]].any()
    part = table("pretrain")["part"]
    assert len(of_parts) == 2
    for number, of_part in enumerate(of_parts):
        assert of_part is not None
        assert torch.equal(of_part, kept[part != number])


def test_heads_on_a_table_that_is_read_from_the_disk_give_the_same_bits(heads: Run, project: Path) -> None:
    copy_outputs(heads.folder, project)
    run = heads.params.run.model_copy(update={"max_features_gib": 0.0})
    for stage in ("pretrain", "meta1", "meta2"):
        run_stage(stage, heads.params.model_copy(update={"run": run}))
    assert digests(project, "models/pretrain", "models/meta1", "models/meta2") == digests(
        heads.folder, "models/pretrain", "models/meta1", "models/meta2"
    )


def test_images_that_are_read_from_their_files_give_the_same_bits(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(60):
        write_picture(project / f"own/train/{'ab'[i % 2]}/{i}.png", i, size=(8, 8))
    for i in range(6):  # so that both take the input's statistics over the same images
        write_picture(project / f"own/val/{'ab'[i % 2]}/{i}.png", 100 + i, size=(8, 8))
    found = []
    for storage in ("memory", "files"):
        params = folded(
            data__source="imagefolder",
            data__root="own",
            data__limit=None,
            data__storage=storage,
            run__workers=0,
            noise__kind="none",
            train__batch_size=16,
            filter__tau="auto",
        )
        for stage in ("download", "noise", "pretrain", "control2"):
            run_stage(stage, params)
        found.append({stage: table(stage) for stage in ("pretrain", "control2")})
        assert found[-1]["pretrain"]["part"].bincount().tolist() == [20, 20, 20]
    assert all(equal(found[0][stage], found[1][stage]) for stage in found[0])


# What does not fit


@pytest.mark.parametrize("how", ["spoilt", "cut off", "gone"])
@pytest.mark.parametrize("stage", ["control2", "evaluate"])
def test_a_damaged_table_is_named(how: str, stage: str, copied: Run) -> None:
    path = models.out_of_fold_file("pretrain")
    content = path.read_bytes()
    if how == "gone":
        path.unlink()
    else:
        path.write_bytes(content[:-20] if how == "cut off" else content[:-20] + bytes(20))
    expected = "no such file" if how == "gone" else "damaged"
    refused(stage, copied.params, "models/pretrain/out_of_fold.safetensors", expected, "`dvc repro`")


def test_a_damaged_network_of_a_part_is_named(copied: Run) -> None:
    path = models.fold_file("meta1", 1)
    path.write_bytes(path.read_bytes()[:-20])
    refused("meta2", copied.params, "models/meta1/fold_1.safetensors: damaged", "`dvc repro`")


@pytest.mark.parametrize("changes", [{"train__folds": 2}, {"train__folds": 4}, {"seed": 1}])
def test_a_mentor_that_was_trained_in_other_parts_is_refused(changes: dict[str, Any], copied: Run, plain: Path) -> None:
    """It has seen labels that the networks after it have not."""
    refused("control2", folded(**changes), "train.folds", "models/pretrain", "`dvc repro`")


def test_a_mentor_without_folds_is_refused(plain: Path, project: Path) -> None:
    copy_outputs(plain, project)
    refused("control2", folded(), "train.folds: found 3", "models/pretrain", "`dvc repro`")


def test_parts_that_leave_no_mini_batch_are_refused_before_training(
    copied: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlnt.training.loop.Training.epochs", None)
    refused("pretrain", folded(train__folds=2, train__batch_size=80), "train.folds: found 2", "79", "train.batch_size")
    refused("pretrain", folded(train__folds=160), "train.folds: found 160", "at most 159")


def test_a_class_may_have_fewer_samples_than_there_are_parts(project: Path) -> None:
    for i in range(40):
        write_picture(project / f"own/train/{'a' if i < 38 else 'b'}/{i}.png", i, size=(8, 8))
    write_picture(project / "own/val/a/1.png", 100, size=(8, 8))
    params = folded(
        data__source="imagefolder",
        data__root="own",
        data__limit=None,
        noise__kind="none",
        train__batch_size=16,
        train__folds=5,
        filter__tau="auto",
    )
    for stage in ("download", "noise", "pretrain", "control2"):
        run_stage(stage, params)
    assert table("control2")["probabilities"].sum(dim=1).tolist() == pytest.approx([1] * 40, abs=1e-5)
