"""The recipe for Clothing1M through all stages: the owners' layout, files, ResNet-50 from a file of weights."""

from __future__ import annotations

import csv
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import h5py
import pytest
from clothing import make_clothing
from projects import ROOT, STAGES, edit_params, run_stage
from safetensors.torch import save_file

from pipeline.decoding.image_files import ImageFiles
from pipeline.params import presets
from pipeline.params.load import load
from pipeline.params.schema import Params
from pipeline.store.dataset import read_dataset
from pipeline.training.session import in_steps

TRAIN, OTHERS = 10, 2  # a class

SMALL: dict[str, Any] = {
    "data.root": "clothing1m",
    "data.resize": 40,
    "data.crop": 32,
    "run.workers": 1,
    "model.pretrained": False,
    "model.weights": "resnet50.safetensors",
    "train.epochs": 1,
    "train.lr": 0.01,
    "compute.device": "cpu",
    "compute.threads": 1,
    "run.checkpoint_every": "100 steps",
    "mlnt.M": 1,
    "mlnt.eta_ramp_length": "3 steps",
    "teacher.gamma_start_length": "4 steps",
    "filter.tau": 0.07,  # networks of one epoch say 1/14 of every class
    "report.gallery": 5,
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import timm
    import torch

    folder = tmp_path_factory.mktemp("project")
    make_clothing(folder / "clothing1m", TRAIN, OTHERS)
    shutil.copytree(ROOT / "presets", folder / "presets")
    shutil.copy(ROOT / "params.yaml", folder)
    presets.apply("clothing1m", folder / "params.yaml")
    edit_params(folder / "params.yaml", SMALL)
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng():
        patch.chdir(folder)
        torch.manual_seed(0)
        save_file(timm.create_model("resnet50", pretrained=False).state_dict(), "resnet50.safetensors")
        for stage in STAGES:
            run_stage(stage, params(folder))
    shutil.rmtree(folder / "models")  # two gigabytes, which pytest would keep
    return folder


def params(folder: Path) -> Params:
    return load(folder / "params.yaml")


def test_the_recipe_is_that_of_the_preset(finished: Path) -> None:
    used = params(finished)
    assert (used.data.storage, used.model.name, used.features.dtype) == ("files", "resnet50", "float16")
    assert in_steps(used.mlnt.eta_ramp_length, 1000) == 3


def test_the_data_set_lists_the_papers_split(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(finished)
    dataset = read_dataset()
    assert isinstance(dataset.images, ImageFiles)
    assert dataset.images.shape == (14 * (TRAIN + 2 * OTHERS), 3, 32, 32)
    assert dataset.images.sums.count == 14 * TRAIN
    assert [int((dataset.split == i).sum()) for i in range(3)] == [14 * TRAIN, 14 * OTHERS, 14 * OTHERS]
    assert (finished / "data/dataset.h5").stat().st_size < 300_000


def test_every_iteration_is_trained_and_judged(finished: Path) -> None:
    metrics = json.loads((finished / "metrics/evaluate.json").read_text(encoding="utf-8"))
    for system in ("cross_entropy", "ce_filter_2", "ce_filter_3", "mlnt_1", "mlnt_2", "mlnt_3"):
        for model in ("student", "teacher"):
            assert 0 <= metrics[system][model]["best"]["test_accuracy"] <= 1
    assert metrics["mlnt_1"]["kept_fraction"] == 1
    assert 0 < metrics["mlnt_3"]["kept_fraction"] < 1
    with (finished / "plots/meta1.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["meta_lr"]) for row in rows] == [params(finished).mlnt.eta]  # its ramp is over
    assert all(float(row["meta_loss"]) >= 0 for row in rows)


def test_the_features_are_half_precision_rows_of_resnet50(finished: Path) -> None:
    with h5py.File(finished / "data/features.h5") as file:
        assert file["features"].shape == (14 * (TRAIN + 2 * OTHERS), 2048)
        assert file["features"].dtype == "float16"


def test_the_report_shows_pictures_and_the_papers_table_4(finished: Path) -> None:
    page = (finished / "reports/index.html").read_text(encoding="utf-8")
    assert "The paper's figures are its Table 4." in page
    assert "paper, Clothing1M" in page
    with (finished / "reports/label_issues.csv").open(encoding="utf-8", newline="") as file:
        listed = Counter(row["split"] for row in csv.DictReader(file) if row["is_label_issue"] == "True")
    assert listed
    assert page.count('alt="images/') == sum(min(5, count) for count in listed.values())
    assert "images/" in page
    assert "Underwear" in page
