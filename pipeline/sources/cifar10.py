"""CIFAR-10: the official archive by torchvision, checked against its MD5."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipeline.artifacts import TEST, TRAIN, Dataset
from pipeline.errors import UserError
from pipeline.sources.fetch import fetch


def load(root: Path, url: str | None) -> Dataset:
    """
    Args:
        root: folder that holds the archive or `cifar-10-batches-py/`, or where the archive goes.
        url: a mirror of the archive; None for the official place.

    Raises:
        UserError: it can be neither found nor downloaded, or its MD5 is wrong.
    """
    from torchvision.datasets import CIFAR10
    from torchvision.datasets.utils import check_integrity, extract_archive

    archive = root / CIFAR10.filename
    try:
        root.mkdir(parents=True, exist_ok=True)
        if url is not None and not (root / CIFAR10.base_folder).exists() and not archive.exists():
            fetch(url, None, root).replace(archive)
        if url is not None and archive.exists():
            # With a wrong file torchvision would go to the official place instead.
            if not check_integrity(str(archive), CIFAR10.tgz_md5):
                raise RuntimeError("another MD5")
            extract_archive(str(archive), str(root))
        train = CIFAR10(str(root), train=True, download=url is None)
        test = CIFAR10(str(root), train=False, download=False)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"data.root: no intact CIFAR-10 in {root} and none from {url or CIFAR10.url} ({error}); put "
            f"{CIFAR10.filename} (MD5 {CIFAR10.tgz_md5}) into that folder, or set data.root or data.url"
        ) from error
    labels = np.concatenate([train.targets, test.targets]).astype(np.int64)
    images = np.concatenate([train.data, test.data]).transpose(0, 3, 1, 2)
    sizes = (len(train.targets), len(test.targets))
    return Dataset(
        images=np.ascontiguousarray(images),
        labels=labels,
        split=np.repeat([TRAIN, TEST], sizes).astype(np.uint8),
        source_index=np.concatenate([np.arange(size) for size in sizes]),
        names=[f"{kind}/{i}" for kind, size in zip(("train", "test"), sizes, strict=True) for i in range(size)],
        class_names=list(train.classes),
        source="cifar10",
        labels_are_true=True,
    )
