"""Stage look: which files a run comes from, and whether one of them is another one than before."""

from __future__ import annotations

import os
import pwd
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from projects import digests, make_params, run_stage, write_picture
from safetensors.torch import save_file

from pipeline.base import files
from pipeline.base.errors import UserError
from pipeline.sources import imagefolder, seen
from pipeline.stages import look
from pipeline.store.dataset import read_dataset


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two pictures, and an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for i in range(2):
        write_picture(tmp_path / f"images/{i}.bmp", i)
    return tmp_path / "images"


@pytest.fixture
def nowhere_at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container whose user number nobody has."""

    def unknown(number: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {number}")

    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)


def test_another_file_of_the_same_size_and_time_is_seen(folder: Path) -> None:
    """As after `cp -p`, or from an archive with fixed times."""
    before = seen.look(folder)
    about = (folder / "1.bmp").stat()
    write_picture(folder / "1.bmp", 2)
    os.utime(folder / "1.bmp", ns=(about.st_atime_ns, about.st_mtime_ns))
    after = seen.look(folder)
    assert (folder / "1.bmp").stat().st_size == about.st_size
    assert after[0] == before[0]
    assert after[1].sha256 == files.file_digest(folder / "1.bmp") != before[1].sha256


@pytest.mark.usefixtures("folder", "nowhere_at_home")
def test_without_a_home_nothing_is_remembered(folder: Path) -> None:
    assert [each.name for each in seen.look(folder)] == ["0.bmp", "1.bmp"]


@pytest.mark.usefixtures("nowhere_at_home", "project")
@pytest.mark.parametrize("name", ["~/images", "~nosuchperson/images"])
def test_a_home_that_nobody_has_is_named(name: str) -> None:
    with pytest.raises(UserError, match=rf"^{name}: "):
        look.run(make_params(data__source="imagefolder", data__root=name))


@pytest.mark.usefixtures("project")
def test_a_folder_where_a_file_belongs_is_not_looked_through(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"^model.weights: {tmp_path}: found a folder, expected a file$"):
        look.run(make_params(model__weights=str(tmp_path)))


@pytest.mark.usefixtures("project")
def test_weights_of_another_network_are_refused_before_there_are_data(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"stem.weight": torch.zeros(7, 3, 3, 3)}, path)
    with pytest.raises(UserError, match=r"^model.weights: "):
        look.run(make_params(model__weights=str(path)))


@pytest.mark.usefixtures("project")
def test_a_network_that_nobody_knows_is_named_before_there_are_data() -> None:
    with pytest.raises(UserError, match=r"^model.name: .*'resnt18'.*resnet18"):
        look.run(make_params(model__name="resnt18"))


@pytest.fixture
def copy(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of an experiment, which is the current one; its project, above, has pictures that git ignores."""
    folder = project / ".dvc/tmp/exps/copy"
    folder.mkdir(parents=True)
    for i in range(6):
        write_picture(project / f"own/{'train' if i < 4 else 'test'}/{i % 2}/{i}.png", i)
    monkeypatch.chdir(folder)
    return folder


def both(name: str, text: str, project: Path, copy: Path) -> None:
    """A file that git knows."""
    for folder in (project, copy):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")


def table(prefix: str) -> str:
    rows = [f"{prefix}{'train' if i < 4 else 'test'}/{i % 2}/{i}.png,{i % 2}" for i in range(6)]
    return "\n".join(["path,label", *rows]) + "\n"


@pytest.mark.parametrize("storage", ["memory", "files"])
@pytest.mark.parametrize(
    ("root", "known", "text"),
    [
        ("own", "own/.gitkeep", ""),
        ("own/labels.csv", "own/labels.csv", table("")),
        ("labels.csv", "labels.csv", table("own/")),
        ("lists/labels.csv", "lists/labels.csv", table("../own/")),
    ],
)
def test_an_experiment_finds_the_images_beside_what_git_knows(
    root: str, known: str, text: str, storage: str, project: Path, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both(known, text, project, copy)
    params = make_params(
        data__source="imagefolder", data__root=root, data__storage=storage, data__limit=None, run__workers=0
    )
    for folder in (project, copy):
        monkeypatch.chdir(folder)
        for stage in ("look", "download", "noise"):
            run_stage(stage, params)
    assert digests(copy, "data", "records") == digests(project, "data", "records")
    images = read_dataset(root).images
    assert np.asarray(images[5]).tolist() == read_picture(project / "own/test/1/5.png")


def read_picture(path: Path) -> list[list[list[int]]]:
    with Image.open(path) as image:
        return np.asarray(image).transpose(2, 0, 1).tolist()


def test_an_experiment_takes_what_git_knows_whole_from_its_own_commit(project: Path, copy: Path) -> None:
    shutil.copytree(project / "own", copy / "own")
    both("labels.csv", table("own/"), project, copy)
    write_picture(copy / "own/test/1/5.png", 9)
    (copy / "labels.csv").write_text(table("own/").replace("5.png,1", "5.png,0"), encoding="utf-8")
    assert files.resolve("own") == Path("own")
    assert files.resolve("labels.csv") == Path("labels.csv")
    folder, samples = imagefolder.listed(files.resolve("labels.csv"))
    assert (folder, samples[5].label) == (Path(), "0")
    write_picture(project / "own/train/1/7.png", 7)
    assert files.resolve("own") == project / "own"
