"""Images that show the same, pixel for pixel: certain label errors, or test images that are trained on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.base import console
from pipeline.sources.labelled_files.sample import Sample
from pipeline.sources.places.folder import first_few, printable
from pipeline.store.dataset import SPLITS


def picture_digest(image: NDArray[np.uint8]) -> int:
    """64 bits of what an image [C, H, W] shows: a grey one is the same in one channel and in three."""
    if len(image) == 3 and np.array_equal(image[0], image[1]) and np.array_equal(image[0], image[2]):
        image = image[:1]
    found = hashlib.blake2b(repr(image.shape).encode(), digest_size=8)
    found.update(np.ascontiguousarray(image).data)
    return int.from_bytes(found.digest(), "little")


def picture_digests(images: Iterable[NDArray[np.uint8]]) -> NDArray[np.uint64]:
    return np.fromiter(map(picture_digest, images), np.uint64)


def same_pictures(samples: Sequence[Sample], digests: NDArray[np.uint64]) -> NDArray[np.int64] | None:
    """The number of the group of equal images that each sample belongs to [N], −1 for one that has no equal; None where
    none has. Warns of groups with more than one label, or in more than one split."""
    _, inverse, counts = np.unique(digests, return_inverse=True, return_counts=True)
    several = counts > 1
    if not several.any():
        return None
    group: NDArray[np.int64] = np.where(several, np.cumsum(several) - 1, -1)[inverse].astype(np.int64)
    members: dict[int, list[Sample]] = {}
    for row in np.flatnonzero(group >= 0).tolist():
        members.setdefault(int(group[row]), []).append(samples[row])
    _warn(members.values())
    return group


def _warn(groups: Iterable[Sequence[Sample]]) -> None:
    labels: list[str] = []
    splits: list[str] = []
    for same in groups:
        for found, shown in (
            (labels, {sample.label: sample.path for sample in reversed(same)}),
            (splits, {SPLITS[sample.split]: sample.path for sample in reversed(same)}),
        ):
            if len(shown) > 1:  # the first of each
                found.append(" = ".join(f"{printable(path)} ({printable(key)})" for key, path in sorted(shown.items())))
    if labels:
        console.warn(
            f"data.root: {len(labels)} images have more than one label, in equal files or pixel for pixel, so that one "
            f"of these labels is certainly wrong: {first_few(labels)}; correct them, or remove all but one; those for "
            "training lead reports/label_issues.csv"
        )
    if splits:
        console.warn(
            f"data.root: {len(splits)} images are in more than one split, in equal files or pixel for pixel, which "
            f"makes accuracies too good: {first_few(splits)}; remove them from all but one"
        )
