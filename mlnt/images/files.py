"""Images that stay in files: read and decoded by other processes, ahead of the training step that wants them."""

from __future__ import annotations

import signal
import warnings
from collections.abc import Callable, Iterable, Iterator
from multiprocessing import forkserver, resource_tracker
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from mlnt.images import worker
from mlnt.images.batches import Normalization
from mlnt.images.statistics import InputStatistics

Decode = Callable[[Any], NDArray[np.uint8]]


class Files(Protocol):
    """Images that a worker can decode from what `file` returns."""

    @property
    def decode(self) -> Decode:
        """`file(row)` ↦ uint8 [C, H, W]."""
        ...

    def __len__(self) -> int: ...

    def file(self, row: int) -> Any: ...


class FileImages:
    """Images [C, H, W] that `files.decode(files.file(row))` gives, uint8.

    What `fetch` gives does not depend on the number of workers. Workers start with the first `fetch`, wait between two,
    and end with `close`, with this object, or with the process. `decode` and what it is given must pickle; what it
    raises is raised by `fetch`, as it is.

    Attributes:
        workers: number of processes that decode; with 0 this process does.
        lost: makes an error from a message, for a worker that died.
    """

    def __init__(
        self,
        files: Files,
        statistics: InputStatistics,
        device: torch.device,
        *,
        channels_last: bool,
        workers: int,
        lost: Callable[[str], Exception] = RuntimeError,
    ) -> None:
        self._files = files
        self._decode = _Batches(files.decode)
        self._normalize = Normalization(statistics, device, channels_last)
        self.device = device
        self.workers = workers
        self.lost = lost
        self._asked = _Asked()
        self._loader: DataLoader[Any] | None = None
        self._fetches = 0

    def __len__(self) -> int:
        return len(self._files)

    def batch(self, fetched: Tensor) -> Tensor:
        return self._normalize(fetched)

    def fetch(self, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        """Yield uint8 [B, C, H, W] for these batches, in their order. A new fetch ends the one before.

        Raises:
            Exception: what `decode` has raised, or `lost` has made.
        """
        self._fetches += 1
        current = self._fetches
        for pixels in self._read([self._files.file(int(row)) for row in batch] for batch in batches):
            if isinstance(pixels, Exception):
                self.close()
                raise self._lost(pixels) if isinstance(pixels, _NoSharedMemoryError) else pixels
            yield pixels.to(self.device, non_blocking=True)
            if current != self._fetches:
                raise RuntimeError("this fetch was ended by another one")

    def close(self) -> None:
        """End the workers; the next `fetch` starts others."""
        loader, self._loader = self._loader, None
        running: Any = None if loader is None else loader._iterator
        if running is not None:
            running._shutdown_workers()  # not left to its __del__: an error's traceback would keep it alive

    def _read(self, batches: Iterator[list[Any]]) -> Iterator[Any]:
        if not self.workers:
            yield from map(self._decode.__getitems__, batches)
            return
        if self._loader is None:
            self._loader = self._start()
        self._asked.batches = batches
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="This DataLoader will create")  # more workers than cores
                loaded = iter(self._loader)
            yield from loaded
        except (RuntimeError, OSError, EOFError) as error:  # OSError: a worker ended while a batch was handed over
            self.close()
            raise self._lost(error) from error

    def _lost(self, error: Exception) -> Exception:
        return self.lost(
            f"a process that reads images failed ({' '.join(str(error).split())}); is memory, or shared memory "
            f"(/dev/shm), too small for {self.workers} of them? Fewer (run.workers) need less"
        )

    def _start(self) -> DataLoader[Any]:
        # Not by fork: this process has threads (OpenMP's, CUDA's), whose locks would never be released in the child.
        # Not by spawn: each worker would import torch for itself, 3 s. The server of forkserver does so once, has no
        # threads, and is forked from in 0.05 s. (Its sys.path differs: it might find other copies of our own modules.)
        context = torch.multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["torch.utils.data"])
        _start_server()
        return DataLoader(
            self._decode,
            batch_sampler=self._asked,
            num_workers=self.workers,
            collate_fn=_as_it_is,
            multiprocessing_context=context,
            persistent_workers=True,
            pin_memory=self.device.type == "cuda",
            worker_init_fn=worker.begin,
            generator=torch.Generator(),  # else it would draw from the global one
        )


def _start_server() -> None:
    """The server that forks is in our group: without this a SIGTERM to the group would end it, and with it the fetch
    that this process may want to finish before its checkpoint. A worker takes the signal again (`worker.begin`)."""
    resource_tracker.ensure_running()  # which would unblock the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _NoSharedMemoryError(Exception):
    """A worker has no room for a batch."""


class _Asked:
    """Batches of the fetch that runs. The loader starts to go through them once more for each."""

    batches: Iterator[list[Any]] = iter(())

    def __iter__(self) -> Iterator[list[Any]]:
        return self.batches


class _Batches(Dataset[Any]):
    """What the loader takes for a data set whose items are asked for by their files, so that no worker has the list."""

    def __init__(self, decode: Decode) -> None:
        self._decode = decode

    def __getitems__(self, files: list[Any]) -> Tensor | Exception:
        """An exception as a value: raised in a worker, its message would arrive in the middle of a traceback."""
        try:
            images = [self._decode(file) for file in files]
        except Exception as error:
            return error
        channels, height, width = images[0].shape
        # Channels last in memory, as decoders write and most networks read.
        pixels = np.empty((len(images), height, width, channels), np.uint8)
        for pixel, image in zip(pixels, images, strict=True):
            pixel[:] = image.transpose(1, 2, 0)
        tensor = torch.from_numpy(pixels)
        if get_worker_info() is not None:
            # Otherwise a thread of the queue would do it, and where that fails the batch is lost: this process waits.
            try:
                tensor.share_memory_()  # type: ignore[no-untyped-call]
            except RuntimeError as error:
                return _NoSharedMemoryError(str(error))
        if channels == 1:
            # The same memory; but by its strides torch would choose other kernels than for images held in memory.
            return tensor.view(-1, 1, height, width)
        return tensor.permute(0, 3, 1, 2)


def _as_it_is(batch: Any) -> Any:
    return batch
