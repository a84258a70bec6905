"""Images: normalised and augmented in batches, on the device; here those held in memory, in `files` those in files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from mlnt.images.statistics import InputStatistics


@dataclass(frozen=True)
class Augmentation:
    """Random crop after padding `crop_padding` pixels of zeros (after normalisation) a side; horizontal flip."""

    crop_padding: int = 0
    horizontal_flip: bool = False


class ImageStore(Protocol):
    """What the loop and the evaluation need of a set of images, whatever they are stored in.

    A batch is made in two parts: the second can be recorded together with a training step
    (`mlnt.training.cuda_graph`), the first cannot, and runs ahead where it takes time.
    """

    @property
    def device(self) -> torch.device: ...

    def __len__(self) -> int: ...

    def fetch(self, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        """For each batch of sample numbers [B], on the CPU, what `batch` makes its images from, on the device."""
        ...

    def batch(self, fetched: Tensor) -> Tensor:
        """Normalised images [B, C, H, W], on the device."""
        ...

    def close(self) -> None:
        """End the processes that `fetch` may have started."""
        ...


class Normalization:
    """uint8 images [B, C, H, W] on the device ↦ (x / 255 − mean) / std, in the memory format of the network."""

    def __init__(self, statistics: InputStatistics, device: torch.device, channels_last: bool) -> None:
        self._mean = statistics.mean.to(device)
        self._std = statistics.std.to(device)
        self._format = torch.channels_last if channels_last else torch.contiguous_format

    def __call__(self, pixels_BCHW: Tensor) -> Tensor:
        images = pixels_BCHW.float().div_(255)
        return images.sub_(self._mean).div_(self._std).contiguous(memory_format=self._format)


class MemoryImages:
    """uint8 images, moved to the device once; a batch is fetched by the numbers of its samples alone."""

    def __init__(
        self, images_NCHW: Tensor, statistics: InputStatistics, device: torch.device, channels_last: bool = False
    ) -> None:
        self._images = images_NCHW.to(device)
        self._normalize = Normalization(statistics, device, channels_last)
        self.device = device

    def __len__(self) -> int:
        return len(self._images)

    def fetch(self, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        return (indices.to(self.device, non_blocking=True) for indices in batches)

    def batch(self, fetched: Tensor) -> Tensor:
        return self._normalize(self._images[fetched.to(self.device)])

    def close(self) -> None:
        pass


class AugmentationDraws(NamedTuple):
    """The random numbers of a batch's augmentation; None for a part that is switched off.

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
    """Augment a batch [B, C, H, W] by these draws, which are on the same device; without draws, whatever it holds is
    left as it is."""
    if draws.shift is None and draws.flip is None:
        return images
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
