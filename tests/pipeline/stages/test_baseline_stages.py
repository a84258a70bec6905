"""Baselines and references as stages: what they write, what they are told, what they refuse."""

from __future__ import annotations

import csv
import json
import math
import shutil
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from projects import copy_outputs, digests, make_params, run_stage

from mlnt.baselines.cnn_crf import CRFStep
from mlnt.baselines.co_teaching import CoTeachingStep
from mlnt.baselines.divide_mix import DivideMixStep
from mlnt.baselines.forward import ForwardStep
from mlnt.baselines.joint_optimization import LabelCorrectionStep
from mlnt.baselines.meta_weight_net import MetaWeightNetStep
from pipeline.base import console
from pipeline.base.errors import RunError, UserError
from pipeline.params.schema import Params
from pipeline.report.terminal import show
from pipeline.stages import evaluate, report, train
from pipeline.store.dataset import TRAIN, read_dataset, read_labels, read_soft_labels, write_dataset
from pipeline.systems.joint_optimization import SOFT_LABELS
from pipeline.systems.registry import BY_STAGE, GROUPS, SYSTEMS, Group
from pipeline.training.build import fresh_network
from pipeline.training.plan import System
from pipeline.training.session import Session

SMALL: dict[str, Any] = {
    "joint_optimization__epochs": 4,
    "joint_optimization__first_update": 2,
    "joint_optimization__average_epochs": 2,
    "joint_optimization__lr_drop_epochs": [1],
    "gce__first_pruning": 1,
    "divide_mix__warm_up": 1,
    "divide_mix__unlabeled_ramp_length": "3 steps",
}


NAMES = [system.stage for group in GROUPS.values() for system in group.systems]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data, labels, pretrain and every system beside the default run."""
    folder = tmp_path_factory.mktemp("baselines")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for stage in ("download", "noise", "pretrain", "features"):
            run_stage(stage, make_params(**SMALL))
        for name in NAMES:
            train.run(make_params(**SMALL), name)
    return folder


@pytest.fixture
def copied(finished: Path, project: Path) -> Path:
    copy_outputs(finished, project)
    return project


def plan_of(name: str, params: Params) -> Any:
    system = BY_STAGE[name]
    return system.build(Session.open(params), None).step


@pytest.mark.parametrize("name", NAMES)
def test_a_baseline_leaves_models_history_and_card(name: str, finished: Path) -> None:
    with (finished / f"plots/{name}.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == (4 if name == "joint_optimization_1" else 2)
    assert all(math.isfinite(float(row["class_loss"])) for row in rows)
    meta = name == "elr_meta"
    assert all((row["meta_loss"] != "", float(row["meta_lr"]) > 0) == (meta, meta) for row in rows)
    card = json.loads((finished / f"models/{name}/model.json").read_text())
    best = max(float(row[f"{card['mentor']}_validation_accuracy"]) for row in rows)
    assert card["validation_accuracy"][card["mentor"]] == pytest.approx(best, abs=1e-6)
    weights = {f"{model}_{choice}.safetensors" for model in ("student", "teacher") for choice in ("best", "last")}
    extra = {"soft_labels.h5"} if name == "joint_optimization_1" else set()
    assert {p.name for p in (finished / f"models/{name}").iterdir()} == weights | {
        "input.safetensors",
        "model.json",
    } | extra
    assert not [path for path in digests(finished, "checkpoints") if not path.endswith("lock")]


def test_the_learning_rates_of_joint_optimization(finished: Path) -> None:
    params = make_params(**SMALL)
    rates = {}
    for name in ("joint_optimization_1", "joint_optimization"):
        with (finished / f"plots/{name}.csv").open() as file:
            rates[name] = [float(row["lr"]) for row in csv.DictReader(file)]
    assert rates["joint_optimization_1"] == [params.joint_optimization.lr] * 4
    assert rates["joint_optimization"] == pytest.approx([0.1, 0.01])


def test_the_soft_labels_are_distributions_that_have_left_the_given_labels(finished: Path) -> None:
    with h5py.File(finished / "models/joint_optimization_1/soft_labels.h5") as file:
        table = file["soft_labels"][:]
    assert table.shape == (159, 10)
    assert len(np.unique(table)) > 1000
    np.testing.assert_allclose(table.sum(axis=1), 1, rtol=1e-5)
    assert 0 < table.max(axis=1).mean() < 1


def test_the_soft_labels_are_the_mean_of_the_last_predictions_row_for_row(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside the predictions as the step sees them, kept by hand; and step 2 reads the rows in the same order."""
    labels = read_labels(read_dataset())
    given = labels.labels[labels.rows(TRAIN)]
    latest = np.eye(10, dtype=np.float32)[given]
    history: list[Any] = []
    original, end = LabelCorrectionStep.loss, LabelCorrectionStep.end_epoch

    def loss(self: Any, state: Any, batch: Any) -> Any:
        value, logits = original(self, state, batch)
        latest[batch.positions.numpy()] = logits.detach().softmax(1).numpy()
        return value, logits

    def end_epoch(self: Any, epoch: Any) -> None:
        history.append(latest.copy())
        end(self, epoch)

    monkeypatch.setattr(LabelCorrectionStep, "loss", loss)
    monkeypatch.setattr(LabelCorrectionStep, "end_epoch", end_epoch)
    train.run(make_params(**SMALL), "joint_optimization_1")
    assert len(history) == 4
    written = read_soft_labels(SOFT_LABELS, labels)
    np.testing.assert_allclose(written, np.mean(history[-2:], axis=0), rtol=1e-5, atol=1e-6)
    step = plan_of("joint_optimization", make_params(**SMALL))
    np.testing.assert_array_equal(step.soft_labels.numpy(), written)


def test_step_2_starts_from_other_weights_than_step_1(finished: Path) -> None:
    """After one epoch at the same batches they would be alike otherwise."""
    params = make_params(**SMALL)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(finished)
        systems = [BY_STAGE[name] for name in ("joint_optimization_1", "joint_optimization")]
        one, two = (fresh_network(each, params, read_dataset(), torch.device("cpu")) for each in systems)
    first, second = (next(iter(network.parameters())) for network in (one, two))
    assert not np.allclose(first.detach().numpy(), second.detach().numpy())


def test_a_label_that_the_matrix_never_gives_is_named(copied: Path) -> None:
    text = "\n".join([",".join(["0", *["0.111111111"] * 8, "0.111111112"])] * 10)
    Path("matrix.csv").write_text(text)
    params = make_params(noise__kind="matrix", noise__matrix_file="matrix.csv", noise__sampling="exact")
    run_stage("noise", params)
    labels = read_labels(read_dataset())
    assert (labels.labels[labels.rows(TRAIN)] == 0).any()  # what the floors leave over keeps its label
    with pytest.raises(UserError, match=r"the noise matrix never gives the label '0', which \d+ training samples have"):
        train.run(params, "forward")


def test_a_baseline_again_gives_the_same_bits(copied: Path, finished: Path) -> None:
    train.run(make_params(**SMALL), "cnn_crf")
    train.run(make_params(**SMALL), "joint_optimization_1")
    for folder in ("models/cnn_crf", "models/joint_optimization_1"):
        assert digests(copied, folder) == digests(finished, folder)


def test_forward_is_told_the_matrix_that_the_noise_was_drawn_from(copied: Path) -> None:
    step = plan_of("forward", make_params())
    assert isinstance(step, ForwardStep)
    expected = 0.5 * np.eye(10) + 0.05
    np.testing.assert_allclose(step.transition_matrix.numpy(), expected, rtol=1e-6)
    estimated = plan_of("forward_estimated", make_params()).transition_matrix.numpy()
    np.testing.assert_allclose(estimated.sum(axis=1), 1, rtol=1e-5)
    assert np.abs(estimated - expected).max() > 1e-3


def test_co_teaching_is_told_the_share_of_wrong_labels(copied: Path) -> None:
    step = plan_of("co_teaching", make_params())
    assert isinstance(step, CoTeachingStep)
    labels = read_labels(read_dataset())
    assert labels.true_labels is not None
    rows = labels.rows(TRAIN)
    assert step.noise_rate == pytest.approx((labels.true_labels[rows] != labels.labels[rows]).mean(), rel=1e-12)
    assert plan_of("co_teaching", make_params(co_teaching__noise_rate=0.3)).noise_rate == 0.3


def test_divide_mix_is_told_what_params_yaml_says(copied: Path) -> None:
    params = make_params(divide_mix__warm_up=1, divide_mix__unlabeled_ramp_length=1.5, divide_mix__augmentations=3)
    step = plan_of("divide_mix", params)
    assert isinstance(step, DivideMixStep)
    assert (step.num_samples, step.ramp_steps, step.views) == (159, 6, 3)  # four steps an epoch
    assert (step.warm_up, step.threshold) == (params.divide_mix.warm_up, params.divide_mix.threshold)


@pytest.mark.parametrize(
    ("name", "key"), [("divide_mix", "divide_mix.warm_up"), ("gce_truncated", "gce.first_pruning")]
)
def test_a_method_that_would_never_begin_is_refused(name: str, key: str, copied: Path) -> None:
    """It would be cross entropy, or plain GCE, under another name."""
    params = make_params(**{key.replace(".", "__"): 2})
    with pytest.raises(UserError, match=rf"^{key}: found 2, expected fewer than the 2 of train.epochs"):
        plan_of(name, params)


@pytest.mark.parametrize("name", ["co_teaching", "divide_mix"])
def test_the_networks_of_a_pair_start_apart_and_the_first_as_cross_entropy_does(name: str, copied: Path) -> None:
    params, data = make_params(), read_dataset()
    alone, pair = (fresh_network(BY_STAGE[each], params, data, torch.device("cpu")) for each in ("pretrain", name))
    first, second = (network.state_dict() for network in pair.networks)  # type: ignore[union-attr]
    assert all(torch.equal(tensor, first[key]) for key, tensor in alone.state_dict().items())
    assert not torch.equal(first["stem.weight"], second["stem.weight"])


@pytest.mark.parametrize("name", ["co_teaching", "divide_mix"])
def test_a_stopped_pair_goes_on_with_the_same_bits(
    name: str, finished: Path, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the second epoch, whose division and mini-batches are not made again."""
    shutil.rmtree(copied / f"models/{name}")

    def at(_: console.Lines, number: int) -> None:
        if number == 6:
            raise SystemExit(143)

    params = make_params(**SMALL, run__checkpoint_every="1 steps")
    with monkeypatch.context() as patch:
        patch.setattr(console.Lines, "at", at)
        with pytest.raises(SystemExit):
            train.run(params, name)
    said: list[str] = []
    monkeypatch.setattr(console, "say", said.append)
    train.run(params, name)
    assert f"{name}: going on after step 5 of 8" in said
    assert digests(copied, f"models/{name}") == digests(finished, f"models/{name}")


def test_joint_optimization_is_told_the_distribution_of_the_true_classes(copied: Path) -> None:
    step = plan_of("joint_optimization_1", make_params())
    assert isinstance(step, LabelCorrectionStep)
    labels = read_labels(read_dataset())
    assert labels.true_labels is not None
    counts = np.bincount(labels.true_labels[labels.rows(TRAIN)], minlength=10)
    np.testing.assert_allclose(step.prior.numpy(), counts / counts.sum(), rtol=1e-6)


def test_the_crf_is_told_a_tenth_of_the_true_labels(copied: Path) -> None:
    step = plan_of("cnn_crf", make_params(cnn_crf__clean_fraction=0.1))
    assert isinstance(step, CRFStep)
    labels = read_labels(read_dataset())
    assert labels.true_labels is not None
    rows = labels.rows(TRAIN)
    known = step.known.numpy()
    told = known >= 0
    assert 10 <= told.sum() <= 22
    assert np.array_equal(known[told], labels.true_labels[rows][told])
    counts = np.ones((10, 10))
    np.add.at(counts, (known[told], labels.labels[rows][told]), 1)
    np.testing.assert_allclose(step.auxiliary.numpy(), counts / counts.sum(axis=0), rtol=1e-5)
    other = plan_of("cnn_crf", make_params(cnn_crf__auxiliary="transition_matrix", cnn_crf__clean_fraction=0.0))
    assert (other.known == -1).all()
    np.testing.assert_allclose(other.auxiliary.numpy(), 0.5 * np.eye(10) + 0.05, rtol=1e-5)


def test_meta_weight_net_is_told_the_same_true_labels(copied: Path) -> None:
    params = make_params(cnn_crf__clean_fraction=0.1, meta_weight_net__clean_fraction=0.1)
    known, step = plan_of("cnn_crf", params).known, plan_of("meta_weight_net", params)
    assert isinstance(step, MetaWeightNetStep)
    told = known >= 0
    assert torch.equal(step.clean_labels, known[told])
    with closing(Session.open(params)) as session:
        images = session.images.batch(session.split(TRAIN).indices[told])
    assert torch.equal(step.clean_images, images)


def test_meta_weight_net_cannot_be_compiled(copied: Path) -> None:
    session = replace(Session.open(make_params()), params=make_params(compute__compile=True))
    with pytest.raises(UserError, match=r"compute.compile: found true, expected false: Meta-Weight-Net"):
        BY_STAGE["meta_weight_net"].build(session, None)


def test_the_filter_of_elr_is_that_of_its_first_round(copied: Path) -> None:
    params = make_params(**SMALL, filter__tau=0.1)
    train.run(params, "elr_filter")
    card = json.loads((copied / "models/elr_filter/model.json").read_text())
    with closing(Session.open(params)) as session:
        network, digest = session.best_network(BY_STAGE["elr"])
        (logits,) = session.logits([network], TRAIN, "test")
        kept = logits.softmax(1).gather(1, session.split(TRAIN).labels.unsqueeze(1)) > 0.1
    assert card["kept_fraction"] == pytest.approx(kept.double().mean().item())
    assert 0 < card["kept_fraction"] < 1
    (record,) = json.loads((copied / "records/elr_filter.json").read_text())
    assert record["inputs"]["elr"] == digest
    assert {"elr.beta", "filter.tau"} <= record["params"].keys()


def test_the_truncated_loss_leaves_samples_out_after_its_first_epochs(finished: Path) -> None:
    rows = {}
    for name in ("gce", "gce_truncated"):
        with (finished / f"plots/{name}.csv").open() as file:
            rows[name] = list(csv.DictReader(file))
    assert rows["gce"][0] == rows["gce_truncated"][0]
    assert rows["gce"][1] != rows["gce_truncated"][1]


@pytest.mark.parametrize(("name", "title"), [("meta_weight_net", "Meta-Weight-Net"), ("co_teaching", "Co-teaching")])
def test_the_time_of_a_step_that_no_stage_before_has_timed_is_measured(
    name: str, title: str, copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By its own stage, each time: what the others have measured stays as it is."""
    Path("timings").mkdir()
    train.run(make_params(**SMALL), "pretrain")
    measured = Path("timings/steps.json").read_text()
    assert json.loads(measured)["steps"].keys() == {"meta1", "meta2", "meta3"}
    capsys.readouterr()
    train.run(make_params(**SMALL), name)
    assert f"{title} on CPU, 1 thread: about" in capsys.readouterr().err
    assert Path("timings/steps.json").read_text() == measured


@pytest.fixture(scope="module")
def judged(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default run and what stands beside it, evaluated and reported."""
    folder = tmp_path_factory.mktemp("judged")
    copy_outputs(finished, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        params = make_params(**SMALL)
        for stage in ("meta1", "meta2", "meta3", "control2", "control3", "evaluate"):
            run_stage(stage, params)
        for group in GROUPS:
            evaluate.run(params, group)
            report.run(params, group)
    return folder


def in_tables(group: Group) -> list[System]:
    return [system for system in group.systems if system.in_tables]


@pytest.mark.parametrize("group", GROUPS.values(), ids=lambda group: group.name)
def test_every_system_of_a_group_is_judged_like_those_of_the_default_run(group: Group, judged: Path) -> None:
    ours, theirs = (json.loads((judged / f"metrics/{name}.json").read_text()) for name in ("evaluate", group.name))
    assert list(theirs) == ["labels_digest", "samples", *(system.name for system in in_tables(group))]
    assert theirs["samples"] == ours["samples"]
    for system in in_tables(group):
        values = theirs[system.name]
        assert set(values) == set(ours["cross_entropy"])
        assert 0 < values["label_issues"]["auc"] <= 1
        with (judged / f"plots/{system.stage}.csv").open() as file:
            last = list(csv.DictReader(file))[-1]
        for model in ("student", "teacher"):
            assert values[model]["last"]["test_accuracy"] == pytest.approx(
                float(last[f"{model}_test_accuracy"]), abs=1e-6
            )
    with (judged / f"reports/{group.name}_label_issues.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(in_tables(group)) * sum(ours["samples"].values())
    assert {row["system"] for row in rows} == {system.name for system in in_tables(group)}


@pytest.mark.parametrize("group", GROUPS.values(), ids=lambda group: group.name)
def test_the_report_of_a_group_shows_it_beside_the_default_run(group: Group, judged: Path) -> None:
    page = (judged / f"reports/{group.name}.html").read_text(encoding="utf-8")
    shown = [each for each in SYSTEMS if each.in_tables and (each.default or each in group.systems)]
    places = [page.index(f"<td>{title}") for system in shown for _, title, _ in system.models]
    assert places == sorted(places)
    others = [each for each in SYSTEMS if each.in_tables and each not in shown]
    assert not [title for system in others for _, title, _ in system.models if f"<td>{title}<" in page]


def test_the_table_on_the_terminal_has_the_systems_of_these_labels(
    judged: Path, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy_outputs(judged, project)
    show()
    shown = capsys.readouterr().out
    for system in SYSTEMS:
        assert (system.title in shown) == system.in_tables
    metrics = json.loads(Path("metrics/baselines.json").read_text())
    line = next(line for line in shown.splitlines() if BY_STAGE["forward"].title in line)
    assert f"{100 * metrics['forward']['student']['last']['test_accuracy']:.1f}" in line
    Path("metrics/baselines.json").write_text(json.dumps({**metrics, "labels_digest": "another"}))
    show()
    assert BY_STAGE["forward"].title not in capsys.readouterr().out
    Path("models/pretrain/model.json").write_text("[]")
    with pytest.raises(UserError, match=r"models/pretrain/model\.json"):
        show()


def test_step_2_without_step_1_names_the_file(copied: Path) -> None:
    (copied / "models/joint_optimization_1/soft_labels.h5").unlink()
    with pytest.raises(UserError, match=r"soft_labels.h5: no such file; `mlnt baseline joint_optimization_1` makes it"):
        train.run(make_params(**SMALL), "joint_optimization")


def test_soft_labels_of_other_labels_are_refused(copied: Path) -> None:
    run_stage("noise", make_params(seed=1))
    with pytest.raises(UserError, match=r"soft_labels.h5: .*other labels"):
        train.run(make_params(**SMALL, seed=1), "joint_optimization")


@pytest.mark.parametrize(("name", "key"), [("joint_optimization_1", "joint_optimization.lr"), ("forward", "train.lr")])
def test_a_baseline_that_diverges_names_its_rate_and_leaves_a_record(name: str, key: str, copied: Path) -> None:
    rate = {key.replace(".", "__"): 1e30}
    with pytest.raises(RunError, match=rf"^{name}: the loss was nan at step \d+; lower {key} \(1e\+30\)$"):
        train.run(make_params(**SMALL, **rate), name)
    records = list(Path("checkpoints").glob(f"{name}/*/diverged.json"))
    assert [json.loads(path.read_text())["stage"] for path in records] == [name]


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("forward", {}, r"forward: .*noise matrix.* for noise.kind none"),
        ("co_teaching", {}, r"co_teaching.noise_rate: found null, .* not known for noise.kind none on these data; "),
        ("cnn_crf", {}, r"cnn_crf.clean_fraction: found 0.1, but no true labels are known"),
        ("meta_weight_net", {}, r"meta_weight_net.clean_fraction: found 0.1, but no true labels are known"),
        (
            "cnn_crf",
            {"cnn_crf__clean_fraction": 0.0, "cnn_crf__auxiliary": "transition_matrix"},
            r"cnn_crf: .*noise matrix.* for noise.kind none on these data$",
        ),
    ],
)
def test_prior_knowledge_that_is_not_there_is_asked_for(
    name: str, changes: dict[str, Any], message: str, copied: Path
) -> None:
    """Own data, labels as given: nobody knows which of them are right."""
    with h5py.File("data/dataset.h5") as file:
        assert "images" in file
    dataset = read_dataset()
    write_dataset(type(dataset)(**{**vars(dataset), "labels_are_true": False, "source": "imagefolder"}))
    params = make_params(noise__kind="none", **changes)
    run_stage("noise", params)
    with pytest.raises(UserError, match=message):
        train.run(params, name)
    assert not Path(f"models/{name}/.partial").exists()
