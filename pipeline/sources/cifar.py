"""CIFAR-10 and CIFAR-100 as torchvision reads them: MD5 sums of all files are checked before anything is unpickled."""

from __future__ import annotations

import pickle
import stat
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mlnt.noise.matrices import CIFAR100_SUPERCLASSES
from pipeline.base.errors import UserError
from pipeline.sources.places.archive import unpack
from pipeline.sources.places.fetch import fetch
from pipeline.sources.places.folder import file_type, readable
from pipeline.store.dataset import TEST, TRAIN, Dataset

if TYPE_CHECKING:
    from torchvision.datasets import CIFAR10

NUM_CLASSES = {"cifar10": 10, "cifar100": 100, "cifar100-coarse": 20}
"""`data.source` → how many classes it has; cifar100-coarse is CIFAR-100 under its 20 superclasses."""


def load(
    source: str, root: Path, url: str | None, sha256: str | None, raw: Path, max_download: int, max_unpacked: int
) -> Dataset:
    """Read one of them, or fetch it first; its samples are in torchvision's order, which is the official one.

    Args:
        source: a key of `NUM_CLASSES`.
        root: the archive, the folder in it (`cifar-10-batches-py/`, `cifar-100-python/`), or a folder that holds one of
            them; where the archive goes otherwise.
        url: a mirror of the archive; None for the official place.
        sha256: of the archive, if it is to be checked beside the MD5 sums.
        raw: the folder that it is unpacked in.
        max_download: bytes; a larger archive is not fetched.
        max_unpacked: bytes; a larger archive is not unpacked.

    Raises:
        UserError: it can be neither found nor fetched, or a file has another checksum.
    """
    from torchvision.datasets import CIFAR10, CIFAR100

    title, kind = ("CIFAR-10", CIFAR10) if source == "cifar10" else ("CIFAR-100", CIFAR100)
    if root.name == kind.base_folder:
        folder = root.parent
    elif file_type(root) == stat.S_IFDIR and file_type(root / kind.base_folder) == stat.S_IFDIR:
        folder = root
    else:
        archive = root if file_type(root) == stat.S_IFREG else _fetch(title, kind, root, url, max_download)
        folder = unpack(archive, raw, max_unpacked, sha256)
    try:
        with readable(folder):
            parts = [kind(folder, train=train) for train in (True, False)]
    except RuntimeError as error:
        raise UserError(
            f"data.root: {root}: expected {title} as its authors publish it, {kind.filename} or "
            f"{kind.base_folder}/; a file in {folder} is missing or has another MD5; put intact ones there, or set "
            "data.root to null to have them fetched"
        ) from error
    labels = np.concatenate([np.array(part.targets, np.int64) for part in parts])
    class_names: list[str] = parts[0].classes
    if source != "cifar10":
        coarse, coarse_names = _coarse(folder / kind.base_folder, [class_names[label] for label in labels])
        if source == "cifar100-coarse":
            labels, class_names = coarse, coarse_names
    train, test = (len(part.targets) for part in parts)
    return Dataset(
        images=np.concatenate([part.data.transpose(0, 3, 1, 2) for part in parts]),
        labels=labels,
        split=np.repeat([TRAIN, TEST], [train, test]).astype(np.uint8),
        source_index=np.concatenate([np.arange(train), np.arange(test)]),
        names=[*(f"train/{i}" for i in range(train)), *(f"test/{i}" for i in range(test))],
        class_names=class_names,
        source=source,
        labels_are_true=True,
    )


def _coarse(folder: Path, fine: list[str]) -> tuple[NDArray[np.int64], list[str]]:
    """The coarse labels [N], which torchvision leaves out, and their names; it has checked the sums of these files.

    Args:
        fine: the class names of all samples, to be compared with the superclasses that asymmetric noise goes by.

    Raises:
        UserError: they differ.
    """
    train, test, meta = (
        pickle.loads((folder / name).read_bytes(), encoding="latin1")  # noqa: S301
        for name in ("train", "test", "meta")
    )
    labels = np.array([*train["coarse_labels"], *test["coarse_labels"]], np.int64)
    names: list[str] = meta["coarse_label_names"]
    superclass_of = {name: above for above, five in CIFAR100_SUPERCLASSES.items() for name in five}
    for name, label in zip(fine, labels, strict=True):
        if superclass_of.get(name) != names[label]:
            raise UserError(
                f"data.root: {folder}: its coarse label of {name} is {names[label]}, expected {superclass_of.get(name)}"
            )
    return labels, names


def _fetch(title: str, kind: type[CIFAR10], folder: Path, url: str | None, max_download: int) -> Path:
    try:
        return fetch(url or kind.url, f"md5:{kind.tgz_md5}", folder, max_download, kind.filename)
    except UserError as error:
        raise UserError(
            f"data.root: no intact {title} in {folder} and none from {url or kind.url} ({error}); put "
            f"{kind.filename} (MD5 {kind.tgz_md5}) into that folder, or set data.root or data.url"
        ) from error
