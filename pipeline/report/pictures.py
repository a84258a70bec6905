"""Images of the data set as a page holds them."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.store.dataset import Dataset

PICTURE, SMALL_PICTURE = 128, 64
"""Pixels of the longer side: of an image to decide about, and of its neighbours."""
LOSSLESS = 32
"""Images of at most so many pixels a side stay as they are: compression would show, and saves nothing."""


def pixelated(dataset: Dataset) -> bool:
    """Whether a page enlarges the images pixel by pixel."""
    return bool(max(dataset.images.shape[2:]) <= LOSSLESS)


def encoded(dataset: Dataset, sizes: Mapping[int, int], threads: int) -> Iterator[str]:
    """The images of these samples, row → pixels of the longer side, as WebP files in base64, in this order.

    Args:
        threads: that decode and encode.

    Raises:
        UserError: an image's file has changed, or the data set is damaged.
    """

    def picture(row: int) -> str:
        return base64.b64encode(thumbnail(dataset.images[row], sizes[row])).decode()

    with ThreadPoolExecutor(threads) as pool:
        yield from pool.map(picture, sizes)


def thumbnail(image: NDArray[np.uint8], longest: int) -> bytes:
    """An image [C, H, W] as a WebP file of at most `longest` pixels a side: a photograph of 128 takes some 2 KB."""
    picture = Image.fromarray(np.ascontiguousarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)))
    lossless = max(picture.size) <= LOSSLESS
    picture.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", lossless=lossless, quality=75, method=4)
    return buffer.getvalue()
