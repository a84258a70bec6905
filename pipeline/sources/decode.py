"""Decoding image files to one uint8 array."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from pipeline.errors import UserError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
UNDECODABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)
"""What Pillow raises for a file that is no image, or half of one."""


def decode_images(
    items: Iterable[tuple[str, bytes]], channels: Literal["auto", 1, 3], resize: int | None, crop: int | None
) -> dict[str, NDArray[np.uint8]]:
    """name → [C, H, W], all of one shape.

    Args:
        channels: 1 or 3 converts; `auto` is 1 when every image is grey, otherwise 3.
        resize: to this many pixels square (bilinear, antialiased).
        crop: then the middle square of this size.

    Raises:
        UserError: files that do not decode (the first five are named), or images of different sizes.
    """
    images: dict[str, NDArray[np.uint8]] = {}
    bad: list[str] = []
    for name, content in items:
        try:
            images[name] = decode_image(content, channels, resize, crop)
        except UNDECODABLE as error:
            bad.append(f"{name} ({error})")
    if bad:
        raise undecodable(bad, len(bad) + len(images))
    if channels == "auto" and len({len(image) for image in images.values()}) > 1:
        images = {n: np.repeat(i, 3, axis=0) if len(i) == 1 else i for n, i in images.items()}
    first_name, first = next(iter(images.items()))
    for name, image in images.items():
        if image.shape != first.shape:
            raise different_sizes(first_name, first.shape, name, image.shape)
    return images


def decode_image(
    content: bytes, channels: Literal["auto", 1, 3], resize: int | None, crop: int | None
) -> NDArray[np.uint8]:
    """One file's [C, H, W], as `decode_images` says.

    Raises:
        UNDECODABLE: one of these.
        UserError: a crop larger than the image.
    """
    with Image.open(io.BytesIO(content)) as opened:
        image: Image.Image = ImageOps.exif_transpose(opened)
    if image.mode.startswith("I"):  # 16 bits a pixel: the upper 8 of them
        image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # Pillow warns of the direct way
    grey = image.mode in ("1", "L", "LA") if channels == "auto" else channels == 1
    image = image.convert("L" if grey else "RGB")
    if resize is not None:
        image = image.resize((resize, resize), Image.Resampling.BILINEAR)
    if crop is not None:
        if crop > min(image.size):
            raise UserError(f"data.crop: {crop} is larger than an image of {image.width}×{image.height} pixels")
        left, top = (image.width - crop) // 2, (image.height - crop) // 2
        image = image.crop((left, top, left + crop, top + crop))
    array = np.asarray(image, dtype=np.uint8)
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def undecodable(bad: Sequence[str], total: int) -> UserError:
    """Of files with the reason."""
    return UserError(
        f"data.root: {len(bad)} of {total} images do not decode: {'; '.join(bad[:5])}; mend or remove them"
    )


def different_sizes(name: str, shape: tuple[int, ...], other: str, other_shape: tuple[int, ...]) -> UserError:
    """Of shapes [C, H, W]."""
    return UserError(
        f"data.resize: the images differ in size: {name} is {shape[2]}×{shape[1]}, {other} is "
        f"{other_shape[2]}×{other_shape[1]}; set data.resize to the number of pixels that all of them shall have"
    )
