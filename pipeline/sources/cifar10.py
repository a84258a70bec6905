"""CIFAR-10: the official archive by torchvision, checked against its MD5."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipeline.artifacts import TEST, TRAIN, Dataset
from pipeline.errors import UserError


def load(root: Path, url: str | None) -> Dataset:
    """
    Args:
        root: folder that holds the archive or `cifar-10-batches-py/`, or where the archive goes.
        url: a mirror of the archive; None for the official place.

    Raises:
        UserError: it can be neither found nor downloaded, or its MD5 is wrong.
    """
    from torchvision.datasets import CIFAR10

    class Mirror(CIFAR10):  # type: ignore[misc]
        pass

    if url is not None:
        Mirror.url = url
    try:
        root.mkdir(parents=True, exist_ok=True)
        train = Mirror(str(root), train=True, download=True)
        test = Mirror(str(root), train=False, download=False)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"data.root: no intact CIFAR-10 in {root} and none from {Mirror.url} ({error}); put "
            f"{Mirror.filename} (MD5 {Mirror.tgz_md5}) into that folder, or set data.root or data.url"
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
