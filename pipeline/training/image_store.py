"""What a network is shown: images, normalised as params.yaml says."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from mlnt.images.batches import ImageStore, MemoryImages
from mlnt.images.statistics import InputStatistics, PixelSums, statistics_of
from pipeline.base.errors import RunError
from pipeline.decoding.image_files import ImageFiles
from pipeline.params.schema import Params
from pipeline.store.dataset import Dataset
from pipeline.training.start_weights import pretrained


def image_store(
    params: Params, dataset: Dataset, train: NDArray[np.int64], device: torch.device
) -> tuple[ImageStore, InputStatistics]:
    """All images, on the device or read from their files, normalised as `model.normalize` says: by the statistics of
    the training samples `train`, or by timm's.

    For files, the statistics come from the first decoding, before a validation split was taken off.
    """
    statistics = _input_statistics(params, dataset, train)
    if isinstance(dataset.images, ImageFiles):
        # Imported here: torch.utils.data takes time, and only files need it.
        from mlnt.images.files import FileImages

        store = FileImages(
            dataset.images,
            statistics,
            device,
            channels_last=params.compute.channels_last,
            workers=params.run.num_workers,
            lost=RunError,
        )
        return store, statistics
    images = torch.from_numpy(np.asarray(dataset.images))
    return MemoryImages(images, statistics, device, params.compute.channels_last), statistics


def _input_statistics(params: Params, dataset: Dataset, train: NDArray[np.int64]) -> InputStatistics:
    images, normalize = dataset.images, params.model.normalize
    if normalize == "pretrained":
        return pretrained.input_statistics(params.model.name, images.shape[1])
    if isinstance(images, ImageFiles):
        return statistics_of(images.sums, normalize)
    # In pieces: all training images at once would be a second copy of them.
    pieces = (images[train[at : at + 4096]] for at in range(0, len(train), 4096))
    return statistics_of(PixelSums.of(pieces, images.shape[1:]), normalize)
