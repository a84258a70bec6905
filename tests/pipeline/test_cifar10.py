"""CIFAR-10 from wherever it lies: the same images in torchvision's order, or one message."""

from __future__ import annotations

import hashlib
import os
import pickle
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from projects import digests, make_params
from torchvision.datasets import CIFAR10

from pipeline import files
from pipeline.errors import UserError
from pipeline.files import GIB
from pipeline.sources import cifar10
from pipeline.stages import download
from pipeline.store.dataset import TEST, TRAIN, Dataset, read_dataset

BATCHES = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()  # noqa: S324


def batch(number: int) -> dict[str, Any]:
    data = np.random.default_rng(number).integers(0, 256, (4, 3072)).astype(np.uint8)
    return {"data": data, "labels": [(4 * number + i) % 10 for i in range(4)]}


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Makes torchvision's archive with four images a batch, and its MD5 sums to match; returns it."""

    def made(**others: object) -> Path:
        inner = tmp_path / "made" / CIFAR10.base_folder
        inner.mkdir(parents=True)
        contents = {name: batch(number) for number, name in enumerate(BATCHES)}
        for name, content in {**contents, "batches.meta": {"label_names": CLASSES}, **others}.items():
            # Python 2, which the official files are of, wrote numbers where Python 3 writes booleans.
            python_2 = pickle.dumps(content, protocol=2).replace(b"\x89\x88\x87", b"K\x00K\x01\x87")
            (inner / name).write_bytes(python_2)
        path = tmp_path / CIFAR10.filename
        with tarfile.open(path, "w:gz") as archive:
            archive.add(inner, inner.name)
        monkeypatch.setattr(CIFAR10, "tgz_md5", md5(path))
        monkeypatch.setattr(CIFAR10, "train_list", [[name, md5(inner / name)] for name in BATCHES[:5]])
        monkeypatch.setattr(CIFAR10, "test_list", [[name, md5(inner / name)] for name in BATCHES[5:]])
        monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": md5(inner / "batches.meta")})
        monkeypatch.setattr(CIFAR10, "url", "file:///nosuch/cifar-10-python.tar.gz")  # never the network
        return path

    return made


@pytest.fixture
def archive(make: Callable[..., Path]) -> Path:
    """The archive alone in a folder."""
    path = make()
    (path.parent / "folder").mkdir()
    return Path(shutil.move(path, path.parent / "folder"))


def load(root: Path, url: str | None = None, sha256: str | None = None) -> Dataset:
    return cifar10.load(root, url, sha256, Path("data/raw"), GIB, GIB)


def check(dataset: Dataset) -> None:
    contents = [batch(number) for number in range(6)]
    assert np.array_equal(
        np.reshape(dataset.images, (24, -1)), np.concatenate([content["data"] for content in contents])
    )
    assert dataset.images.shape == (24, 3, 32, 32)
    assert dataset.labels.tolist() == [label for content in contents for label in content["labels"]]
    assert dataset.labels.dtype == np.int64
    assert dataset.split.tolist() == [TRAIN] * 20 + [TEST] * 4
    assert dataset.source_index.tolist() == [*range(20), *range(4)]
    assert list(dataset.names[19:21]) == ["train/19", "test/0"]
    assert dataset.class_names == CLASSES
    assert dataset.labels_are_true


def test_it_may_be_an_archive_a_folder_with_it_or_its_files(archive: Path, project: Path) -> None:
    check(load(archive))
    check(load(archive.parent))
    renamed = shutil.copy(archive, project / "other.tgz")
    check(load(renamed))
    unpacked = archive.parents[1] / "made"
    check(load(unpacked))
    check(load(unpacked / CIFAR10.base_folder))


def test_the_stage_finds_it_at_home_and_fetches_it_from_a_mirror_once(
    archive: Path, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(archive.parents[1]))
    whole = {"data__source": "cifar10", "data__limit": None, "data__limit_test": None}
    download.run(make_params(data__root="~/folder", **whole))
    check(read_dataset())
    for _ in range(2):
        download.run(make_params(data__url=archive.as_uri(), **whole))
        check(read_dataset())
        archive.unlink(missing_ok=True)
    assert (project / "data/raw" / archive.name).exists()


def test_the_sha256_of_the_archive_is_checked(archive: Path, project: Path) -> None:
    right = hashlib.sha256(archive.read_bytes()).hexdigest()
    for root in (archive, archive.parent):
        check(load(root, sha256=right))
        with pytest.raises(UserError, match=f"^data.sha256: .* has {right}, expected {'0' * 64}"):
            load(root, sha256="0" * 64)


def test_an_archive_of_something_else_is_not_fetched(archive: Path, project: Path) -> None:
    archive.write_bytes(b"something else")
    with pytest.raises(UserError, match=r"^data\.root: no intact CIFAR-10 in .*cifar-10-python\.tar\.gz .*data\.url"):
        load(Path("data/raw"), archive.as_uri())
    assert digests(project) == {}


def test_that_it_is_nowhere_says_where_to_put_it(archive: Path, project: Path) -> None:
    with pytest.raises(UserError, match=r"^data\.root: no intact CIFAR-10 in .*cifar-10-python\.tar\.gz .*data\.url"):
        download.run(make_params(data__source="cifar10"))
    assert not files.DATASET.exists()


class Attack:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("name", ["data_batch_3", "test_batch", "batches.meta"])
def test_other_files_are_refused_before_anything_in_them_runs(name: str, archive: Path, project: Path) -> None:
    folder = archive.parents[1] / "made"
    (folder / CIFAR10.base_folder / name).write_bytes(pickle.dumps({"data": Attack(project / "marker")}))
    with pytest.raises(UserError, match=r"^data\.root: .*made.*another MD5"):
        load(folder)
    (folder / CIFAR10.base_folder / name).unlink()
    with pytest.raises(UserError, match=r"^data\.root: .*made.*missing"):
        load(folder)
    assert digests(project) == {}
