"""A person's own files under DVC: what a change of them runs, and that no result holds the place of a machine."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from projects import STAGES, TINY, copy_project, digests, dvc, edit_params, git, write_picture
from test_dvc import ran

CLASSES = ("cat", "dog", "owl")


def write_list(folder: Path, changes: dict[int, str] | None = None) -> None:
    labels = {i: CLASSES[i % 3] for i in range(45)} | (changes or {})
    rows = [f"images/{i}.png,{label},{'test' if i >= 36 else 'train'}" for i, label in labels.items()]
    (folder / "labels.csv").write_text("\n".join(["path,label,split", *rows]) + "\n", encoding="utf-8")


@pytest.fixture(scope="module", params=["memory", "files"])
def first(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a list of pictures that git does not know, after the first stages."""
    folder = tmp_path_factory.mktemp("own")
    own = {"data.source": "imagefolder", "data.root": "own/labels.csv", "data.storage": request.param}
    small = {
        "data.limit": None,
        "data.limit_test": None,
        "train.batch_size": 12,
        "train.epochs": 1,
        "mlnt.neighbors": 5,
    }
    copy_project(folder, {**TINY, **own, **small, "run.workers": 0})
    with (folder / ".gitignore").open("a", encoding="utf-8") as file:
        file.write("/own/\n")
    for i in range(45):
        write_picture(folder / f"own/images/{i}.png", i, size=(8, 8))
    write_list(folder / "own")
    result = dvc(folder, "repro")
    assert result.returncode == 0, result.stderr
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "own pictures")
    return folder


@pytest.fixture
def project(first: Path, tmp_path: Path) -> Path:
    """The project, moved."""
    return Path(shutil.copytree(first, tmp_path / "moved", symlinks=True))


def test_a_moved_project_runs_nothing_and_a_change_of_a_file_what_depends_on_it(project: Path) -> None:
    (project / "own/images/3.png").touch()
    assert ran(dvc(project, "repro", "meta1")) == []
    write_list(project / "own", {4: "owl"})  # one label
    after_a_label = {"download", "noise", "embed", "pretrain", "features", "meta1"}
    assert set(ran(dvc(project, "repro", "meta1"))) == after_a_label
    picture = project / "own/images/40.png"  # of the test part: no sum over the training images tells
    before = picture.read_bytes()
    for number in range(100, 400):
        write_picture(picture, number, size=(8, 8))
        if len(picture.read_bytes()) == len(before):
            break
    assert (len(picture.read_bytes()), picture.read_bytes() == before) == (len(before), False)
    assert ran(dvc(project, "repro", "noise"))[:1] == ["download"]
    (project / "own/images/5.png").unlink()
    result = dvc(project, "repro", "noise")
    assert result.returncode != 0
    assert "images/5.png" in result.stdout + result.stderr


every_stage_reads_files = pytest.mark.parametrize("first", ["files"], indirect=True)
"""In memory only the first stages do, in the same way."""


@every_stage_reads_files
def test_relative_paths_mean_the_project_in_every_kind_of_experiment(project: Path) -> None:
    """Among them decisions about labels, which run the noise and what follows."""
    decisions = project / "own/decisions.csv"
    header = "path,given_label,decision,label\n"
    decisions.write_text(header + "images/0.png,cat,relabel,owl\nimages/1.png,dog,drop,\n", encoding="utf-8")
    temp = dvc(project, "exp", "run", "--temp", "--name", "temp", "-S", "noise.corrections=own/decisions.csv")
    assert temp.returncode == 0, temp.stderr
    assert sorted(ran(temp)) == sorted(set(STAGES) - {"look", "download", "embed"})
    queue = dvc(project, "exp", "run", "--queue", "--name", "queue", "-S", "mlnt.M=1", "meta1")
    assert queue.returncode == 0, queue.stderr
    assert dvc(project, "exp", "run", "--run-all").returncode == 0
    for name, target in (("queue", ["meta1"]), ("temp", [])):
        done = dvc(project, "exp", "apply", name)
        assert done.returncode == 0, done.stderr
        assert ran(dvc(project, "repro", *target)) == []
    assert read_json(project / "metrics/noise.json")["corrections"] == {"keep": 0, "relabel": 1, "drop": 1}
    # What git has is before, what is here after.
    before = json.loads(git(project, "show", "HEAD:metrics/summary.json"))
    after = read_json(project / "metrics/summary.json")
    compared = json.loads(dvc(project, "metrics", "diff", "--all", "--json").stdout)["metrics/summary.json"]
    found = compared["test_accuracy.mlnt_3"]
    assert (found["old"], found["new"]) == (before["test_accuracy"]["mlnt_3"], after["test_accuracy"]["mlnt_3"])
    decisions.touch()
    assert ran(dvc(project, "repro", "noise")) == []
    decisions.write_text(header + "images/0.png,cat,keep,\n", encoding="utf-8")
    assert ran(dvc(project, "repro", "noise")) == ["noise"]


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


@every_stage_reads_files
def test_a_second_clone_on_the_same_cache_reads_its_own_pictures(project: Path, tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "--quiet", str(project), str(clone))
    shutil.copytree(project / "own", clone / "own")
    assert dvc(clone, "cache", "dir", "--local", str(project / ".dvc/cache")).returncode == 0
    shutil.rmtree(project / "own")
    again = dvc(clone, "repro", "meta1")
    assert again.returncode == 0, again.stderr
    assert ran(again) == []  # from the cache
    edit_params(clone / "params.yaml", {"mlnt.M": 1})
    assert ran(dvc(clone, "repro", "meta1")) == ["meta1"]


@every_stage_reads_files
def test_a_git_worktree_and_a_folder_of_a_larger_repository(project: Path, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    git(project, "worktree", "add", "--quiet", "--detach", str(tree))
    shutil.copytree(project / "own", tree / "own")
    assert dvc(tree, "repro", "noise").returncode == 0
    assert digests(tree, "data/labels.h5") == digests(project, "data/labels.h5")
    larger = tmp_path / "larger"
    shutil.copytree(project, larger / "inside", ignore=shutil.ignore_patterns(".git", "checkpoints"), symlinks=True)
    shutil.rmtree(larger / "inside/.dvc/tmp", ignore_errors=True)
    git(larger, "init", "--quiet")
    config = larger / "inside/.dvc/config"
    assert config.exists()
    git(larger, "add", "--all")
    git(larger, "commit", "--quiet", "--message", "a larger repository")
    assert ran(dvc(larger / "inside", "repro", "meta1")) == []
    done = dvc(larger / "inside", "exp", "run", "--temp", "-S", "mlnt.M=1", "meta1")
    assert done.returncode == 0, done.stderr


def test_nothing_that_is_cached_names_a_place_of_this_machine(first: Path) -> None:
    place = os.fsencode(first)
    held = [
        path
        for part in (
            "data/dataset.h5",
            "data/labels.h5",
            "data/embeddings.h5",
            "data/features.h5",
            "models",
            "records",
            "dvc.lock",
            "data/seen",
        )
        for path in ([first / part] if (first / part).is_file() else (first / part).rglob("*"))
        if path.is_file()
    ]
    assert held
    assert [path for path in held if place in path.read_bytes()] == []
