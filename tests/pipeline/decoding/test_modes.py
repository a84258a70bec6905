"""Every way in which a file carries its pixels: the right values, or a reason."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms
from projects import make_params, write_picture

from pipeline.base.errors import UserError
from pipeline.decoding.decode import FRAMES, Decoded, ImageOptions, UndecodableError, decode_image
from pipeline.decoding.modes import DARK, EXTRA, PLAIN
from pipeline.stages import download
from pipeline.store.dataset import Dataset, read_dataset

OPTIONS = ImageOptions("auto", None, None, 100, "white")

INK = np.array([[0, 10, 200], [255, 90, 30]], np.uint8)
ALPHA = np.array([[0, 255, 128], [255, 1, 254]], np.uint8)
COLOURS = np.dstack([INK, INK[::-1], np.roll(INK, 1)])


def file_of(image: Image.Image | NDArray[Any], kind: str = "PNG", **how: Any) -> bytes:
    content = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(content, kind, **how)
    return content.getvalue()


def decoded(content: bytes, **changes: Any) -> Decoded:
    return decode_image(content, OPTIONS._replace(**changes))


def pixels(content: bytes, **changes: Any) -> NDArray[np.int64]:
    return decoded(content, **changes).pixels.astype(np.int64)


def on(ground: tuple[int, ...], colours: NDArray[np.uint8], alpha: NDArray[np.uint8]) -> NDArray[np.int64]:
    """The usual formula, by hand: [C, H, W]."""
    colours = np.atleast_3d(colours)
    share = alpha[..., None] / 255
    return np.rint(share * colours + (1 - share) * np.array(ground)).astype(np.int64).transpose(2, 0, 1)


def refused(content: bytes, *expected: str) -> None:
    with pytest.raises(UndecodableError) as caught:
        decoded(content)
    assert all(part in str(caught.value) for part in expected), caught.value


def tiff(arrays: NDArray[Any], photometric: int, extra: int | None = None, kind: int = 1, order: str = "<") -> bytes:
    """An uncompressed TIFF, as the standard has it: [H, W, samples] of integers."""
    arrays = arrays if arrays.ndim == 3 else arrays[..., None]
    height, width, samples = arrays.shape
    data = arrays.astype(arrays.dtype.newbyteorder(order)).tobytes()
    bits = 8 * arrays.dtype.itemsize
    tags: dict[int, tuple[int, ...]] = {
        256: (width,), 257: (height,), 258: (bits,) * samples, 259: (1,), 262: (photometric,), 273: (0,),
        277: (samples,), 278: (height,), 279: (len(data),), 339: (kind,) * samples,
    }  # fmt: skip
    if extra is not None:
        tags[338] = (extra,)
    place = 8 + 2 + 12 * len(tags) + 4
    later = b""
    entries = b""
    for tag, values in sorted(tags.items()):
        long = tag in (273, 279)
        packed = struct.pack(order + ("I" if long else "H") * len(values), *values)
        if len(packed) > 4:
            packed, later = struct.pack(order + "I", place + len(later)), later + packed
        entries += struct.pack(order + "HHI", tag, 4 if long else 3, len(values)) + packed.ljust(4, b"\0")
    at = entries.index(struct.pack(order + "HHI", 273, 4, 1)) + 8
    entries = entries[:at] + struct.pack(order + "I", place + len(later)) + entries[at + 4 :]
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
    return head + struct.pack(order + "H", len(tags)) + entries + bytes(4) + later + data


def png(rows: NDArray[Any], depth: int, colour: int, **chunks: bytes) -> bytes:
    """A PNG as the standard has it: rows of packed bytes [H, n]."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    width = rows.shape[1] * 8 // (depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour])
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, len(rows), depth, colour, 0, 0, 0))
    others = b"".join(chunk(kind.encode(), content) for kind, content in chunks.items())
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    return b"\x89PNG\r\n\x1a\n" + head + others + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def wide(values: NDArray[Any]) -> NDArray[np.uint8]:
    """16 bits, as PNG orders them: rows of bytes."""
    return np.ascontiguousarray(values.astype(">u2")).view(np.uint8).reshape(len(values), -1)


# What is transparent

RGBA = np.dstack([COLOURS, ALPHA])
LA = np.dstack([INK, ALPHA])


def bmp(rgba: NDArray[np.uint8]) -> bytes:
    """With a mask for alpha, as its fifth version has it."""
    height, width, _ = rgba.shape
    masks = (0xFF << 16, 0xFF << 8, 0xFF, 0xFF << 24)
    data = np.ascontiguousarray(rgba[::-1, :, [2, 1, 0, 3]]).tobytes()
    head = struct.pack("<IiiHHIIiiII4I", 124, width, height, 1, 32, 3, len(data), 0, 0, 0, 0, *masks).ljust(124, b"\0")
    return b"BM" + struct.pack("<IHHI", 14 + len(head) + len(data), 0, 0, 14 + len(head)) + head + data


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "BMP"])
@pytest.mark.parametrize(("background", "ground"), [("white", (255,) * 3), ("#102030", (16, 32, 48))])
def test_colours_with_alpha_lie_on_the_ground(kind: str, background: str, ground: tuple[int, ...]) -> None:
    exact: dict[str, Any] = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    content = bmp(RGBA) if kind == "BMP" else file_of(RGBA, kind, **exact)
    found = pixels(content, background=background)
    assert np.array_equal(found, on(ground, COLOURS, ALPHA))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_grey_with_alpha_stays_grey_on_a_grey_ground_alone(kind: str) -> None:
    content = file_of(LA, kind)
    for background, ground in (("white", 255), ("black", 0), ("#808080", 128)):
        assert np.array_equal(pixels(content, background=background), on((ground,), INK, ALPHA))
    coloured = on((255, 0, 0), np.dstack([INK] * 3), ALPHA)
    assert np.array_equal(pixels(content, background="red"), coloured)
    as_grey = np.asarray(Image.fromarray(coloured.transpose(1, 2, 0).astype(np.uint8)).convert("L"))
    assert np.array_equal(pixels(content, background="red", channels=1)[0], as_grey)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("bits", [8, 16])
def test_alpha_that_is_multiplied_in_already(bits: int, order: str) -> None:
    """ExtraSamples 1. To the rounding of 8 bits, which it takes to divide and multiply again."""
    for colours in (COLOURS, INK[..., None]):
        dtype = np.uint8 if bits == 8 else np.uint16
        if bits == 16 and colours.shape[-1] == 1:
            continue  # Pillow has none
        greatest = (1 << bits) - 1
        alpha = ALPHA.astype(np.float64) / 255
        stored = np.dstack([np.rint(colours / 255 * alpha[..., None] * greatest), np.rint(alpha * greatest)])
        content = tiff(stored.astype(dtype), 2 if colours.shape[-1] == 3 else 1, extra=1, order=order)
        expected = on((255,), colours, ALPHA)
        assert np.abs(pixels(content) - expected).max() <= 1


@pytest.mark.parametrize("order", "<>")
def test_sixteen_bits_with_alpha(order: str) -> None:
    deep = RGBA.astype(np.uint16) * 257
    for content in (tiff(deep, 2, extra=2, order=order), png(wide(deep), 16, 6)):
        assert np.array_equal(pixels(content), on((255,), COLOURS, ALPHA))
    grey = pixels(png(wide(LA.astype(np.uint16) * 257), 16, 4))
    assert np.array_equal(grey, on((255,), INK, ALPHA))  # one channel


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_a_palette_with_a_transparent_entry(kind: str) -> None:
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8)).convert("P")
    image.putpalette([1, 2, 3, 40, 50, 60, 70, 80, 90])
    found = pixels(file_of(image, kind, transparency=1))
    assert found[:, 0].T.tolist() == [[1, 2, 3], [255, 255, 255], [70, 80, 90]]


def test_a_palette_with_transparent_entries() -> None:
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8)).convert("P")
    image.putpalette([1, 2, 3, 40, 50, 60, 70, 80, 90])
    found = pixels(file_of(image, transparency=b"\x00\x80"))
    assert found[:, 0].T.tolist() == [[255, 255, 255], [147, 152, 157], [70, 80, 90]]


def test_a_palette_and_alpha() -> None:
    image = Image.fromarray(INK).convert("PA")
    image.putalpha(Image.fromarray(ALPHA))
    assert image.mode == "PA"
    found = pixels(file_of(image, "TIFF"))
    assert np.array_equal(found, np.broadcast_to(on((255,), INK, ALPHA), found.shape))


@pytest.mark.parametrize(
    ("mode", "key", "ground"), [("L", 10, 255), ("RGB", tuple(int(v) for v in COLOURS[0, 1]), 255), ("1", 0, 255)]
)
def test_a_colour_that_stands_for_nothing(mode: str, key: Any, ground: int) -> None:
    if mode == "1":
        content = png(np.array([[0b10100000]], np.uint8), 1, 0, tRNS=b"\0\0")
        assert pixels(content)[0, 0].tolist() == [255] * 8
        content = png(np.array([[0b10100000]], np.uint8), 1, 0, tRNS=b"\0\1")
        assert pixels(content, background="black")[0, 0].tolist() == [0] * 8
        return
    values = INK if mode == "L" else COLOURS
    expected = values.copy()
    expected[0, 1] = ground
    found = pixels(file_of(values, transparency=key))
    assert np.array_equal(found, np.atleast_3d(expected).transpose(2, 0, 1))


@pytest.mark.parametrize("depth", [2, 4])
def test_such_a_colour_has_the_bits_of_the_file(depth: int) -> None:
    """Pillow compares it with what it has stretched to 8."""
    values = np.arange(1 << depth)
    packed = np.packbits(((values[:, None] >> np.arange(depth)[::-1]) & 1).astype(np.uint8).ravel())[None]
    key = (1 << depth) - 2
    found = pixels(png(packed, depth, 0, tRNS=struct.pack(">H", key)))[0, 0]
    expected = values * 255 // ((1 << depth) - 1)
    expected[key] = 255
    assert found.tolist() == expected.tolist()


def test_such_a_colour_of_sixteen_bits() -> None:
    values = np.array([[0x1000, 0x1001, 0xFFFF]])
    assert pixels(png(wide(values), 16, 0, tRNS=b"\x10\x01"))[0, 0].tolist() == [0x10, 0xFF, 0xFF]
    colours = np.dstack([values] * 3)
    refused(png(wide(colours), 16, 2, tRNS=b"\x10\x01" * 3), "16 bits is transparent", "save it with alpha")
    assert pixels(png(wide(colours), 16, 2))[1, 0].tolist() == [0x10, 0x10, 0xFF]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P", "L", "RGB"])
@pytest.mark.parametrize("channels", ["auto", 1, 3])
def test_what_is_opaque_keeps_its_bits(mode: str, channels: Any) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 8, 3), dtype=np.uint8)).convert(mode)
    kind = "TIFF" if mode == "PA" else "PNG"
    with Image.open(io.BytesIO(file_of(image, kind))) as opened:
        expected = opened.convert("L" if channels == 1 or (channels == "auto" and mode in ("L", "LA")) else "RGB")
    found = pixels(file_of(image, kind), channels=channels, background="red")
    assert np.array_equal(found, np.atleast_3d(np.asarray(expected)).transpose(2, 0, 1))


def test_transparency_is_composed_before_sizes_change() -> None:
    """Else what lies under transparent pixels bleeds."""
    image = np.zeros((2, 2, 4), np.uint8)
    image[0] = 255
    assert np.array_equal(pixels(file_of(image), resize=1, crop=1), np.full((3, 1, 1), 255))


@pytest.mark.parametrize(("ink", "alpha"), [(255, "some"), (0, "none")])
def test_what_vanishes_on_the_ground_is_said(ink: int, alpha: str) -> None:
    image = np.full((3, 3, 4), ink, np.uint8)
    image[..., 3] = 0
    if alpha == "some":
        image[1, :, 3] = 255
    assert decoded(file_of(image)).remarks == (PLAIN,)
    if alpha == "some":
        assert decoded(file_of(image), background="grey").remarks == ()


# Integers


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32, np.uint32])
def test_integers_of_no_known_range_are_refused(dtype: Any, order: str) -> None:
    signed = np.issubdtype(dtype, np.signedinteger)
    content = tiff(np.arange(12).reshape(3, 4).astype(dtype), 1, kind=2 if signed else 1, order=order)
    if dtype is np.uint32 and order == ">":
        refused(content, "a TIFF with pixels of a kind that Pillow does not know")
    else:
        refused(content, f"{'signed ' if signed else ''}numbers of {8 * np.dtype(dtype).itemsize} bits, of no known")


@pytest.mark.parametrize("dtype", [np.float32])
@pytest.mark.parametrize("photometric", [0, 1])
def test_floats_are_refused(dtype: Any, photometric: int) -> None:
    refused(tiff(np.linspace(0, 1, 6, dtype=dtype).reshape(2, 3), photometric, kind=3), "floating-point")


def test_grey_with_alpha_of_sixteen_bits_in_a_tiff_is_refused() -> None:
    refused(tiff(LA.astype(np.uint16) * 257, 1, extra=2), "a TIFF with pixels of a kind that Pillow does not know")


def test_pillow_s_own_integers_are_refused() -> None:
    refused(file_of(np.arange(6, dtype=np.int32).reshape(2, 3), "TIFF"), "signed numbers of 32 bits")


DEEP = np.array([[0, 255, 256], [4096, 0x8080, 0xFFFF]], np.uint16)


@pytest.mark.parametrize("content", [tiff(DEEP, 1), tiff(DEEP, 1, order=">"), png(wide(DEEP), 16, 0)])
def test_sixteen_bits_keep_the_upper_eight(content: bytes) -> None:
    assert pixels(content)[0].tolist() == (DEEP >> 8).tolist()


def test_sixteen_bits_of_which_zero_is_white() -> None:
    assert pixels(tiff(DEEP, 0))[0].tolist() == (255 - (DEEP >> 8)).tolist()
    assert pixels(tiff(INK, 0))[0].tolist() == (255 - INK).tolist()


@pytest.mark.parametrize("greatest", [255, 1023, 4095, 65535])
def test_a_pgm_says_its_range(greatest: int) -> None:
    values = np.array([0, greatest // 2, greatest])
    data = values.astype(np.uint8 if greatest < 256 else ">u2").tobytes()
    found = pixels(b"P5\n3 1\n%d\n" % greatest + data)[0, 0]
    assert np.abs(found - np.array([0, 127, 255])).max() <= 1


@pytest.mark.parametrize("greatest", [255, 4095, 4096])
def test_values_that_use_little_of_sixteen_bits_are_said(greatest: int) -> None:
    values = np.linspace(0, greatest, 12).reshape(3, 4).astype(np.uint16)
    said = (DARK,) if greatest < 4096 else ()
    colours = np.dstack([values] * 3)
    for content in (tiff(values, 1), png(wide(values), 16, 0), tiff(colours, 2), png(wide(colours), 16, 2)):
        assert decoded(content).remarks == said
    assert decoded(tiff(np.zeros((2, 2), np.uint16), 1)).remarks == ()  # black, whatever the range
    assert decoded(file_of(np.zeros((2, 2), np.uint8))).remarks == ()


# Other modes


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP"])
def test_one_bit_is_black_and_white(kind: str) -> None:
    bits = np.array([[True, False, True]])
    assert pixels(file_of(Image.fromarray(bits), kind))[0].tolist() == [[255, 0, 255]]


def test_inks_of_a_print() -> None:
    """A JPEG of Adobe's holds them inverted, a TIFF does not: no ink is white, black is black."""
    inks = np.zeros((16, 16, 4), np.uint8)
    inks[:, 8:, 3] = 255
    for kind in ("JPEG", "TIFF"):
        found = pixels(file_of(Image.fromarray(inks, "CMYK"), kind))
        assert (found[:, :, :7] > 250).all()
        assert (found[:, :, 9:] < 5).all()
    cyan = np.zeros((8, 8, 4), np.uint8)
    cyan[..., 0] = 255
    assert np.abs(pixels(file_of(Image.fromarray(cyan, "CMYK"), "TIFF"))[:, 0, 0] - [0, 255, 255]).max() <= 1


def test_brightness_and_two_colour_differences() -> None:
    image = Image.fromarray(COLOURS)
    found = pixels(file_of(image.convert("YCbCr"), "TIFF"))
    assert np.abs(found - COLOURS.transpose(2, 0, 1)).max() <= 2
    grey = pixels(file_of(image.convert("YCbCr"), "TIFF"), channels=1)[0]
    assert np.abs(grey - np.asarray(image.convert("L"))).max() <= 1


def test_lab() -> None:
    colours = np.array([[[255, 255, 255], [0, 0, 0], [200, 40, 60], [20, 120, 200]]], np.uint8)
    profiles = [ImageCms.createProfile(name) for name in ("sRGB", "LAB")]
    lab = ImageCms.applyTransform(Image.fromarray(colours), ImageCms.buildTransform(*profiles, "RGB", "LAB"))
    assert lab is not None
    content = file_of(lab, "TIFF")
    assert np.abs(pixels(content) - colours.transpose(2, 0, 1)).max() <= 12  # a step of a or b is that much
    grey = np.asarray(Image.fromarray(colours).convert("L"))
    assert np.abs(pixels(content, channels=1)[0] - grey).max() <= 4


def test_a_channel_of_no_known_meaning_is_said() -> None:
    for colours, photometric in ((RGBA, 2), (LA, 1)):
        found = decoded(tiff(colours, photometric, extra=0))
        assert found.remarks == (EXTRA,)
        assert np.array_equal(found.pixels, colours[..., :-1].transpose(2, 0, 1))


def test_a_bmp_that_cannot_say_what_its_last_eight_bits_are() -> None:
    content = file_of(RGBA, "BMP")  # as Pillow writes it
    found = decoded(content)
    assert found.remarks == (EXTRA,)
    assert np.array_equal(found.pixels, COLOURS.transpose(2, 0, 1))
    for same in (0, 255):
        assert decoded(file_of(np.dstack([COLOURS, np.full_like(ALPHA, same)]), "BMP")).remarks == ()
    assert decoded(file_of(COLOURS, "BMP")).remarks == ()


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize(("orientation", "turns"), [(1, 0), (3, 2), (6, -1)])
def test_all_of_them_are_turned_as_the_camera_was_held(kind: str, orientation: int, turns: int) -> None:
    how: dict[str, Any] = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    block = Image.Exif()
    block[0x0112] = orientation
    for image in (COLOURS, RGBA, *([DEEP] if kind != "WEBP" else [])):
        stored = pixels(file_of(image, kind, **how))
        assert np.array_equal(pixels(file_of(image, kind, exif=block, **how)), np.rot90(stored, turns, axes=(1, 2)))


# Frames and pages


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_of_several_frames_is_taken_and_it_is_said(kind: str) -> None:
    frames = [Image.new("RGB", (4, 3), colour) for colour in ("red", "lime", "blue")]
    exact: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
    for count, said in ((1, ()), (3, (FRAMES,))):
        content = file_of(frames[0], kind, save_all=True, append_images=frames[1:count], **exact)
        found = decoded(content)
        assert found.pixels[:, 1, 1].tolist() == [255, 0, 0]
        assert found.remarks == said


@pytest.mark.parametrize("grey", [False, True])
def test_what_a_frame_leaves_bare_of_its_canvas_is_transparent(grey: bool) -> None:
    image = Image.fromarray(np.array([[0, 1], [1, 0]], np.uint8))
    if not grey:
        image = image.convert("P")
        image.putpalette([200, 0, 0, 0, 200, 0])
    content = bytearray(file_of(image, "GIF"))
    at = content.index(b"\x2c")
    content[6:10] = struct.pack("<HH", 4, 3)
    content[at + 1 : at + 5] = struct.pack("<HH", 1, 1)
    found = pixels(bytes(content), background="#0000ff")
    expected = np.broadcast_to(np.array([0, 0, 255])[:, None, None], (3, 3, 4)).copy()
    expected[:, 1:, 1:3] = pixels(file_of(image, "GIF"))
    assert np.array_equal(found, expected)


def test_a_later_frame_that_is_damaged_spoils_nothing() -> None:
    frames = [Image.fromarray(np.full((4, 3), i, np.uint8)).convert("P") for i in (5, 90)]
    content = file_of(frames[0], "GIF", save_all=True, append_images=frames[1:])
    second = content.index(b"\x2c", content.index(b"\x2c") + 10)
    for end in (second + 3, second + 10, second + 12):
        assert decoded(content[:end]).pixels[0].tolist() == [[5] * 3] * 4


def test_a_camera_s_second_picture_is_its_own_affair() -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "lime")]
    found = decoded(file_of(frames[0], "MPO", save_all=True, append_images=frames[1:]))
    assert found.remarks == ()
    assert found.pixels[0].min() > 250


# What is said of a whole data set


@pytest.mark.parametrize("storage", ["memory", "files"])
def test_remarks_are_counted_and_named_once_a_kind(
    storage: str, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = project / "own/train"
    for i in range(7):
        for label in ("cat", "dog"):
            write_picture(root / label / f"{i}.png", i + 10 * (label == "dog"))
        frames = [Image.new("RGB", (6, 5), (i * 9 + 9, 0, 0)), Image.new("RGB", (6, 5), "blue")]
        (root / f"cat/{i}.gif").write_bytes(file_of(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    (root / "dog/9.tif").write_bytes(tiff(np.full((5, 6), 200, np.uint16), 1))
    own(storage)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    names = "; ".join(f"train/cat/{i}.gif" for i in range(5))
    assert f"warning: data.root: 7 of 22 images {FRAMES}: {names}; and 2 more" in said
    assert f"warning: data.root: 1 of 22 images {DARK}: train/dog/9.tif" in said


def own(storage: str = "memory", **changes: Any) -> Dataset:
    keys = {"data__source": "imagefolder", "data__root": "own", "data__limit": None, "run__workers": 0}
    download.run(make_params(**keys, data__storage=storage, **changes))
    return read_dataset("own")


@pytest.mark.parametrize("storage", ["memory", "files"])
def test_the_ground_is_a_parameter(storage: str, project: Path) -> None:
    for i, label in enumerate(("cat", "dog")):
        (project / f"own/train/{label}").mkdir(parents=True)
        (project / f"own/train/{label}/1.png").write_bytes(file_of(np.roll(RGBA, i, axis=0)))
    images = own(storage, data__background="navy").images
    assert np.array_equal(images[0], on((0, 0, 128), COLOURS, ALPHA))


@pytest.mark.parametrize("colour", ["whiteish", "#ffffff80", "", "255"])
def test_a_ground_that_is_no_colour_is_refused(colour: str) -> None:
    with pytest.raises(UserError, match=rf"data\.background: found '{colour}'; expected an opaque colour, such as"):
        make_params(data__background=colour)
