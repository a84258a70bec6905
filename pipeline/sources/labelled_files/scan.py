"""One pass over image files that stay where they are: what decodes, how large it is, sums over the training images."""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mlnt.images import worker
from mlnt.images.statistics import PixelSums
from pipeline.base import console
from pipeline.base.errors import RunError
from pipeline.decoding.decode import ImageOptions, UndecodableError, decode_listed, different_sizes
from pipeline.sources.labelled_files.same import picture_digest
from pipeline.sources.places.folder import read_start

FILES_A_TASK = 64
Shape = tuple[int, int, int]


@dataclass
class Scanned:
    """What some files hold.

    Attributes:
        sizes: bytes of each file; −1 for one that does not decode.
        bad: position → reason, of those that do not decode.
        first: shape [C, H, W] → position of the first image that has it.
        sums: shape → sums over the training images that have it.
        digests: of what each image shows.
        remarks: position → what is to be said about it.
    """

    sizes: NDArray[np.int64]
    bad: dict[int, str] = field(default_factory=dict)
    first: dict[Shape, int] = field(default_factory=dict)
    sums: dict[Shape, PixelSums] = field(default_factory=dict)
    digests: NDArray[np.uint64] = field(init=False)
    remarks: dict[int, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.digests = np.zeros(len(self.sizes), np.uint64)

    def together(self) -> tuple[Shape, PixelSums]:
        """The common shape, with three channels where any image is in colour, and the sums for it."""
        shape = max(self.first)
        sums = PixelSums.empty(shape)
        for part in self.sums.values():
            sums.merge_(part)
        return shape, sums


def scan(root: Path, names: Sequence[str], training: NDArray[np.bool_], options: ImageOptions, workers: int) -> Scanned:
    """Decode each file once, and collect sizes in bytes, shapes, errors and sums over pixels.

    Args:
        training: boolean [N], the files that count for the sums.
        workers: processes; with 0 this one does it. What is found does not depend on them.

    Raises:
        UserError: images have different sizes; a file cannot be read; or an image is smaller than the crop.
        RunError: a worker died.
    """
    found = Scanned(np.full(len(names), -1, np.int64))
    starts = range(0, len(names), FILES_A_TASK)
    tasks = ((str(root), names[at : at + FILES_A_TASK], training[at : at + FILES_A_TASK], options) for at in starts)
    with console.progress("download", len(names)) as bar:
        for at, part in zip(starts, _each(tasks, workers), strict=True):
            found.sizes[at : at + len(part.sizes)] = part.sizes
            found.digests[at : at + len(part.sizes)] = part.digests
            found.bad |= {at + i: reason for i, reason in part.bad.items()}
            found.remarks |= {at + i: remarks for i, remarks in part.remarks.items()}
            for shape, i in part.first.items():
                found.first.setdefault(shape, at + i)
            for shape, sums in part.sums.items():
                found.sums.setdefault(shape, PixelSums.empty(shape)).merge_(sums)
            _refuse_different_sizes(names, found.first)
            bar.at(at)
    return found


def _refuse_different_sizes(names: Sequence[str], first: dict[Shape, int]) -> None:
    for (shape, i), (other, j) in pairwise(first.items()):
        if other[1:] != shape[1:]:
            raise different_sizes(names[i], shape, names[j], other)


Task = tuple[str, Sequence[str], NDArray[np.bool_], ImageOptions]


def _each(tasks: Iterator[Task], workers: int) -> Iterator[Scanned]:
    """The tasks' results in their order; workers are a few tasks ahead."""
    if not workers:
        yield from (_scan_task(task) for task in tasks)
        return
    # Spawned: this process may have threads, and a worker has nothing heavy to import.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=worker.begin)
    try:
        yield from _ahead(lambda task: pool.submit(_scan_task, task), tasks, 3 * workers)
    except (BrokenProcessPool, MemoryError) as error:
        raise RunError(
            f"download: a process that decodes images failed ({str(error) or 'out of memory'}); is memory too small "
            f"for {workers} of them? Fewer (run.workers) need less"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _ahead(submit: Callable[[Task], Future[Scanned]], tasks: Iterator[Task], most: int) -> Iterator[Scanned]:
    waiting: deque[Future[Scanned]] = deque()
    for task in tasks:
        waiting.append(submit(task))
        if len(waiting) >= most:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _scan_task(task: Task) -> Scanned:
    root, names, training, options = task
    found = Scanned(np.full(len(names), -1, np.int64))
    for i, name in enumerate(names):
        try:
            content = read_start(Path(root, name), options.max_file_bytes + 1)
            image, remarks = decode_listed(name, content, options)
        except UndecodableError as error:
            found.bad[i] = str(error)
            continue
        if remarks:
            found.remarks[i] = remarks
        found.digests[i] = picture_digest(image)
        found.sizes[i] = len(content)
        shape: Shape = image.shape
        found.first.setdefault(shape, i)
        if training[i]:
            found.sums.setdefault(shape, PixelSums.empty(shape)).add_(image[None])
    return found
