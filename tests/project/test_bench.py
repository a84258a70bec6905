"""The scripts of bench/ run for minutes; that they start is tested here, and that the one that changes classes runs."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import own_images
import pytest
import torch
from projects import make_params, run_stage, write_params
from safetensors.torch import save_file
from sklearn.metrics import roc_auc_score

from mlnt.method.confident import LabelScores, issue_threshold
from mlnt.networks import create_model
from pipeline.params.load import load
from pipeline.store import models
from pipeline.store.dataset import TEST, TRAIN, read_dataset, read_labels

BENCH = Path(__file__).parents[2] / "bench"


SCRIPTS = {p.stem: p for p in sorted(BENCH.rglob("*.py")) if "parse_args()" in p.read_text(encoding="utf-8")}


@pytest.mark.parametrize("script", SCRIPTS)
def test_script_starts(script: str) -> None:
    done = subprocess.run([sys.executable, SCRIPTS[script], "--help"], capture_output=True, text=True, check=True)
    assert "usage:" in done.stdout


def test_documents_name_every_script_and_no_other() -> None:
    root = BENCH.parent
    texts = {p: p.read_text(encoding="utf-8") for p in [*root.glob("*.md"), *root.glob("docs/*.md"), root / "Makefile"]}
    named = {path for text in texts.values() for path in re.findall(r"bench/[\w/]+\.py", text)}
    assert {path for path in named if not (root / path).exists()} == set()
    listed = set(re.findall(r"`(\w+\.py)`", (BENCH / "README.md").read_text(encoding="utf-8")))
    assert listed == {path.name for path in SCRIPTS.values()}


def test_an_epoch_is_profiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_params(tmp_path)
    for stage in ("download", "noise", "pretrain", "features"):
        run_stage(stage, load(Path("params.yaml")))
    command = [
        sys.executable,
        SCRIPTS["profile_epoch"],
        "--set",
        "train.epochs=1",
        "--set",
        "train.lr_drop_epochs=[]",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    seconds = {
        row.split("│")[1].strip(): float(row.split("│")[2])
        for row in done.stdout.splitlines()
        if "%" in row and "│" in row
    }
    assert 0 < seconds["step"] <= seconds["all epochs"] <= seconds["stage without start-up"]


def test_what_runs_on_a_gpu_runs_in_miniature_on_a_cpu(tmp_path: Path) -> None:
    command = [
        sys.executable,
        SCRIPTS["gpu"],
        "--miniature",
        "--device",
        "cpu",
        "--minutes",
        "0.1",
        "--out",
        tmp_path,
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    with (tmp_path / "gpu.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["part"] for row in rows} == {"machine", "equal", "speed", "scaling", "training"}
    assert [row["result"] for row in rows if row["case"].endswith("to the CPU")] == ["equal"] * 9


def test_cleanlab_judges_the_labels_of_a_run_of_heads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_file(create_model("preact_resnet_tiny", num_classes=3, in_chans=1, seed=5).state_dict(), "start.safetensors")
    changes = {"model__train": "head", "model__weights": "start.safetensors", "data__limit": 600}
    for stage in ("download", "noise", "embed", "pretrain"):
        run_stage(stage, make_params(**changes, noise__validation="noisy", noise__rate=0.4, train__folds=2))
    labels = read_labels(read_dataset())
    rows, true = np.flatnonzero(labels.split != TEST), labels.true_labels
    assert true is not None
    for more in ([], [], ["--stage", "pretrain"]):
        monkeypatch.setattr(sys, "argv", ["own_images.py", ".", "--cell", "digits", "--out", "results.jsonl", *more])
        own_images.main()
    first, again, network = (json.loads(line) for line in Path("results.jsonl").read_text().splitlines())
    assert {**first, "seconds": 0} == {**again, "seconds": 0}
    assert (first["cell"], first["stage"]) == ("digits", "cleanlab")
    for name, part in (("all", rows), ("training", labels.rows(TRAIN))):
        found = first["issues"][name]
        assert found["wrong"] == pytest.approx((labels.labels[part] != true[part]).mean(), abs=1e-4)
        assert found["auc"] > 0.8
    table = models.load_tensors(models.out_of_fold_file("pretrain"))["probabilities"].numpy()
    train = labels.rows(TRAIN)
    wrong, score = labels.labels[train] != true[train], table[np.arange(len(train)), labels.labels[train]]
    for rule in ("mlnt", "cleanlab"):
        found = network["issues"]["out of fold"][rule]
        assert found["auc"] == pytest.approx(roc_auc_score(wrong, -score), abs=1e-4)
        assert network["issues"]["in sample"][rule]["auc"] > 0.6
    given = torch.from_numpy(labels.labels[train])
    scores = LabelScores.of(torch.from_numpy(table), given)
    listed = (scores.given <= issue_threshold(given, scores, 10)).numpy() & (table.argmax(axis=1) != given.numpy())
    found = network["issues"]["out of fold"]["mlnt"]
    assert found["recall"] == pytest.approx(wrong[listed].sum() / wrong.sum(), abs=1e-4)
    assert found["precision"] == pytest.approx(wrong[listed].mean(), abs=1e-4)
    assert first["test"]["regression_on_true_labels"] > first["test"]["regression"] > 30
