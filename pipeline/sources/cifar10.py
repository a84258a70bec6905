"""CIFAR-10: the official archive, its place and MD5 sums as torchvision knows them; in torchvision's order.

Nothing is extracted, and the pickles in it are read by our own unpickler.
"""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UserError
from pipeline.sources.archives import Tar
from pipeline.sources.containers import Container, Folder, file_type, readable
from pipeline.sources.fetch import check_sha256, fetch
from pipeline.sources.restricted_pickle import Value, load_dict
from pipeline.store.dataset import TEST, TRAIN, Dataset

LARGEST_FILE = 1 << 26
"""Bytes; a batch has 31 million."""


def load(root: Path, url: str | None, max_download: int, sha256: str | None = None) -> Dataset:
    """
    Args:
        root: the archive, a folder that holds it or `cifar-10-batches-py/`, or where the archive goes.
        url: a mirror of the archive; None for the official place.
        max_download: bytes; a larger archive is not fetched.
        sha256: of the archive, if it is to be checked beside the MD5.

    Raises:
        UserError: it can be neither found nor downloaded, its MD5 or SHA-256 is wrong, or it holds something else.
    """
    from torchvision.datasets import CIFAR10
    from torchvision.datasets.utils import check_integrity

    given = file_type(root) == stat.S_IFREG
    archive = root if given else root / CIFAR10.filename
    with readable(root):
        wrong = given and not check_integrity(str(root), CIFAR10.tgz_md5)
    if wrong:
        raise UserError(
            f"data.root: {root} has another MD5 than CIFAR-10's archive, {CIFAR10.tgz_md5}; expected that, or a "
            f"folder with {CIFAR10.filename} or {CIFAR10.base_folder}/ in it"
        )
    files = [*CIFAR10.train_list, *CIFAR10.test_list, [CIFAR10.meta["filename"], CIFAR10.meta["md5"]]]
    sums = {f"{CIFAR10.base_folder}/{name}": md5 for name, md5 in files}
    container: Container = Folder(root)
    try:
        if given or not all(check_integrity(str(root / name), md5) for name, md5 in sums.items()):
            if not archive.exists():
                fetch(url or CIFAR10.url, None, root, max_download, name=archive.name)
            if not check_integrity(str(archive), CIFAR10.tgz_md5):
                raise UserError(f"{archive} has another MD5; remove it to have it fetched again")
            # Its MD5 says how much there is in it, so that no limit is needed.
            container = Tar(archive, limit=len(sums) * LARGEST_FILE)
    except (OSError, UserError) as error:
        raise UserError(
            f"data.root: no intact CIFAR-10 in {root} and none from {url or CIFAR10.url} ({error}); put "
            f"{CIFAR10.filename} (MD5 {CIFAR10.tgz_md5}) into that folder, or set data.root or data.url"
        ) from error
    if sha256 is not None:
        if isinstance(container, Folder):
            raise UserError(
                f"data.sha256: found {sha256}, but the files of CIFAR-10 in {root} are unpacked; set data.root to the "
                "archive that it belongs to, or data.sha256 to null (the MD5 of each file was checked)"
            )
        check_sha256(archive, sha256, str(archive))
    contents = dict(_contents(container, sums, root))
    batches = [
        _batch(contents[f"{CIFAR10.base_folder}/{name}"], f"{root}: {name}")
        for name, _ in [*CIFAR10.train_list, *CIFAR10.test_list]
    ]
    sizes = [sum(len(labels) for _, labels in part) for part in (batches[: len(CIFAR10.train_list)], batches)]
    sizes[1] -= sizes[0]
    return Dataset(
        images=np.concatenate([images for images, _ in batches]),
        labels=np.concatenate([labels for _, labels in batches]),
        split=np.repeat([TRAIN, TEST], sizes).astype(np.uint8),
        source_index=np.concatenate([np.arange(size) for size in sizes]),
        names=[f"{kind}/{i}" for kind, size in zip(("train", "test"), sizes, strict=True) for i in range(size)],
        class_names=_class_names(contents[f"{CIFAR10.base_folder}/{CIFAR10.meta['filename']}"], CIFAR10.meta["key"]),
        source="cifar10",
        labels_are_true=True,
    )


def _contents(container: Container, sums: dict[str, str], root: Path) -> Iterator[tuple[str, dict[str, Value]]]:
    """
    Raises:
        UserError: a file is missing or another one, or its pickle holds more than arrays, lists, text and numbers.
    """
    left = set(sums)
    for name, content in container.read(sums, LARGEST_FILE):
        left.remove(name)
        if (found := hashlib.md5(content, usedforsecurity=False).hexdigest()) != sums[name]:
            raise UserError(f"data.root: {root}: {name} has the MD5 {found}, expected {sums[name]}; fetch it anew")
        try:
            yield name, load_dict(content)
        except ValueError as error:
            raise UserError(f"data.root: {root}: {name} is no batch of CIFAR-10: {error}") from error
    if left:
        raise UserError(f"data.root: {root}: no {', '.join(sorted(left))} in the archive; fetch it anew")


def _batch(content: dict[str, Value], where: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images [N, 3, 32, 32] and labels [N]."""
    data, labels = content.get("data"), content.get("labels")
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.shape[1:] != (3 * 32 * 32,):
        raise UserError(f"data.root: {where}: expected uint8 [N, 3072] in 'data', found {_kind(data)}")
    if not isinstance(labels, list) or not all(isinstance(label, int) and 0 <= label < 10 for label in labels):
        raise UserError(
            f"data.root: {where}: expected a list of numbers from 0 to 9 in 'labels', found {_kind(labels)}"
        )
    if len(labels) != len(data):
        raise UserError(f"data.root: {where}: found {len(labels)} labels for {len(data)} images")
    return data.reshape(-1, 3, 32, 32), np.array(labels, dtype=np.int64)


def _class_names(content: dict[str, Value], key: str) -> list[str]:
    names = content.get(key)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"data.root: expected a list of names in {key!r} of CIFAR-10's meta file, found {_kind(names)}")
    return names


def _kind(value: Any) -> str:
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, np.ndarray) else type(value).__name__
