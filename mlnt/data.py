"""Images held in memory: normalised and augmented in batches, on the device they lie on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

Normalize = Literal["mean_image", "channel"]


@dataclass(frozen=True)
class Augmentation:
    """Random crop after padding `crop_padding` pixels of zeros (after normalisation) a side; horizontal flip."""

    crop_padding: int = 0
    horizontal_flip: bool = False


class ImageStore(Protocol):
    """What the loop and the evaluation need of a set of images, whatever they are stored in."""

    @property
    def device(self) -> torch.device: ...

    def __len__(self) -> int: ...

    def batch(self, indices: Tensor) -> Tensor:
        """Normalised images [B, C, H, W] of these samples, on the device."""
        ...


@dataclass(frozen=True)
class InputStatistics:
    """x ↦ (x / 255 − mean) / std, both broadcastable to [C, H, W]."""

    mean: Tensor
    std: Tensor


def input_statistics(images_NCHW: Tensor, normalize: Normalize) -> InputStatistics:
    """Statistics of uint8 training images, in [0, 1].

    `mean_image` subtracts the per-pixel mean (std 1); `channel` uses per-channel mean and standard deviation.
    Sums are taken in float64 over chunks, so that memory stays bounded.
    """
    total = torch.zeros(images_NCHW.shape[1:], dtype=torch.float64)
    squares = torch.zeros_like(total)
    for chunk in torch.split(images_NCHW, 4096):
        scaled = chunk.double() / 255
        total += scaled.sum(dim=0)
        squares += (scaled**2).sum(dim=0)
    mean_image = total / len(images_NCHW)
    if normalize == "mean_image":
        return InputStatistics(mean_image.float(), torch.ones(()))
    mean = mean_image.mean(dim=(1, 2), keepdim=True)
    variance = (squares / len(images_NCHW)).mean(dim=(1, 2), keepdim=True) - mean**2
    return InputStatistics(mean.float(), variance.clamp(min=1e-12).sqrt().float())


class MemoryImages:
    """uint8 images, moved to the device once."""

    def __init__(
        self, images_NCHW: Tensor, statistics: InputStatistics, device: torch.device, channels_last: bool = False
    ) -> None:
        self._images = images_NCHW.to(device)
        self._mean = statistics.mean.to(device)
        self._std = statistics.std.to(device)
        self._format = torch.channels_last if channels_last else torch.contiguous_format
        self.device = device

    def __len__(self) -> int:
        return len(self._images)

    def batch(self, indices: Tensor) -> Tensor:
        images = self._images[indices.to(self.device)].float().div_(255)
        return images.sub_(self._mean).div_(self._std).contiguous(memory_format=self._format)


class AugmentationDraws(NamedTuple):
    """What is random in the augmentation of a batch; None for what is not done.

    Attributes:
        shift: int64 [2, B, 1], rows and columns from 0 to 2 · crop_padding.
        flip: boolean [B].
    """

    shift: Tensor | None
    flip: Tensor | None


def draw_augmentation(augmentation: Augmentation, batch_size: int, generator: torch.Generator) -> AugmentationDraws:
    """Every image draws its own shift and flip, from a CPU generator."""
    pad = augmentation.crop_padding
    return AugmentationDraws(
        torch.randint(2 * pad + 1, (2, batch_size, 1), generator=generator) if pad else None,
        torch.rand(batch_size, generator=generator) < 0.5 if augmentation.horizontal_flip else None,
    )


def augment(images: Tensor, augmentation: Augmentation, draws: AugmentationDraws) -> Tensor:
    """Augment a batch [B, C, H, W] as `draws`, on the same device, says."""
    batch_size, channels, height, width = images.shape
    memory_format = (
        torch.channels_last if images.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
    )
    if draws.shift is not None:
        pad = augmentation.crop_padding
        rows = draws.shift[0] + torch.arange(height, device=images.device)
        cols = draws.shift[1] + torch.arange(width, device=images.device)
        # One gather over flat pixels of the channels-last layout moves whole pixels, not single values.
        padded = F.pad(images, (pad, pad, pad, pad)).permute(0, 2, 3, 1).reshape(batch_size, -1, channels)
        flat = (rows.unsqueeze(2) * (width + 2 * pad) + cols.unsqueeze(1)).reshape(batch_size, -1)
        picked = padded.gather(1, flat.unsqueeze(2).expand(-1, -1, channels))
        images = picked.reshape(batch_size, height, width, channels).permute(0, 3, 1, 2)
    if draws.flip is not None:
        images = torch.where(draws.flip.view(-1, 1, 1, 1), images.flip(3), images)
    return images.contiguous(memory_format=memory_format)


def index_batches(indices: Tensor, batch_size: int) -> Iterator[Tensor]:
    """Consecutive slices of `indices`, the last one possibly shorter."""
    yield from torch.split(indices, batch_size)
