"""Pillow's modes and what files say about them: to 8 bits a channel, and on a ground where they are transparent."""

from __future__ import annotations

import struct

import numpy as np
from PIL import Image, ImageColor, TiffImagePlugin

DARK = "have more than 8 bits a channel and use less than a sixteenth of their range, so that they are nearly black; "
DARK += "save them with 8 bits, or with values up to the greatest"
EXTRA = "have a channel beside their colours of which the file does not say what it is; it is left out"
PLAIN = "show nothing but data.background: they are transparent all over, or have just that colour; set another one"

_SIGNED, _FLOAT = 2, 3
"""Of TIFF's SampleFormat."""

_PNG_DEPTH, _PNG_COLOUR, _PNG_GREY_WITH_ALPHA = 24, 25, 4
"""Where a PNG file says them, and one kind of colour."""

_BMP_START, _BMP_KIND, _BMP_32_BITS = slice(10, 14), slice(28, 34), struct.pack("<HI", 32, 0)
"""Where a BMP file says where its pixels begin, their bits and compression; 32 bits without a mask for alpha."""

_NO_RANGE = "of no known range; save it with 8 or 16 bits, from 0 on"


def eight_bits(opened: Image.Image, content: bytes) -> tuple[Image.Image, list[str]]:
    """A loaded image with 8 bits a channel, and what is to be said about it.

    Of 16 bits, the upper 8 are taken: PNG and PPM say that they are the whole range, and so does an unsigned TIFF.

    Args:
        content: the file.

    Raises:
        ValueError: numbers of which nobody knows which of them is black and which is white. Pillow would clip them.
    """
    tags = getattr(opened, "tag_v2", {})
    kinds = set(tags.get(TiffImagePlugin.SAMPLEFORMAT, ()))
    if opened.mode.startswith("F") or _FLOAT in kinds:
        raise ValueError(f"its pixels are floating-point numbers, {_NO_RANGE}")
    bits = _bits(opened, content)
    if _SIGNED in kinds or bits > 16:
        raise ValueError(f"its pixels are {'signed ' if _SIGNED in kinds else ''}numbers of {bits} bits, {_NO_RANGE}")
    image, dark = opened, bits > 8
    key = opened.info.get("transparency")
    if opened.mode.startswith("I"):
        values = np.asarray(opened).astype(np.uint32)
        if tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0:  # white is 0, and Pillow does not turn it round
            values = (1 << bits) - 1 - values
        dark = bool(values.any())
        image = Image.fromarray((values >> (bits - 8)).astype(np.uint8))
        if key is not None:
            image = Image.merge("LA", (image, Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8))))
    elif opened.format == "PNG" and bits == 16 and key is not None:
        raise ValueError("one of its colours of 16 bits is transparent, and 8 do not tell which; save it with alpha")
    elif opened.format == "PNG" and opened.mode == "L" and key is not None:  # the key has the file's bits
        opened.info["transparency"] = key * 255 // ((1 << bits) - 1)
    elif opened.format == "PNG" and content[_PNG_COLOUR] == _PNG_GREY_WITH_ALPHA and opened.mode == "RGBA":
        image = opened.convert("LA")  # of 16 bits: Pillow makes it one in colour
    remarks = [EXTRA] if 0 in tags.get(TiffImagePlugin.EXTRASAMPLES, ()) or _has_fourth(opened, content) else []
    if dark and _greatest(image) < 16:
        remarks.append(DARK)
    return image, remarks


def _bits(opened: Image.Image, content: bytes) -> int:
    """Of a channel, in the file."""
    if hasattr(opened, "tag_v2"):
        return int(max(opened.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (1,))))
    if opened.format == "PNG":
        return content[_PNG_DEPTH]
    return 16 if opened.mode.startswith("I") else 8  # PPM, which Pillow stretches to the whole of them


def _has_fourth(opened: Image.Image, content: bytes) -> bool:
    """Whether a BMP of 32 bits, 24 of them colours, uses the others: for alpha, most likely, but it cannot say so."""
    if opened.format != "BMP" or opened.mode != "RGB" or content[_BMP_KIND] != _BMP_32_BITS:
        return False
    start = int.from_bytes(content[_BMP_START], "little")
    fourth = np.frombuffer(content[start : start + 4 * opened.width * opened.height], np.uint8)[3::4]
    return len(np.unique(fourth)) > 1


def _greatest(image: Image.Image) -> int:
    """The greatest value of all its colours."""
    return max(_extrema(image.getchannel(band))[1] for band in image.getbands() if band.upper() != "A")


def _extrema(channel: Image.Image) -> tuple[int, int]:
    low, high = np.asarray(channel).min(), np.asarray(channel).max()
    return int(low), int(high)


def covered(image: Image.Image, box: tuple[int, int, int, int]) -> Image.Image:
    """Transparent outside of a box: where a GIF's frame leaves its canvas bare. Pillow has the palette's first colour
    there."""
    whole = image.convert("LA" if image.mode == "L" else "RGBA")
    canvas = Image.new(whole.mode, whole.size)
    canvas.paste(whole.crop(box), box)
    return canvas


def on_ground(image: Image.Image, background: str) -> tuple[Image.Image, list[str]]:
    """Composed on a ground of that colour where it is transparent, and what is to be said about it.

    What is opaque keeps its bits. A grey image becomes one in colour only where the ground is one.
    """
    if not image.has_transparency_data:
        return image, []
    grey = image.mode in ("1", "L", "LA", "La")
    image = image.convert("LA" if grey else "RGBA")
    alpha = image.getchannel("A")
    if _extrema(alpha)[0] == 255:
        return image.convert("L" if grey else "RGB"), []
    red, green, blue = ImageColor.getrgb(background)[:3]
    if grey and red == green == blue:
        ground = Image.new("L", image.size, red)
    else:
        ground = Image.new("RGB", image.size, (red, green, blue))
    ground.paste(image.convert(ground.mode), mask=alpha)
    plain = all(len(set(_extrema(ground.getchannel(band)))) == 1 for band in ground.getbands())
    return ground, [PLAIN] if plain else []
