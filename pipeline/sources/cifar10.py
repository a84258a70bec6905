"""CIFAR-10 as torchvision reads it: MD5 sums of all files are checked before anything is unpickled."""

from __future__ import annotations

import stat
from pathlib import Path

import numpy as np

from pipeline.errors import UserError
from pipeline.places.archive import unpack
from pipeline.places.fetch import fetch
from pipeline.places.folder import file_type, readable
from pipeline.store.dataset import TEST, TRAIN, Dataset


def load(root: Path, url: str | None, sha256: str | None, raw: Path, max_download: int, max_unpacked: int) -> Dataset:
    """Read CIFAR-10, or fetch it first; its samples are in torchvision's order, which is the official one.

    Args:
        root: the archive, `cifar-10-batches-py/`, or a folder that holds one of them; where the archive goes otherwise.
        url: a mirror of the archive; None for the official place.
        sha256: of the archive, if it is to be checked beside the MD5 sums.
        raw: the folder that it is unpacked in.
        max_download: bytes; a larger archive is not fetched.
        max_unpacked: bytes; a larger archive is not unpacked.

    Raises:
        UserError: it can be neither found nor fetched, or a file has another checksum.
    """
    from torchvision.datasets import CIFAR10

    if root.name == CIFAR10.base_folder:
        folder = root.parent
    elif file_type(root) == stat.S_IFDIR and file_type(root / CIFAR10.base_folder) == stat.S_IFDIR:
        folder = root
    else:
        archive = root if file_type(root) == stat.S_IFREG else _fetch(root, url, max_download)
        folder = unpack(archive, raw, max_unpacked, sha256)
    try:
        with readable(folder):
            parts = [CIFAR10(folder, train=train) for train in (True, False)]
    except RuntimeError as error:
        raise UserError(
            f"data.root: {root}: expected CIFAR-10 as its authors publish it, {CIFAR10.filename} or "
            f"{CIFAR10.base_folder}/; a file in {folder} is missing or has another MD5; put intact ones there, or set "
            "data.root to null to have them fetched"
        ) from error
    train, test = (len(part.targets) for part in parts)
    return Dataset(
        images=np.concatenate([part.data.transpose(0, 3, 1, 2) for part in parts]),
        labels=np.concatenate([np.array(part.targets, np.int64) for part in parts]),
        split=np.repeat([TRAIN, TEST], [train, test]).astype(np.uint8),
        source_index=np.concatenate([np.arange(train), np.arange(test)]),
        names=[*(f"train/{i}" for i in range(train)), *(f"test/{i}" for i in range(test))],
        class_names=parts[0].classes,
        source="cifar10",
        labels_are_true=True,
    )


def _fetch(folder: Path, url: str | None, max_download: int) -> Path:
    from torchvision.datasets import CIFAR10

    try:
        return fetch(url or CIFAR10.url, f"md5:{CIFAR10.tgz_md5}", folder, max_download, CIFAR10.filename)
    except UserError as error:
        raise UserError(
            f"data.root: no intact CIFAR-10 in {folder} and none from {url or CIFAR10.url} ({error}); put "
            f"{CIFAR10.filename} (MD5 {CIFAR10.tgz_md5}) into that folder, or set data.root or data.url"
        ) from error
