"""Decoding image files to one uint8 array."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, TiffImagePlugin, UnidentifiedImageError

from pipeline.base.errors import UserError
from pipeline.decoding import modes

EXTENSIONS = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm",
)  # fmt: skip

# What a file holds counts, not its name. Without this list Pillow tries all formats that it knows, and for one of them,
# EPS, starts Ghostscript.
_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF's orientation → what makes it upright."""

_BYTES_PER_PIXEL = 8
"""Four channels of 16 bits, not compressed: the most that an image file needs for a pixel."""

_METADATA_BYTES = 16 << 20

Interpolation = Literal["bilinear", "bicubic"]


class ImageOptions(NamedTuple):
    """How files become arrays.

    Attributes:
        channels: 1 or 3 converts; `auto` is 1 when every image is grey, otherwise 3.
        resize: to this many pixels square (antialiased).
        crop: then the middle square of this size.
        max_mpixels: larger images, by their header, are not decoded.
        background: the colour under what is transparent.
        interpolation: of `resize`.
    """

    channels: Literal["auto", 1, 3]
    resize: int | None
    crop: int | None
    max_mpixels: float
    background: str
    interpolation: Interpolation = "bilinear"

    @property
    def max_file_bytes(self) -> int:
        """No file of an image within `max_mpixels` is larger."""
        return int(self.max_mpixels * 1e6 * _BYTES_PER_PIXEL) + _METADATA_BYTES


FRAMES = "have more than one frame or page; the first is taken"


class Decoded(NamedTuple):
    """A file's image.

    Attributes:
        pixels: [C, H, W].
        remarks: what was left out or is doubtful, as in "3 images …".
    """

    pixels: NDArray[np.uint8]
    remarks: tuple[str, ...]


class UndecodableError(Exception):
    """A file cannot be decoded; the message says why."""


def different_sizes(name: str, shape: tuple[int, ...], other: str, other_shape: tuple[int, ...]) -> UserError:
    """The error for two images of different size; the shapes are [C, H, W]."""
    return UserError(
        f"data.resize: the images differ in size: {name} is {shape[2]}×{shape[1]}, {other} is "
        f"{other_shape[2]}×{other_shape[1]}; set data.resize to the number of pixels that all of them shall have"
    )


def decode_image(content: bytes, options: ImageOptions) -> Decoded:
    """Decode the bytes of an image file.

    Raises:
        UndecodableError: the file is no image, is cut off, or is too large.
        UserError: the image is smaller than the crop.
        MemoryError: there is too little memory for the image.
    """
    try:
        with _our_limit_alone():
            return _decode(content, options)
    except (UserError, MemoryError):  # a lack of memory says nothing about the image
        raise
    except UnidentifiedImageError as error:
        if content[:4] in (b"II*\0", b"MM\0*"):
            raise UndecodableError("a TIFF with pixels of a kind that Pillow does not know, or damaged") from error
        raise UndecodableError("of no known image format") from error
    except Exception as error:  # damaged files make Pillow's readers raise anything
        raise UndecodableError(str(error) or type(error).__name__) from error


def decode_listed(name: str, content: bytes, options: ImageOptions) -> Decoded:
    """As `decode_image`, for a file of the data set to be made: one that is smaller than the crop is named.

    Raises:
        UndecodableError, UserError, MemoryError: as `decode_image`.
    """
    try:
        return decode_image(content, options)
    except UserError as error:
        raise UserError(f"{error}: {name}; set data.resize, or lower data.crop") from None


def size_by_header(path: Path, max_mpixels: float) -> tuple[int, int]:
    """Width and height of an image file, by its header: a cut-off or damaged image is not noticed.

    Raises:
        UndecodableError: the file is no image, or is too large.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        try:
            with _our_limit_alone(), Image.open(file, formats=_FORMATS) as image:
                width, height = image.size
        except UnidentifiedImageError as error:
            raise UndecodableError("of no known image format") from error
        except Exception as error:  # as in `decode_image`
            raise UndecodableError(str(error) or type(error).__name__) from error
    if width * height > max_mpixels * 1e6:
        raise UndecodableError(_too_large(width, height, max_mpixels))
    return width, height


def _too_large(width: int, height: int, most: float) -> str:
    return f"{width}×{height} pixels, more than data.max_image_mpixels, {most:g}"


@contextmanager
def _our_limit_alone() -> Iterator[None]:
    """Switch off Pillow's own limit, since `max_mpixels` replaces it, and warnings about metadata that is not used."""
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"PIL\.")
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def _opened(content: bytes, most: float) -> tuple[Image.Image, list[str]]:
    """With 8 bits a channel and upright, and what is to be said about it."""
    with Image.open(io.BytesIO(content), formats=_FORMATS) as opened:
        if opened.width * opened.height > most * 1e6:
            raise ValueError(_too_large(opened.width, opened.height, most))
        tile = getattr(opened, "tag_v2", {})  # a TIFF's: one tile is unpacked whole, however small the image
        if tile.get(TiffImagePlugin.TILEWIDTH, 0) * tile.get(TiffImagePlugin.TILELENGTH, 0) > most * 1e6:
            raise ValueError(f"tiles of more pixels than data.max_image_mpixels, {most:g}")
        whole = (0, 0, *opened.size)
        box = (opened.tile[0].extents if opened.format == "GIF" and opened.tile else None) or whole
        opened.load()
        image, remarks = modes.eight_bits(opened, content)
        if box != whole:
            image = modes.covered(image, box)
        if (turn := _turn(opened)) is not None:
            image = image.transpose(turn)
        return image, [FRAMES, *remarks] if _has_more(opened, content) else remarks


def _turn(image: Image.Image) -> Image.Transpose | None:
    """What turns the image as EXIF says.

    `ImageOps.exif_transpose` reads and writes all of EXIF, so any damage fails it.
    """
    try:
        return _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except MemoryError:
        raise
    except Exception:  # damaged EXIF counts as none; Pillow may raise anything
        return None


def _has_more(opened: Image.Image, content: bytes) -> bool:
    """Frames or pages. A photograph's second picture (MPO) is its camera's own: a preview, or depths."""
    if opened.format != "GIF":
        return opened.format != "MPO" and bool(getattr(opened, "is_animated", False))
    try:  # to look for a second frame, Pillow gives up the first
        with Image.open(io.BytesIO(content), formats=["GIF"]) as again:
            return bool(getattr(again, "is_animated", False))
    except MemoryError:
        raise
    except Exception:  # the others are damaged
        return True


def _decode(content: bytes, options: ImageOptions) -> Decoded:
    most = options.max_mpixels
    if len(content) > options.max_file_bytes:
        raise ValueError(f"a file larger than any image of data.max_image_mpixels, {most:g}")
    image, remarks = _opened(content, most)
    image, more = modes.on_ground(image, options.background)
    grey = image.mode in ("1", "L") if options.channels == "auto" else options.channels == 1
    if image.mode == "LAB":  # Pillow knows no other way
        image = image.convert("RGB")
    if image.mode != (mode := "L" if grey else "RGB"):
        image = image.convert(mode)
    if options.resize is not None:
        image = image.resize((options.resize, options.resize), Image.Resampling[options.interpolation.upper()])
    if (crop := options.crop) is not None:
        if crop > min(image.size):
            raise UserError(f"data.crop: {crop} is larger than an image of {image.width}×{image.height} pixels")
        left, top = (image.width - crop) // 2, (image.height - crop) // 2
        image = image.crop((left, top, left + crop, top + crop))
    array = np.asarray(image, dtype=np.uint8)
    return Decoded(array[None] if array.ndim == 2 else array.transpose(2, 0, 1), (*remarks, *more))
