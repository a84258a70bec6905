"""The pipeline under DVC, in a copy of this project: what runs, what does not, what comes back from the cache."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from projects import STAGES, TINY, copy_project, digests, dvc, edit_params, git, written_by
from torture import torture

META = {"meta1", "meta2", "meta3"}
CONTROL = {"control2", "control3"}
END = {"evaluate", "report"}


def mentioned(result: subprocess.CompletedProcess[str], how: str) -> list[str]:
    """The stages of the lines that say this, such as "Running stage '{}'"."""
    return [stage for line in result.stdout.splitlines() for stage in STAGES if how.format(stage) in line]


def ran(result: subprocess.CompletedProcess[str]) -> list[str]:
    """The stages that were run, but for the look at the files, which always runs."""
    return [stage for stage in mentioned(result, "Running stage '{}'") if stage != "look"]


def touched(repository: Path) -> set[str]:
    """What DVC would run."""
    return set(json.loads(dvc(repository, "status", "--json", "dvc.yaml").stdout)) - {"look"}


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A committed copy with tiny parameters after `dvc repro`, and what that said."""
    folder = tmp_path_factory.mktemp("repository")
    copy_project(folder, {**TINY, "train.epochs": 1})
    result = dvc(folder, "repro")
    assert result.returncode == 0, result.stderr
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "reproduced")
    return folder, result


@pytest.fixture
def repository(first: tuple[Path, Any], tmp_path: Path) -> Path:
    """A copy of it, to be changed."""
    return Path(shutil.copytree(first[0], tmp_path / "repository", symlinks=True))


def change(repository: Path, changes: dict[str, Any]) -> None:
    edit_params(repository / "params.yaml", changes)


def test_every_stage_runs_once_and_writes_its_outputs(first: tuple[Path, Any]) -> None:
    folder, result = first
    assert sorted(ran(result)) == sorted(set(STAGES) - {"look"})
    for stage in STAGES:
        for path in written_by(stage):
            assert digests(folder, path), path


def test_a_second_run_runs_nothing_and_leaves_the_tree_clean(repository: Path) -> None:
    assert git(repository, "status", "--porcelain") == ""
    before = digests(repository, "dvc.lock", "data", "models", "metrics", "plots", "reports", "timings")
    result = dvc(repository, "repro")
    assert result.returncode == 0
    assert sorted(mentioned(result, "Stage '{}' didn't change, skipping")) == sorted(set(STAGES) - {"look"})
    assert ran(result) == []
    assert digests(repository, "dvc.lock", "data", "models", "metrics", "plots", "reports", "timings") == before
    assert git(repository, "status", "--porcelain") == ""


def downstream(stages: set[str]) -> set[str]:
    """These stages, and all that read what they write."""
    found = set(stages)
    for stage in STAGES:  # in the order of a run
        if any(set(STAGES[stage]["deps"]) & set(written_by(other)) for other in found):
            found.add(stage)
    return found


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"seed": 1}, set(STAGES) - {"look", "download", "embed"}),
        ({"mlnt.M": 3}, META | END),
        ({"filter.tau": 0.06}, META - {"meta1"} | CONTROL | END),
        ({"evaluate.label_issue_threshold": 0.5}, END),
        ({"run.checkpoint_every": 2}, {"report"}),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_changed_parameter_touches_its_stages_and_what_follows(
    changes: dict[str, Any], expected: set[str], repository: Path
) -> None:
    change(repository, changes)
    assert downstream(touched(repository)) == expected


def test_a_changed_line_of_code_touches_the_stages_that_import_it(repository: Path) -> None:
    with (repository / "pipeline/report/figures.py").open("a", encoding="utf-8") as file:
        file.write("# changed\n")
    assert touched(repository) == {"report"}


def test_a_noise_matrix_that_changes_is_taken(repository: Path) -> None:
    matrix = repository / "matrix.csv"
    np.savetxt(matrix, np.eye(10), delimiter=",")
    change(repository, {"noise.kind": "matrix", "noise.matrix_file": "matrix.csv"})
    assert ran(dvc(repository, "repro", "noise")) == ["noise"]
    matrix.touch()
    assert ran(dvc(repository, "repro", "noise")) == []
    np.savetxt(matrix, np.roll(np.eye(10), 1, axis=1), delimiter=",")
    assert ran(dvc(repository, "repro", "noise")) == ["noise"]


def test_an_experiment_and_the_way_back(repository: Path) -> None:
    before = (repository / "params.yaml").read_text(encoding="utf-8")
    there = dvc(repository, "exp", "run", "-S", "mlnt.M=3", "meta1")
    assert there.returncode == 0, there.stderr
    assert ran(there) == ["meta1"]
    after = (repository / "params.yaml").read_text(encoding="utf-8")
    differ = [(a, b) for a, b in zip(before.splitlines(), after.splitlines(), strict=True) if a != b]
    assert [(a.split()[:2], b.split()[:2]) for a, b in differ] == [(["M:", "2"], ["M:", "3"])]
    models = digests(repository, "models/meta1")
    back = dvc(repository, "exp", "run", "-S", "mlnt.M=2", "meta1")
    assert back.returncode == 0, back.stderr
    assert ran(back) == []
    assert mentioned(back, "Stage '{}' is cached - skipping run") == ["meta1"]
    assert digests(repository, "models/meta1") != models
    assert git(repository, "status", "--porcelain") == ""


def test_a_wrong_parameter_stops_the_run_before_anything_is_written(repository: Path) -> None:
    before = digests(repository, "dvc.lock", "models", "metrics", "data")
    change(repository, {"train.lr": 0})
    result = dvc(repository, "repro")
    assert result.returncode != 0
    assert "error: params.yaml: train.lr: found 0; " in result.stderr
    assert "Traceback" not in result.stderr
    assert ran(result) == []  # the look at the files fails
    after = digests(repository, "dvc.lock", "models", "metrics", "data")
    # DVC has removed that stage's outputs, and only them.
    assert {name: digest for name, digest in before.items() if "data/seen/" not in name}.items() <= after.items()
    change(repository, {"train.lr": TINY["train.lr"]})
    restored = dvc(repository, "repro")
    assert restored.returncode == 0, restored.stderr
    assert ran(restored) == []
    assert digests(repository, "dvc.lock", "models", "metrics", "data") == before
    assert git(repository, "status", "--porcelain") == ""


def test_stages_that_are_killed_go_on_and_end_with_the_same_bits(repository: Path) -> None:
    """A short form of `make torture`."""
    for ordeal in torture(repository, ["meta1", "evaluate"], kills=4, seed=0):
        assert ordeal.same_bits, ordeal
        assert [attack for attack in ordeal.attacks if attack.damaged or "Traceback" in attack.said] == []


def test_the_results_are_shared_by_the_plain_commands(repository: Path, tmp_path: Path) -> None:
    """The baselines were not run: their stages, which have no lock, are in nobody's way."""
    for command in (["status"], ["checkout"], ["exp", "run", "--name", "smaller", "-S", "report.gallery=3"]):
        done = dvc(repository, *command)
        assert (command, done.returncode) == (command, 0), done.stderr
    git(repository, "stash", "--quiet")
    remote = str(tmp_path / "remote")
    for command in (["exp", "apply", "smaller"], ["remote", "add", "--default", "shared", remote], ["push"]):
        done = dvc(repository, *command)
        assert (command, done.returncode) == (command, 0), done.stderr
    git(repository, "add", "--all")
    git(repository, "commit", "--quiet", "--message", "with fewer pictures")
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "--quiet", str(repository), str(clone))
    for command in (["pull"], ["status"], ["checkout"]):
        done = dvc(clone, *command)
        assert (command, done.returncode) == (command, 0), done.stderr
    shared = ("data", "models", "metrics", "plots", "reports")
    assert digests(clone, *shared) == digests(repository, *shared)
    assert ran(dvc(clone, "repro")) == []


OUTPUTS = ("data", "models", "metrics", "plots", "reports")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"\x00\xff\xfe", "dvc.lock"),
        (b"- 1\n", "dvc.lock' validation failed"),
        (b"<<<<<<< HEAD\nschema: '2.0'\n", "dvc.lock' is invalid"),
    ],
    ids=["binary", "a list", "conflict"],
)
def test_a_damaged_lock_file_is_named_and_nothing_is_touched(content: bytes, expected: str, repository: Path) -> None:
    (repository / "dvc.lock").write_bytes(content)
    before = digests(repository, *OUTPUTS)
    result = dvc(repository, "repro")
    assert result.returncode != 0
    assert expected in result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    assert digests(repository, *OUTPUTS) == before


def test_a_lock_file_with_another_digest_is_mended(repository: Path) -> None:
    before = digests(repository, "dvc.lock", *OUTPUTS)
    text = (repository / "dvc.lock").read_text(encoding="utf-8")
    start = text.index("md5: ", text.index("\n  report:")) + len("md5: ")
    (repository / "dvc.lock").write_text(text[:start] + "a" * 32 + text[start + 32 :], encoding="utf-8")
    result = dvc(repository, "repro")
    assert result.returncode == 0, result.stderr
    assert digests(repository, "dvc.lock", *OUTPUTS) == before
