"""CIFAR-10 and CIFAR-100 from wherever they lie: the same images in torchvision's order, or one message."""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from projects import digests, make_params
from torchvision.datasets import CIFAR10, CIFAR100

from mlnt.noise.matrices import CIFAR100_SUPERCLASSES
from pipeline.base import files
from pipeline.base.errors import UserError
from pipeline.base.files import GIB
from pipeline.sources import cifar
from pipeline.stages import download, look
from pipeline.store.dataset import TEST, TRAIN, Dataset, read_dataset

KINDS: dict[str, type[CIFAR10]] = {"cifar10": CIFAR10, "cifar100": CIFAR100, "cifar100-coarse": CIFAR100}
CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
FINE = sorted(name for five in CIFAR100_SUPERCLASSES.values() for name in five)
COARSE = list(CIFAR100_SUPERCLASSES)
COARSE_OF = [next(i for i, above in enumerate(COARSE) if name in CIFAR100_SUPERCLASSES[above]) for name in FINE]


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()  # noqa: S324


def pixels(size: int, seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (size, 3072)).astype(np.uint8)


def batch(number: int) -> dict[str, Any]:
    return {"data": pixels(4, number), "labels": [(4 * number + i) % 10 for i in range(4)]}


def part(size: int, first: int) -> dict[str, Any]:
    fine = [(first + 7 * i) % 100 for i in range(size)]
    return {"data": pixels(size, first), "fine_labels": fine, "coarse_labels": [COARSE_OF[label] for label in fine]}


CONTENTS: dict[str, dict[str, dict[str, Any]]] = {
    CIFAR10.base_folder: {
        **{f"data_batch_{i}": batch(i) for i in range(1, 6)},
        "test_batch": batch(6),
        "batches.meta": {"label_names": CLASSES},
    },
    CIFAR100.base_folder: {
        "train": part(20, 3),
        "test": part(4, 50),
        "meta": {"fine_label_names": FINE, "coarse_label_names": COARSE},
    },
}
"""Of the owner's files, those of four images a batch, or twenty in one; the last is what the classes are called."""


@pytest.fixture(params=KINDS)
def source(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def make(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Makes torchvision's archive with a few images, and its MD5 sums to match; returns it."""
    kind = KINDS[source]

    def made(**others: object) -> Path:
        inner = tmp_path / "made" / kind.base_folder
        inner.mkdir(parents=True)
        for name, content in {**CONTENTS[kind.base_folder], **others}.items():
            # Python 2, which the official files are of, wrote numbers where Python 3 writes booleans.
            python_2 = pickle.dumps(content, protocol=2).replace(b"\x89\x88\x87", b"K\x00K\x01\x87")
            (inner / name).write_bytes(python_2)
        path = tmp_path / kind.filename
        with tarfile.open(path, "w:gz") as archive:
            archive.add(inner, inner.name)
        *train, test, meta = CONTENTS[kind.base_folder]
        monkeypatch.setattr(kind, "tgz_md5", md5(path))
        monkeypatch.setattr(kind, "train_list", [[name, md5(inner / name)] for name in train])
        monkeypatch.setattr(kind, "test_list", [[test, md5(inner / test)]])
        monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": md5(inner / meta)})
        monkeypatch.setattr(kind, "url", f"file:///nosuch/{kind.filename}")  # never the network
        return path

    return made


@pytest.fixture
def archive(make: Callable[..., Path]) -> Path:
    """The archive alone in a folder."""
    path = make()
    (path.parent / "folder").mkdir()
    return Path(shutil.move(path, path.parent / "folder"))


@pytest.fixture
def load(source: str) -> Callable[..., Dataset]:
    def loaded(root: Path, url: str | None = None, sha256: str | None = None) -> Dataset:
        return cifar.load(source, root, url, sha256, Path("data/raw"), GIB, GIB)

    return loaded


def check(dataset: Dataset, source: str) -> None:
    *contents, meta = CONTENTS[KINDS[source].base_folder].values()
    labels, names = {
        "cifar10": ("labels", "label_names"),
        "cifar100": ("fine_labels", "fine_label_names"),
        "cifar100-coarse": ("coarse_labels", "coarse_label_names"),
    }[source]
    assert np.array_equal(
        np.reshape(dataset.images, (24, -1)), np.concatenate([content["data"] for content in contents])
    )
    assert dataset.images.shape == (24, 3, 32, 32)
    assert dataset.labels.tolist() == [label for content in contents for label in content[labels]]
    assert dataset.labels.dtype == np.int64
    assert dataset.split.tolist() == [TRAIN] * 20 + [TEST] * 4
    assert dataset.source_index.tolist() == [*range(20), *range(4)]
    assert list(dataset.names[19:21]) == ["train/19", "test/0"]
    assert dataset.class_names == meta[names]
    assert len(dataset.class_names) == cifar.NUM_CLASSES[source]
    assert dataset.source == source
    assert dataset.labels_are_true


def test_it_may_be_an_archive_a_folder_with_it_or_its_files(
    source: str, load: Callable[..., Dataset], archive: Path, project: Path
) -> None:
    unpacked = archive.parents[1] / "made"
    renamed = Path(shutil.copy(archive, project / "other.tgz"))
    for root in (archive, archive.parent, renamed, unpacked, unpacked / KINDS[source].base_folder):
        check(load(root), source)


def test_the_stage_finds_it_at_home_and_fetches_it_from_a_mirror_once(
    source: str, archive: Path, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(archive.parents[1]))
    whole = {"data__source": source, "data__limit": None, "data__limit_test": None}
    download.run(make_params(data__root="~/folder", **whole))
    check(read_dataset(), source)
    for _ in range(2):
        download.run(make_params(data__url=archive.as_uri(), **whole))
        check(read_dataset(), source)
        archive.unlink(missing_ok=True)
    assert (project / "data/raw" / archive.name).exists()


def test_it_is_fetched_to_a_folder_whose_other_files_are_not_looked_at(
    source: str, archive: Path, project: Path
) -> None:
    params = make_params(data__source=source, data__root="datasets", data__url=archive.as_uri())
    look.run(params)
    seen = digests(project / "data/seen")
    download.run(params)
    assert (project / "datasets" / archive.name).exists()
    (project / "datasets/another.bin").write_bytes(b"of another data set")
    look.run(params)
    assert digests(project / "data/seen") == seen


def test_the_sha256_of_the_archive_is_checked(
    source: str, load: Callable[..., Dataset], archive: Path, project: Path
) -> None:
    right = hashlib.sha256(archive.read_bytes()).hexdigest()
    for root in (archive, archive.parent):
        check(load(root, sha256=right), source)
        with pytest.raises(UserError, match=f"^data.sha256: .* has {right}, expected {'0' * 64}"):
            load(root, sha256="0" * 64)


def nowhere(source: str) -> str:
    number, kind = source.removeprefix("cifar").removesuffix("-coarse"), KINDS[source]
    return rf"^data\.root: no intact CIFAR-{number} in .*{re.escape(kind.filename)} .*data\.url"


def test_an_archive_of_something_else_is_not_fetched(
    source: str, load: Callable[..., Dataset], archive: Path, project: Path
) -> None:
    archive.write_bytes(b"something else")
    with pytest.raises(UserError, match=nowhere(source)):
        load(Path("data/raw"), archive.as_uri())
    assert digests(project) == {}


def test_that_it_is_nowhere_says_where_to_put_it(source: str, archive: Path, project: Path) -> None:
    with pytest.raises(UserError, match=nowhere(source)):
        download.run(make_params(data__source=source))
    assert not files.DATASET.exists()


class Attack:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("which", [0, -2, -1])
def test_other_files_are_refused_before_anything_in_them_runs(
    which: int, source: str, load: Callable[..., Dataset], archive: Path, project: Path
) -> None:
    inner = KINDS[source].base_folder
    folder, name = archive.parents[1] / "made", list(CONTENTS[inner])[which]
    (folder / inner / name).write_bytes(pickle.dumps({"data": Attack(project / "marker")}))
    with pytest.raises(UserError, match=r"^data\.root: .*made.*another MD5"):
        load(folder)
    (folder / inner / name).unlink()
    with pytest.raises(UserError, match=r"^data\.root: .*made.*missing"):
        load(folder)
    assert digests(project) == {}


@pytest.mark.parametrize("source", ["cifar10", "cifar100"], indirect=True)
def test_the_other_one_of_the_two_is_refused(source: str, archive: Path, project: Path) -> None:
    other = "cifar100" if source == "cifar10" else "cifar10"
    with pytest.raises(UserError, match=rf"expected CIFAR-{other[5:]} as its authors publish it"):
        cifar.load(other, archive, None, None, Path("data/raw"), GIB, GIB)


@pytest.mark.parametrize("source", ["cifar100", "cifar100-coarse"], indirect=True)
def test_superclasses_that_are_not_those_of_the_noise_are_refused(
    make: Callable[..., Path], load: Callable[..., Dataset], project: Path
) -> None:
    train = part(20, 3)
    train["coarse_labels"][5] = (train["coarse_labels"][5] + 1) % 20
    name = FINE[train["fine_labels"][5]]
    with pytest.raises(
        UserError, match=rf"its coarse label of {name} is .*, expected {COARSE[COARSE_OF[FINE.index(name)]]}"
    ):
        load(make(train=train))
