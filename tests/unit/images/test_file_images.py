from __future__ import annotations

import dataclasses
import functools
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import forkserver
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from numpy.typing import NDArray
from recordings import Recorder
from torch import Tensor
from trainings import make_data, make_network, make_step, make_training

from mlnt.images import files
from mlnt.images.batches import MemoryImages
from mlnt.images.files import FileImages
from mlnt.images.statistics import InputStatistics, PixelSums, input_statistics, statistics_of
from mlnt.training.cuda_graph import RecordedStep
from mlnt.training.data import TrainingData

CPU = torch.device("cpu")


def pixels(row: int, channels: int = 1) -> NDArray[np.uint8]:
    """What stands for a file of this number."""
    if row == 99:
        raise KeyError("99 is no file")
    return np.random.default_rng(row).integers(0, 256, (channels, 8, 8), dtype=np.uint8)


@dataclass(frozen=True)
class Numbered:
    """Files whose pixels follow from their number."""

    channels: int = 1
    count: int = 27

    @property
    def decode(self) -> Any:
        return functools.partial(pixels, channels=self.channels)

    def __len__(self) -> int:
        return self.count

    def file(self, row: int) -> int:
        return row


STATISTICS = InputStatistics(torch.tensor(0.5), torch.tensor(0.25))


@pytest.fixture(params=[0, 2])
def store(request: Any) -> Iterator[FileImages]:
    made = FileImages(Numbered(), STATISTICS, CPU, channels_last=False, workers=request.param)
    yield made
    made.close()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("channels_last", [False, True])
def test_batches_are_those_of_memory_to_the_bit_and_the_stride(channels: int, channels_last: bool) -> None:
    files = FileImages(Numbered(channels), STATISTICS, CPU, channels_last=channels_last, workers=0)
    memory = MemoryImages(as_tensor(channels), STATISTICS, CPU, channels_last)
    batches = [torch.tensor([3, 1, 3]), torch.tensor([26])]
    pairs = zip(files.fetch(batches), memory.fetch(batches), strict=True)
    for one, two in [(files.batch(a), memory.batch(b)) for a, b in pairs]:
        assert torch.equal(one, two)
        assert one.stride() == two.stride()
    assert len(files) == len(memory)


def as_tensor(channels: int = 1) -> Tensor:
    return torch.from_numpy(np.stack([pixels(row, channels) for row in range(27)]))


def test_the_global_generator_is_neither_read_nor_moved(store: FileImages) -> None:
    before = torch.get_rng_state()
    list(store.fetch([torch.arange(3)]))
    list(store.fetch([torch.arange(3)]))
    assert torch.equal(torch.get_rng_state(), before)


def test_what_decoding_raises_is_raised_as_it_is_and_the_store_goes_on(store: FileImages) -> None:
    fetch = store.fetch([torch.tensor([1]), torch.tensor([2, 99]), torch.tensor([3])])
    assert torch.equal(next(fetch), as_tensor()[1:2])
    with pytest.raises(KeyError) as caught:
        next(fetch)
    assert str(caught.value) == "'99 is no file'"
    assert torch.equal(next(store.fetch([torch.tensor([4])])), as_tensor()[4:5])


def test_too_little_shared_memory_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: Tensor) -> None:
        raise RuntimeError("unable to allocate\nshared memory")

    monkeypatch.setattr(files, "get_worker_info", object)
    monkeypatch.setattr(Tensor, "share_memory_", full)
    store = FileImages(Numbered(), STATISTICS, CPU, channels_last=False, workers=0, lost=OSError)
    with pytest.raises(OSError, match=r"failed \(unable to allocate shared memory\); .*/dev/shm.*run.workers"):
        next(store.fetch([torch.tensor([1])]))


# In the training loop


class OnDisk:
    """A feature table that is asked for rows."""

    def __init__(self, table: Tensor) -> None:
        self.table = table
        self.asked: list[int] = []

    def rows(self, positions: Tensor) -> Tensor:
        self.asked.append(len(positions))
        return self.table[positions]


def data(in_files: bool) -> tuple[TrainingData, OnDisk]:
    made = make_data()
    assert isinstance(made.features, Tensor)
    table = OnDisk(made.features)
    count = len(made.images)
    stacked = torch.from_numpy(np.stack([pixels(row) for row in range(count)]))
    if not in_files:
        return dataclasses.replace(made, images=MemoryImages(stacked, STATISTICS, CPU)), table
    files = FileImages(Numbered(count=count), STATISTICS, CPU, channels_last=False, workers=0)
    return dataclasses.replace(made, images=files, features=table), table


@pytest.mark.parametrize("recorded", [False, True])
def test_files_and_features_on_the_disk_train_to_the_same_bits(recorded: bool) -> None:
    """A recorded step gets pixels and rows of features in buffers."""
    runs = []
    for in_files in (False, True):
        made, table = data(in_files)
        network = make_network()
        network[4].p = 0.0  # dropout would draw again in the recording
        training = make_training(make_step(), made, network)
        if recorded:
            training._run_step = RecordedStep(training._step_on, training.state.tensors(), Recorder())
        history = list(training.epochs())
        runs.append((history, [tensor.clone() for tensor in training.state.tensors()]))
    assert set(table.asked) == {8}
    assert runs[0][0] == runs[1][0]
    assert all(torch.equal(one, two) for one, two in zip(runs[0][1], runs[1][1], strict=True))


def test_a_step_without_synthetic_labels_reads_no_features() -> None:
    made, table = data(in_files=True)
    list(make_training(make_step(num_synthetic=0), made, make_network()).epochs())
    assert table.asked == []


# Statistics


def test_sums_do_not_depend_on_how_the_images_are_divided() -> None:
    images = np.stack([pixels(row) for row in range(27)])
    whole = PixelSums.of([images], images.shape[1:])
    parts = PixelSums.empty(images.shape[1:])
    for part in (images[20:], images[:1], images[1:20]):
        parts.merge_(PixelSums.of([part], images.shape[1:]))
    assert parts.count == 27
    for normalize in ("mean_image", "channel"):
        found, expected = statistics_of(parts, normalize), statistics_of(whole, normalize)
        assert torch.equal(found.mean, expected.mean)
        assert torch.equal(found.std, expected.std)
        assert torch.equal(found.mean, input_statistics(torch.from_numpy(images), normalize).mean)
    np.testing.assert_allclose(whole.mean_image(), (images / 255).mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(whole.channel_variance(), [(images / 255).var()], rtol=1e-10)


def test_sums_of_grey_images_join_those_of_coloured_ones() -> None:
    grey, colour = np.full((2, 1, 4, 4), 10, np.uint8), np.full((1, 3, 4, 4), 40, np.uint8)
    sums = PixelSums.of([colour], (3, 4, 4))
    sums.merge_(PixelSums.of([grey], (1, 4, 4)))
    np.testing.assert_allclose(sums.channel_mean() * 255, [20, 20, 20])


def test_a_signal_to_the_whole_group_leaves_the_server_alone() -> None:
    """This process may want to finish its evaluation, and then to write a checkpoint."""
    store = FileImages(Numbered(), STATISTICS, CPU, channels_last=False, workers=1)
    try:
        fetched = store.fetch(torch.arange(9).split(1))
        next(fetched)
        os.kill(forkserver._forkserver._forkserver_pid, signal.SIGTERM)
        assert len(list(fetched)) == 8
        assert len(list(store.fetch([torch.arange(3)]))) == 1
        (reader,) = [p for p in psutil.Process().children(recursive=True) if p.ppid() != os.getpid()]
        reader.terminate()
        assert reader.wait(60) is None or not reader.is_running()
    finally:
        store.close()
