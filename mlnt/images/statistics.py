"""The statistics that images are normalised by, and the sums over pixels that they are computed from.

The sums are integers: the same whatever the order, and however many processes add them up. Torch is imported inside
functions, because the stages that only sum start without it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

Normalize = Literal["mean_image", "channel"]
LEVELS = 256


@dataclass
class PixelSums:
    """Sums from which the mean image and each channel's mean and deviation follow.

    Attributes:
        count: number of images.
        total: sum of the images, int64 [C, H, W].
        levels: how many pixels of each channel have each of the 256 values, int64 [C, 256].
    """

    count: int
    total: NDArray[np.int64]
    levels: NDArray[np.int64]

    @classmethod
    def empty(cls, shape: tuple[int, ...]) -> PixelSums:
        """The sums over no images, for images of this shape [C, H, W]."""
        return cls(0, np.zeros(shape, np.int64), np.zeros((shape[0], LEVELS), np.int64))

    @classmethod
    def of(cls, chunks: Iterable[NDArray[np.uint8]], shape: tuple[int, ...]) -> PixelSums:
        """The sums over chunks of images [n, C, H, W]."""
        sums = cls.empty(shape)
        for chunk in chunks:
            sums.add_(chunk)
        return sums

    def add_(self, images_NCHW: NDArray[np.uint8]) -> None:
        self.count += len(images_NCHW)
        self.total += images_NCHW.sum(axis=0, dtype=np.int64)
        for channel in range(len(self.levels)):
            self.levels[channel] += np.bincount(images_NCHW[:, channel].ravel(), minlength=LEVELS)

    def merge_(self, other: PixelSums) -> None:
        """Add the sums of other images, in place; those of grey images count for each of three channels."""
        self.count += other.count
        self.total += other.total
        self.levels += other.levels

    def mean_image(self) -> NDArray[np.float64]:
        """The mean of each pixel, in [0, 1], [C, H, W]."""
        return self.total / (255 * self.count)

    def channel_mean(self) -> NDArray[np.float64]:
        """The mean of each channel, in [0, 1], [C]."""
        return self._moment(1)

    def channel_variance(self) -> NDArray[np.float64]:
        """The variance of each channel [C], of values in [0, 1]."""
        return self._moment(2) - self._moment(1) ** 2

    def _moment(self, power: int) -> NDArray[np.float64]:
        pixels = self.levels.sum(axis=1)
        values = np.arange(LEVELS, dtype=np.int64) ** power
        moment: NDArray[np.float64] = (self.levels * values).sum(axis=1) / (pixels * 255**power)
        return moment


@dataclass(frozen=True)
class InputStatistics:
    """x ↦ (x / 255 − mean) / std, both broadcastable to [C, H, W], in float32 on the CPU."""

    mean: Tensor
    std: Tensor


def input_statistics(images_NCHW: Tensor, normalize: Normalize) -> InputStatistics:
    """Statistics of uint8 training images on the CPU; sums are taken over chunks, so that memory stays bounded."""
    import torch

    chunks = (chunk.numpy() for chunk in torch.split(images_NCHW, 4096))
    return statistics_of(PixelSums.of(chunks, tuple(images_NCHW.shape[1:])), normalize)


def statistics_of(sums: PixelSums, normalize: Normalize) -> InputStatistics:
    """Statistics in [0, 1].

    `mean_image` subtracts the per-pixel mean (std 1); `channel` uses per-channel mean and standard deviation.
    """
    import torch

    if normalize == "mean_image":
        return InputStatistics(torch.from_numpy(sums.mean_image()).float(), torch.ones(()))
    mean, variance = (torch.from_numpy(v).view(-1, 1, 1) for v in (sums.channel_mean(), sums.channel_variance()))
    return InputStatistics(mean.float(), variance.clamp(min=1e-12).sqrt().float())
