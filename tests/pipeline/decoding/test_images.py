"""Images that are damaged, lie about themselves, or take too much memory."""

from __future__ import annotations

import io
import shutil
import struct
import subprocess
import sys
import tracemalloc
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from projects import ROOT, make_params, write_picture

from pipeline.base.errors import UserError
from pipeline.decoding.decode import ImageOptions, decode_listed
from pipeline.sources.labelled_files import to_dataset
from pipeline.stages import download
from pipeline.store.dataset import Dataset, read_dataset

AS_THEY_ARE = ImageOptions("auto", None, None, 100, "white")


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def lying_png(width: int, height: int) -> bytes:
    """A header that says so, and pixels of one row."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(100))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def lying(kind: str, width: int, height: int) -> bytes:
    """A small image whose header says another size."""
    if kind == "PNG":
        return lying_png(width, height)
    content = io.BytesIO()
    Image.new("RGB", (3, 2)).save(content, kind)
    data = bytearray(content.getvalue())
    if kind == "JPEG":
        at = data.index(b"\xff\xc0") + 5
        data[at : at + 4] = struct.pack(">HH", height, width)
    elif kind == "GIF":
        data[6:10] = struct.pack("<HH", width, height)
        at = data.index(b"\x2c") + 5
        data[at : at + 4] = struct.pack("<HH", width, height)
    elif kind == "BMP":
        data[18:26] = struct.pack("<ii", width, height)
    elif kind == "TIFF":
        for tag, value in ((256, width), (257, height), (278, height)):
            at = data.index(struct.pack("<H", tag), 8)
            data[at + 2 : at + 12] = struct.pack("<HII", 4, 1, value)
    elif kind == "PPM":
        data = bytearray(b"P6\n%d %d\n255\nxxx" % (width, height))
    return bytes(data)


KINDS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "PPM")


def tree(root: Path, count: int = 2) -> Path:
    """Good images of two classes."""
    for i in range(2 * count):
        write_picture(root / "train" / ("cat", "dog")[i % 2] / f"{i}.png", i)
    return root


def loaded(root: Path, **data: Any) -> Dataset:
    changes = {"data__limit": None, **{f"data__{key}": value for key, value in data.items()}}
    download.run(make_params(data__source="imagefolder", data__root=str(root), **changes))
    return read_dataset()


def refused(root: Path, *expected: str, **data: Any) -> None:
    with pytest.raises(UserError) as caught:
        loaded(root, **data)
    assert all(part in str(caught.value) for part in expected), caught.value
    assert "\n" not in str(caught.value)
    assert not Path("data/dataset.h5").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_that_is_too_large_by_its_header_is_named(kind: str, project: Path) -> None:
    root = tree(project / "own")
    (root / "train/cat/large.png").write_bytes(lying(kind, 60_000, 60_000))
    refused(root, "1 of 5 images do not decode", "large.png (60000×60000 pixels, more than data.max_image")


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_whose_header_lies_within_the_limit_is_named(kind: str, project: Path) -> None:
    root = tree(project / "own")
    (root / "train/cat/lies.png").write_bytes(lying(kind, 700, 900))
    if kind == "JPEG":  # the rest of it is grey, as in a browser
        refused(root, "data.resize", "700×900")
    else:
        refused(root, "1 of 5 images do not decode", "lies.png (")


@pytest.mark.parametrize(("most", "good"), [(0.0063, True), (0.00629, False), (2000, True)])
def test_the_limit_is_on_the_pixels_of_an_image(most: float, good: bool, project: Path) -> None:
    root = project / "own"
    for label in ("cat", "dog"):
        write_picture(root / "train" / label / "1.png", 0, size=(90, 70))
    if good:
        assert loaded(root, max_image_mpixels=most).images.shape == (2, 3, 70, 90)
    else:
        refused(root, "2 of 2 images do not decode", "90×70 pixels", max_image_mpixels=most)


def test_our_limit_stands_in_place_of_pillows(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow's would warn, and above twice its number refuse."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert len(loaded(tree(project / "own")).images) == 4
    assert Image.MAX_IMAGE_PIXELS == 10


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x89PNG\r\n\x1a\n",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        b"GIF89a" + b"\xff" * 50,
        b"II*\0" + b"\xff" * 50,
        b"RIFF\xff\xff\xff\xffWEBPVP8 " + b"\xff" * 50,
        b"\xff\xd8\xff\xe1\xff\xffExif\0\0" + b"\xff" * 80,
        bytes(20 << 20),
    ],
    ids=["empty", "signature", "eps", "gif", "tiff", "webp", "jpeg", "zeros"],
)
def test_files_that_are_no_images_are_named(content: bytes, project: Path) -> None:
    root = tree(project / "own")
    (root / "train/dog/bad.png").write_bytes(content)
    refused(root, "data.root: 1 of 5 images do not decode: train/dog/bad.png (", max_image_mpixels=0.1)
    assert len(loaded(root, on_bad_image="skip", max_image_mpixels=0.1).names) == 4


def test_no_format_is_read_that_runs_other_programs(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tree(project / "own")
    content = io.BytesIO()
    Image.new("RGB", (6, 5)).save(content, "EPS")
    (root / "train/cat/bad.png").write_bytes(content.getvalue())
    monkeypatch.setattr(subprocess, "check_call", lambda *_, **__: pytest.fail("Ghostscript was started"))
    refused(root, "bad.png (of no known image format)")


DECODE = """
import resource, sys
from pathlib import Path
from pipeline.decoding.decode import ImageOptions
from pipeline.sources.labelled_files.to_dataset import decode_images
items = [(name, Path(name).read_bytes()) for name in sys.argv[1:]]
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
images, bad = decode_images(items, sys.argv[1:], ImageOptions("auto", None, None, 100, "white"))
print(len(images), len(bad), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(sys.platform == "darwin", reason="ru_maxrss has another unit")
def test_headers_that_lie_take_no_memory(tmp_path: Path) -> None:
    """60,000 × 60,000 pixels would be 10 GiB."""
    paths = []
    for kind in KINDS:
        paths.append(tmp_path / f"{kind}.png")
        paths[-1].write_bytes(lying(kind, 60_000, 60_000))
    done = subprocess.run(
        [sys.executable, "-c", DECODE, *map(str, paths)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    images, bad, kibibytes = map(int, done.stdout.split())
    assert (images, bad) == (0, len(KINDS))
    assert kibibytes < 30_000


def test_sizes_are_compared_as_images_come(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not after all of them, in memory and of any size."""
    root = tree(project / "own", count=9)
    write_picture(root / "train/cat/10.png", 0, size=(9, 7))
    decoded = []
    monkeypatch.setattr(to_dataset, "decode_listed", lambda *given: decoded.append(0) or decode_listed(*given))
    refused(root, "data.resize", "train/cat/0.png is 6×5, train/cat/10.png is 9×7")
    assert len(decoded) == 2


def test_images_that_no_memory_holds_are_refused_before_it_is_taken(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tree(project / "own")
    write_picture(root / "train/cat/-1.png", 0, mode="L")  # the first: fits, until the second is in colour
    free = SimpleNamespace(available=4 * 6 * 5 * 3)
    monkeypatch.setattr(to_dataset.psutil, "virtual_memory", lambda: free)
    refused(root, "data.storage: found memory, but 5 images of 6×5×3 need 0.0 GiB, and", "data.resize", "files")
    free.available = 5 * 6 * 5 * 3
    assert len(loaded(root).images) == 5


def test_images_are_in_memory_once(tmp_path: Path) -> None:
    write_picture(tmp_path / "1.png", 0, size=(64, 64))
    content = (tmp_path / "1.png").read_bytes()
    names = [f"{i}.png" for i in range(200)]
    to_dataset.decode_images([("0.png", content)], names[:1], AS_THEY_ARE)  # what is imported on the way
    tracemalloc.start()
    try:
        images, _ = to_dataset.decode_images(((name, content) for name in names), names, AS_THEY_ARE)
        assert tracemalloc.get_traced_memory()[1] < 1.2 * images.nbytes
    finally:
        tracemalloc.stop()


def test_images_keep_their_order_whatever_comes_first(tmp_path: Path) -> None:
    """Grey ones before colour, bad ones between, some wanted twice."""
    items, pixels = [], {}
    for i, (name, mode) in enumerate([("c", "L"), ("a", "RGB"), ("d", "L")]):
        image = write_picture(tmp_path / f"{name}.png", i, mode=mode)
        items.append((name, (tmp_path / f"{name}.png").read_bytes()))
        pixels[name] = np.broadcast_to(np.atleast_3d(np.asarray(image)).transpose(2, 0, 1), (3, 5, 6))
    names = ["a", "bad", "c", "a", "bad", "d", "c"]
    images, bad = to_dataset.decode_images([*items[:2], ("bad", b""), items[2]], names, AS_THEY_ARE)
    assert list(bad) == ["bad"]
    assert np.array_equal(images, np.stack([pixels[name] for name in "acadc"]))
    with pytest.raises(UserError, match="1 listed files are missing: e"):
        to_dataset.decode_images(items[1:2], ["a", "e"], AS_THEY_ARE)


# data.on_bad_image


def spoil(root: Path, *names: str) -> None:
    for name in names:
        (root / name).write_bytes(b"no image")


def tiled_tiff(side: int, tile: int) -> bytes:
    """A grey image of one tile."""
    data = zlib.compress(bytes(tile * tile))
    tags = {256: side, 257: side, 258: 8, 259: 8, 262: 1, 277: 1, 322: tile, 323: tile, 325: len(data)}
    tags[324] = 8 + 2 + 12 * (len(tags) + 1) + 4  # after header and directory
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items()))
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + data


@pytest.mark.parametrize(("most", "good"), [(0.0125, False), (0.0126, True)])
def test_a_tile_larger_than_the_image_counts(most: float, good: bool, project: Path) -> None:
    """It is unpacked whole, however small the image."""
    root = project / "own"
    for label in ("cat", "dog"):
        write_picture(root / "train" / label / "1.png", 0, size=(16, 16))
    (root / "train/cat/tiles.tiff").write_bytes(tiled_tiff(16, 112))
    if good:
        assert len(loaded(root, max_image_mpixels=most).names) == 3
    else:
        refused(root, "tiles.tiff (tiles of more pixels than data.max_image_mpixels, 0.0125)", max_image_mpixels=most)


@pytest.mark.parametrize("on_bad_image", ["error", "skip"])
def test_too_little_memory_says_nothing_about_an_image(
    on_bad_image: str, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(*_: object) -> None:
        raise MemoryError

    root = tree(project / "own")
    monkeypatch.setattr(Image.Image, "convert", no_memory)
    with pytest.raises(MemoryError):
        loaded(root, on_bad_image=on_bad_image, channels=1)


def test_numbers_that_no_table_holds_are_names(project: Path) -> None:
    root = project / "own"
    for i, stem in enumerate(["7", "10000000000000000007", "1" * 200]):
        for label in ("cat", "dog"):
            write_picture(root / "train" / label / f"{stem[:-1]}{i + (label == 'dog') * 3}.png", i)
    assert loaded(root).source_index.tolist() == list(range(6))


def test_names_send_no_commands_to_the_terminal(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tree(project / "own")
    (root / "train/cat/\x1b]0;owned\x07\x1b[2Jz.png").write_bytes(b"no image")
    capsys.readouterr()
    loaded(root, on_bad_image="skip")
    said = capsys.readouterr().err
    assert "\\x1b]0;owned\\x07\\x1b[2Jz.png (of no known image format)" in said
    assert "\x1b" not in said


def test_a_path_longer_than_any_file_has(project: Path) -> None:
    tree(project / "own")
    path = project / "own/labels.csv"
    path.write_text("path,label\n" + "a" * 300 + ".png,cat\n", encoding="utf-8")
    with pytest.raises(UserError, match="line 2: no such file: aaaa"):
        loaded(path)


def test_bad_images_are_left_out_with_one_warning(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tree(project / "own", count=9)
    whole = loaded(root)
    bad = [f"train/{label}/{i + j}.png" for j, label in enumerate(("cat", "dog")) for i in range(0, 8, 2)]
    spoil(root, *bad)
    capsys.readouterr()
    dataset = loaded(root, on_bad_image="skip")
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert said[0].startswith(
        "warning: data.root: 8 of 18 images do not decode: train/cat/0.png (of no known image format)"
    )
    assert said[0].endswith("; and 3 more; left out, as data.on_bad_image says")
    assert said[0].count("of no known image format") == 5
    rows = [i for i, name in enumerate(whole.names) if name not in bad]
    assert dataset.names == [whole.names[i] for i in rows]
    for key in ("images", "labels", "split", "source_index"):
        assert np.array_equal(getattr(dataset, key), getattr(whole, key)[rows]), key
    refused_root = shutil.copytree(root, project / "again")
    with pytest.raises(UserError, match=r"8 of 18 images do not decode: .*data\.on_bad_image: skip"):
        loaded(refused_root)


@pytest.mark.parametrize("bad", [["train/cat/0.png"], ["train/cat/0.png", "train/dog/1.png"]])
def test_a_class_must_keep_a_training_image(bad: list[str], project: Path) -> None:
    root = tree(project / "own", count=1)
    write_picture(root / "test" / "cat" / "0.png", 0)
    spoil(root, *bad)
    lost = "cat; dog" if len(bad) == 2 else "cat"
    refused(root, "data.on_bad_image", f"leaves no training image of {lost}", *bad, on_bad_image="skip")


def test_images_of_other_sizes_are_not_bad_ones(project: Path) -> None:
    root = tree(project / "own")
    write_picture(root / "train/dog/odd.png", 0, size=(9, 7))
    refused(root, "data.resize", "train/dog/odd.png is 9×7", on_bad_image="skip")


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_images_are_resized_as_data_interpolation_says(interpolation: str, project: Path) -> None:
    root = project / "images"
    for i, label in enumerate("ab"):
        image = write_picture(root / label / f"{i}.png", i, size=(30, 20))
    download.run(
        make_params(data__source="imagefolder", data__root=str(root), data__resize=9, data__interpolation=interpolation)
    )
    expected = np.asarray(image.resize((9, 9), Image.Resampling[interpolation.upper()])).transpose(2, 0, 1)
    assert np.array_equal(read_dataset().images[1], expected)
