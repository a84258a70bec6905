from __future__ import annotations

import subprocess
from contextlib import closing
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
from mlnt.method.mentor import filter_samples
from mlnt.networks import PreActResNet, create_model, pre_logit_features
from pipeline.base import files
from pipeline.base.errors import RunError, UserError
from pipeline.before_training.trial import try_start
from pipeline.paper import figure7
from pipeline.params.load import check, read_yaml
from pipeline.params.schema import Params, leaf_keys
from pipeline.store.dataset import SPLITS, TRAIN, VALIDATION, read_dataset, read_labels
from pipeline.store.features import FeatureFile
from pipeline.systems.mlnt import MLNT
from pipeline.systems.registry import BY_STAGE, CROSS_ENTROPY, DEFAULT
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


def test_a_number_as_tau_needs_no_table_of_all_probabilities(copied: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    params = make_params(filter__tau=0.1, compute__eval_batch_size=64)
    with closing(Session.open(params)) as session:
        network, _ = session.best_network(BY_STAGE["meta1"])
        (logits,) = session.logits([network], SPLITS.index("train"), "table")
        given = session.split(SPLITS.index("train")).labels
        expected = filter_samples(logits.softmax(dim=1), given, 0.1)
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
    "train.batch_norm": "batch",  # the other takes weights to start from
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


def test_the_statistics_of_the_start_weights_stay_where_that_is_asked_for(copied: Run) -> None:
    start = load_file("models/pretrain/teacher_best.safetensors")
    weights = str(Path("models/pretrain/teacher_best.safetensors").resolve())
    for batch_norm in ("batch", "start"):
        run_stage("meta1", make_params(model__weights=weights, train__batch_norm=batch_norm))
        for model in MODELS:
            after = load_file(f"models/meta1/{model}_last.safetensors")
            same = {name for name in start if torch.equal(after[name], start[name])}
            moved = {name for name in start if "running" in name or "batches_tracked" in name}
            assert same == (moved if batch_norm == "start" else set()), batch_norm


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
