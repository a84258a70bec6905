"""A first look at a person's images: classes, counts, sizes, files that are no images, copies. Nothing is decoded."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.base import console
from pipeline.base.files import GIB
from pipeline.decoding.decode import UndecodableError, size_by_header
from pipeline.sources.imagefolder import listed
from pipeline.sources.labelled_files.classes import warn_of_alike
from pipeline.sources.labelled_files.same import same_pictures
from pipeline.sources.labelled_files.sample import Sample
from pipeline.sources.labelled_files.to_dataset import classes_of
from pipeline.sources.places.folder import first_few, printable, readable
from pipeline.store.dataset import SPLITS, TRAIN

HEADERS = 10_000
"""Of more images, so many are opened, evenly spread."""
MOST_BYTES = GIB
"""Files of equal size are compared where they are not more than that in all."""
SHOWN = 40
FEW = 10
"""A class of fewer training images is pointed at."""


def survey(root: Path, max_mpixels: float, out: Console) -> dict[str, int]:
    """Print what is there; returns the number of images of each split.

    Raises:
        UserError: there are no images of two or more classes, or a file cannot be read.
    """
    folder, samples = listed(root)
    classes = classes_of(samples)
    out.print(f"{root}: {len(samples):,} images of {len(classes)} classes", markup=False, soft_wrap=True)
    _show_counts(samples, classes, out)
    warn_of_alike(classes)
    paths = list(dict.fromkeys(sample.path for sample in samples))
    for line in _about_headers(folder, paths, max_mpixels):
        out.print(line, markup=False, soft_wrap=True)
    for line in _about_copies(folder, samples):
        out.print(line, markup=False, soft_wrap=True)
    return {name: sum(sample.split == split for sample in samples) for split, name in enumerate(SPLITS)}


def _show_counts(samples: Sequence[Sample], classes: Sequence[str], out: Console) -> None:
    counts = Counter((sample.label, sample.split) for sample in samples)
    splits = [split for split in range(len(SPLITS)) if any(counts[name, split] for name in classes)]
    table = Table("class", box=None, header_style="bold", pad_edge=False)
    for split in splits:
        table.add_column(SPLITS[split], justify="right")
    for name in classes[:SHOWN]:
        table.add_row(Text(printable(name)), *(f"{counts[name, split]:,}" for split in splits))
    out.print(table)
    if len(classes) > SHOWN:
        out.print(f"and {len(classes) - SHOWN} more classes")
    few = [f"{printable(name)} ({counts[name, TRAIN]})" for name in classes if counts[name, TRAIN] < FEW]
    if few:
        console.warn(f"{len(few)} classes have fewer than {FEW} training images: {first_few(few, ', ')}")


def _about_headers(folder: Path, paths: Sequence[str], max_mpixels: float) -> Iterator[str]:
    step = -(-len(paths) // HEADERS)
    sizes: Counter[tuple[int, int]] = Counter()
    bad: list[str] = []
    for path in console.counted(opened := paths[::step], "look", len(opened)):
        try:
            with readable(folder / path):
                sizes[size_by_header(folder / path, max_mpixels)] += 1
        except UndecodableError as error:
            bad.append(f"{printable(path)} ({error})")
    of = f" of {len(opened):,} that were opened" if step > 1 else ""
    if len(sizes) == 1:
        ((width, height),) = sizes
        yield f"size: {width}×{height} pixels, all{of}"
    elif sizes:
        (width, height), count = sizes.most_common(1)[0]
        small, large = min(sizes, key=np.prod), max(sizes, key=np.prod)
        yield (
            f"sizes{of}: from {small[0]}×{small[1]} to {large[0]}×{large[1]} pixels, most often {width}×{height} "
            f"({count:,})"
        )
    if bad:
        console.warn(
            f"{len(bad)} files{of} are no images, whatever they are called: {first_few(bad)}; mend or remove them, or "
            "set data.on_bad_image: skip in params.yaml"
        )


def _about_copies(folder: Path, samples: Sequence[Sample]) -> Iterator[str]:
    """Of equal files; those with two labels or in two splits are warned of."""
    digests = _digests(folder, [sample.path for sample in samples])
    if digests is None:
        return
    group = same_pictures(samples, digests)
    if group is not None:
        yield f"copies: {int((group >= 0).sum() - group.max() - 1):,} files are the same, byte for byte, as another one"


def _digests(folder: Path, paths: Sequence[str]) -> NDArray[np.uint64] | None:
    """A number for each file that equal ones share; only files of equal size are read. None where that is too much."""
    sizes = []
    for path in paths:
        with readable(folder / path):
            sizes.append((folder / path).stat().st_size)
    counts = Counter(sizes)
    if sum(size for size in sizes if counts[size] > 1) > MOST_BYTES:
        return None
    found = np.arange(len(paths), dtype=np.uint64)
    for i, (path, size) in enumerate(zip(paths, sizes, strict=True)):
        if counts[size] > 1:
            with readable(folder / path):
                content = (folder / path).read_bytes()
            found[i] = int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")
    return found
