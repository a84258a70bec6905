"""Images, batches and lists that are damaged, or made to do harm."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import shutil
import struct
import subprocess
import sys
import tarfile
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from projects import ROOT, make_params, write_picture

from pipeline.errors import UserError
from pipeline.images.decode import ImageOptions, decode_image
from pipeline.sources import cifar10, clothing1m, listing
from pipeline.sources.archives import GIB
from pipeline.sources.listing import FileOptions
from pipeline.stages import download
from pipeline.store.dataset import Dataset, read_dataset

# Images


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
from pipeline.sources.decode import ImageOptions
from pipeline.sources.listing import decode_images
items = [(name, Path(name).read_bytes()) for name in sys.argv[1:]]
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
images, bad = decode_images(items, sys.argv[1:], ImageOptions("auto", None, None, 100))
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
    monkeypatch.setattr(listing, "decode_image", lambda *given: decoded.append(0) or decode_image(*given))
    refused(root, "data.resize", "train/cat/0.png is 6×5, train/cat/10.png is 9×7")
    assert len(decoded) == 2


def test_images_that_no_memory_holds_are_refused_before_it_is_taken(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tree(project / "own")
    write_picture(root / "train/cat/-1.png", 0, mode="L")  # the first: fits, until the second is in colour
    free = SimpleNamespace(available=4 * 6 * 5 * 3)
    monkeypatch.setattr(listing.psutil, "virtual_memory", lambda: free)
    refused(root, "data.storage: found memory, but 5 images of 6×5×3 need 0.0 GiB, and", "data.resize", "files")
    free.available = 5 * 6 * 5 * 3
    assert len(loaded(root).images) == 5


def test_images_are_in_memory_once(tmp_path: Path) -> None:
    write_picture(tmp_path / "1.png", 0, size=(64, 64))
    content = (tmp_path / "1.png").read_bytes()
    names = [f"{i}.png" for i in range(200)]
    listing.decode_images([("0.png", content)], names[:1], AS_THEY_ARE.image)  # what is imported on the way
    tracemalloc.start()
    try:
        images, _ = listing.decode_images(((name, content) for name in names), names, AS_THEY_ARE.image)
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
    images, bad = listing.decode_images([*items[:2], ("bad", b""), items[2]], names, AS_THEY_ARE.image)
    assert list(bad) == ["bad"]
    assert np.array_equal(images, np.stack([pixels[name] for name in "acadc"]))
    with pytest.raises(UserError, match="1 listed files are missing: e"):
        listing.decode_images(items[1:2], ["a", "e"], AS_THEY_ARE.image)


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


# CIFAR-10


@pytest.fixture
def cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Makes a folder with torchvision's archive, its batches as given or good ones, and MD5 sums to match."""
    from torchvision.datasets import CIFAR10

    def make(**batches: object) -> Path:
        root = tmp_path / "root"
        inner = tmp_path / "made" / CIFAR10.base_folder
        inner.mkdir(parents=True)
        root.mkdir()
        sums = []
        names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch", "batches.meta"]
        for number, name in enumerate(names):
            data = np.random.default_rng(number).integers(0, 256, (4, 3072)).astype(np.uint8)
            good = {"data": data, "labels": [(4 * number + i) % 10 for i in range(4)], "batch_label": name}
            if name == "batches.meta":
                good = {"label_names": [f"class {i}" for i in range(10)], "num_vis": 3072}
            content = pickle.dumps(batches.get(name.replace(".", "_"), good), 2)
            (inner / name).write_bytes(content)
            sums.append([name, hashlib.md5(content).hexdigest()])  # noqa: S324
        with tarfile.open(root / CIFAR10.filename, "w:gz") as archive:
            archive.add(inner, inner.name)
        content = (root / CIFAR10.filename).read_bytes()
        monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5(content).hexdigest())  # noqa: S324
        monkeypatch.setattr(CIFAR10, "train_list", sums[:5])
        monkeypatch.setattr(CIFAR10, "test_list", sums[5:6])
        monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": sums[6][1]})
        monkeypatch.setattr(CIFAR10, "url", "file:///nosuch/cifar-10-python.tar.gz")
        return root

    return make


def test_cifar10_is_what_torchvision_reads(cifar: Callable[..., Path]) -> None:
    from torchvision.datasets import CIFAR10

    root = cifar()
    dataset = cifar10.load(root, None, GIB)
    assert [path.name for path in root.iterdir()] == [CIFAR10.filename]  # nothing was extracted
    with tarfile.open(root / CIFAR10.filename) as archive:
        archive.extractall(root, filter="data")
    parts = [CIFAR10(str(root), train=train) for train in (True, False)]
    assert np.array_equal(dataset.images.transpose(0, 2, 3, 1), np.concatenate([part.data for part in parts]))
    assert dataset.labels.tolist() == [label for part in parts for label in part.targets]
    assert dataset.class_names == parts[0].classes
    assert dataset.split.tolist() == [0] * 20 + [2] * 4
    assert dataset.names[19:21] == ["train/19", "test/0"]
    (root / CIFAR10.filename).unlink()
    again = cifar10.load(root, None, GIB)  # from the folder
    assert np.array_equal(again.images, dataset.images)
    assert again.labels.tolist() == dataset.labels.tolist()


class Attack:
    def __init__(self, marker: Path) -> None:
        self.call = (os.system, (f"touch {marker}",))

    def __reduce__(self) -> Any:
        return self.call


DATA = np.zeros((2, 3072), dtype=np.uint8)


@pytest.mark.parametrize(
    ("batches", "expected"),
    [
        ({"data_batch_3": {"data": DATA, "labels": [0, 10]}}, "data_batch_3: expected a list of numbers"),
        ({"data_batch_3": {"data": DATA, "labels": [0, "1"]}}, "expected a list of numbers from 0 to 9"),
        ({"data_batch_3": {"data": DATA, "labels": [0]}}, "found 1 labels for 2 images"),
        ({"data_batch_3": {"data": DATA}}, "in 'labels', found NoneType"),
        ({"data_batch_3": {"data": DATA[:, :9], "labels": [0, 0]}}, "in 'data', found uint8 [2, 9]"),
        ({"test_batch": {"data": DATA.astype(np.int64), "labels": [0, 0]}}, "test_batch: expected uint8"),
        ({"test_batch": {"data": [1, 2], "labels": [0, 0]}}, "in 'data', found list"),
        ({"test_batch": {"data": DATA, "labels": [0, 0], "x": {1}}}, "test_batch is no batch of CIFAR-10: it holds a"),
        ({"test_batch": [1]}, "expected a dict of arrays, found list"),
        ({"batches_meta": {"label_names": [1, 2]}}, "expected a list of names in 'label_names'"),
        ({"batches_meta": {}}, "expected a list of names in 'label_names'"),
    ],
)
def test_other_batches_are_refused(cifar: Callable[..., Path], batches: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError) as caught:
        cifar10.load(cifar(**batches), None, GIB)
    assert str(caught.value).startswith("data.root: ")
    assert expected in str(caught.value)


@pytest.mark.parametrize("name", ["data_batch_1", "test_batch", "batches_meta"])
def test_code_in_a_batch_never_runs(name: str, cifar: Callable[..., Path], tmp_path: Path) -> None:
    root = cifar(**{name: {"data": Attack(tmp_path / "marker")}})
    with pytest.raises(UserError, match=r"is no batch of CIFAR-10: it holds a posix\.system, expected arrays"):
        cifar10.load(root, None, GIB)
    assert not (tmp_path / "marker").exists()


# Clothing1M's lists

AS_THEY_ARE = FileOptions(ImageOptions("auto", None, None, 100), "error", GIB, None, None, "memory", 0)


@pytest.fixture
def clothing(tmp_path: Path) -> Path:
    """A small copy in the owners' layout: an image a class and list."""
    lists: dict[str, list[str]] = {"noisy_train": [], "clean_val": [], "clean_test": []}
    labels: dict[str, list[str]] = {"noisy": [], "clean": []}
    for number, name in enumerate(name for name in lists for _ in range(14)):
        key = f"images/{number}.png"
        write_picture(tmp_path / key, number)
        lists[name].append(key)
        labels[name.partition("_")[0]].append(f"{key} {number % 14}")
    for name, keys in lists.items():
        (tmp_path / f"{name}_key_list.txt").write_text("\n".join(keys), encoding="utf-8")
    for name, lines in labels.items():
        (tmp_path / f"{name}_label_kv.txt").write_text("\n".join(lines), encoding="utf-8")
    return tmp_path


def append(path: Path, *lines: str) -> None:
    path.write_text("\n".join([path.read_text(encoding="utf-8"), *lines]), encoding="utf-8")


def remove(root: Path, *names: str) -> None:
    for name in names:
        (root / name).unlink()


TRAIN_KEYS, NOISY = "noisy_train_key_list.txt", "noisy_label_kv.txt"


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (
            lambda root: remove(root, "clean_val_key_list.txt", NOISY),
            "no such file: clean_val_key_list.txt, noisy_label_kv.txt; expected",
        ),
        (
            lambda root: append(root / TRAIN_KEYS, *(f"images/x{i}.png" for i in range(7))),
            f"{TRAIN_KEYS}: 7 keys have no label in {NOISY}: images/x0.png; images/x1.png; images/x2.png; "
            "images/x3.png; images/x4.png; and 2 more",
        ),
        (
            lambda root: remove(root, *(f"images/{i}.png" for i in range(6))),
            "6 of 42 listed files are missing: images/0.png; images/1.png; images/2.png; images/3.png; images/4.png; "
            "and 1 more",
        ),
        (lambda root: append(root / NOISY, "images/0.png"), f"{NOISY}: found 29 words, expected pairs"),
        (
            lambda root: append(root / NOISY, "images/0.png 1", "images/1.png 1", "images/0.png 2"),
            f"{NOISY}: 1 keys have more than one label: images/0.png",
        ),
        *(
            (
                lambda root, key=key: (append(root / TRAIN_KEYS, key), append(root / NOISY, f"{key} 1")),
                f"{TRAIN_KEYS}: 1 keys point outside of data.root: {key}",
            )
            for key in ("../../etc/passwd", "/etc/passwd", "images/../../x.png", "C:/x.png", r"..\x.png")
        ),
        (lambda root: (root / NOISY).write_bytes("größe.png 1".encode("latin-1")), f"{NOISY}: not readable as text"),
        (lambda root: (root / TRAIN_KEYS).write_bytes(b"\xff\xfei\0"), f"{TRAIN_KEYS}: not readable as text"),
        (lambda root: append(root / NOISY, "images/x.png ²"), "found label '²' of images/x.png"),
        (lambda root: append(root / NOISY, "images/x.png " + "9" * 5000), "of images/x.png, expected 0 to 13"),
        (lambda root: (root / TRAIN_KEYS).write_text(""), "expected training images of two or more classes"),
    ],
)
def test_damaged_lists_of_clothing1m(damage: Callable[[Path], object], expected: str, clothing: Path) -> None:
    assert len(clothing1m.load(clothing, AS_THEY_ARE).names) == 42
    damage(clothing)
    with pytest.raises(UserError) as caught:
        clothing1m.load(clothing, AS_THEY_ARE)
    assert str(caught.value).startswith("data.root: ")
    assert expected in str(caught.value)


def test_a_label_that_is_given_twice_is_no_contradiction(clothing: Path) -> None:
    append(clothing / NOISY, "images/0.png 0")
    assert len(clothing1m.load(clothing, AS_THEY_ARE).names) == 42


def test_keys_that_are_listed_twice_are_counted_and_named(clothing: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clothing1m.load(clothing, AS_THEY_ARE)
    assert capsys.readouterr().err == ""
    append(clothing / TRAIN_KEYS, "images/0.png")
    append(clothing / "clean_test_key_list.txt", "images/14.png")
    assert len(clothing1m.load(clothing, AS_THEY_ARE).names) == 44
    assert "2 keys are listed more than once: images/0.png; images/14.png; " in capsys.readouterr().err
