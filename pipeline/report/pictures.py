"""Images of the data set as a page holds them."""

from __future__ import annotations

import base64
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SMALLEST_PICTURE = 64
LOSSLESS = 32
"""Images of at most so many pixels a side stay as they are: compression would show, and saves nothing."""


def data_uri(image: NDArray[np.uint8]) -> str:
    """An image [C, H, W] as a PNG, tiny ones larger."""
    picture = _picture(image)
    if (scale := SMALLEST_PICTURE // max(picture.size)) > 1:
        picture = picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def thumbnail(image: NDArray[np.uint8], longest: int) -> bytes:
    """An image [C, H, W] as a WebP file of at most `longest` pixels a side: a photograph of 128 takes some 2 KB."""
    picture = _picture(image)
    lossless = max(picture.size) <= LOSSLESS
    picture.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", lossless=lossless, quality=75, method=4)
    return buffer.getvalue()


def _picture(image: NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)))
