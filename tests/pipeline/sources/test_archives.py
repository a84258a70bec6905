"""Archives become folders: what may be in them, and what is refused before it does harm."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from projects import digests, make_params, write_picture

from pipeline.base import console
from pipeline.base.errors import RunError, UserError
from pipeline.base.files import GIB, MIB
from pipeline.sources.places.archive import unpack
from pipeline.stages import download
from pipeline.store.dataset import read_dataset

GOOD = ("train/cat/1.png", "train/dog/1.png")
SUFFIXES = (".zip", ".tar.gz")


def png() -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (4, 4)).save(content, "PNG")
    return content.getvalue()


def write_archive(path: Path, names: tuple[str, ...], *special: tarfile.TarInfo | zipfile.ZipInfo) -> Path:
    """Good pictures under these names, then members as they are."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for member in (*map(zipfile.ZipInfo, names), *special):
                assert isinstance(member, zipfile.ZipInfo)
                archive.writestr(member, png())
    else:
        with tarfile.open(path, "w:gz") as tar:
            for name in names:
                info = tarfile.TarInfo(name)
                info.size = len(png())
                tar.addfile(info, io.BytesIO(png()))
            for member in special:
                assert isinstance(member, tarfile.TarInfo)
                tar.addfile(member)
    return path


def tar_member(name: str, kind: bytes, target: str = "", size: int = 0) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, target, size
    return info


def zip_member(name: str, kind: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, (kind | 0o644) << 16
    return info


def loaded(root: Path, **data: Any) -> list[str]:
    """The names in the data set that the stage makes of `root`."""
    changes = {"data__limit": None, **{f"data__{key}": value for key, value in data.items()}}
    download.run(make_params(data__source="imagefolder", data__root=str(root), **changes))
    return list(read_dataset().names)


def refused(root: Path, *expected: str, **data: Any) -> None:
    """One line that says all of this; and nothing but `root` is in the folders around."""
    before = digests(Path.cwd().parent)
    with pytest.raises(UserError) as caught:
        loaded(root, **data)
    message = str(caught.value)
    assert all(part in message for part in (root.name, *expected)), message
    assert message.isprintable()
    assert digests(Path.cwd().parent) == before


# Unpacked once


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_archive_is_unpacked_once(suffix: str, tmp_path: Path) -> None:
    path = write_archive(tmp_path / f"photos{suffix}", GOOD)
    folder = unpack(path, tmp_path / "raw", GIB)
    assert sorted(digests(folder)) == list(GOOD)
    assert list((tmp_path / "raw").iterdir()) == [folder]
    (folder / "mark").touch()
    assert unpack(path, tmp_path / "raw", GIB) == folder
    assert (folder / "mark").exists()
    write_archive(path, (*GOOD, "train/dog/2.png"))  # another archive of the same name
    assert sorted(digests(unpack(path, tmp_path / "raw", GIB))) == [*GOOD, "train/dog/2.png"]


def test_what_a_killed_process_has_left_is_not_taken_for_the_whole(tmp_path: Path) -> None:
    path = write_archive(tmp_path / "photos.zip", GOOD)
    folder = unpack(path, tmp_path / "raw", GIB)
    (folder / GOOD[0]).unlink()
    folder.rename(folder.with_name(f".{folder.name}.partial"))
    assert sorted(digests(unpack(path, tmp_path / "raw", GIB))) == list(GOOD)
    assert list((tmp_path / "raw").iterdir()) == [folder]


def test_two_processes_unpack_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(console, "say", said.append)
    path = write_archive(tmp_path / "photos.zip", (*GOOD, *(f"train/cat/{i}.png" for i in range(2, 300))))
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: unpack(path, tmp_path / "raw", GIB), range(2))
    assert first == second
    assert len(digests(first)) == 300
    assert len(said) == 1


@pytest.mark.parametrize("kind", [stat.S_IFREG, 0])
def test_zip_members_may_have_a_file_type_and_folders_their_own_entries(kind: int, project: Path) -> None:
    path = write_archive(project / "photos.zip", GOOD, zip_member("train/dog/2.png", kind))
    with zipfile.ZipFile(path, "a") as archive:
        archive.mkdir("train/dog")
    assert loaded(path) == [*GOOD, "train/dog/2.png"]


# Names


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    "name",
    ["../evil.png", "train/dog/../../../evil.png", "/evil.png", "C:/evil.png", "..\\evil.png", "../notes.txt"],
)
def test_names_that_point_outside_of_an_archive_are_refused(suffix: str, name: str, project: Path) -> None:
    refused(write_archive(project.parent / f"photos{suffix}", (*GOOD, name)), "data.root", name, "points outside")


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("again", ["train/cat/1.png", "train//cat/1.png", "train/./cat/1.png"])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_that_occurs_twice_is_refused(suffix: str, again: str, project: Path) -> None:
    path = write_archive(project.parent / f"photos{suffix}", (*GOOD, again))
    refused(path, "data.root", f"{again} in it occurs more than once")


def write_unmarked_zip(path: Path, name: bytes, *marked: str) -> Path:
    """A zip archive with a name of these bytes, without the mark that says that it is UTF-8; and some with it."""
    place = "train/cat/0".ljust(len(name), "x")
    content = write_archive(path, (*GOOD, place, *marked)).read_bytes()
    assert content.count(place.encode()) == 2
    path.write_bytes(content.replace(place.encode(), name))
    return path


def test_names_in_a_zip_archive_are_utf_8_with_or_without_its_mark(project: Path) -> None:
    path = write_unmarked_zip(project / "photos.zip", "train/cat/größe.png".encode(), "train/dog/ä.png")
    assert loaded(path) == sorted([*GOOD, "train/cat/größe.png", "train/dog/ä.png"])


@pytest.mark.parametrize("encoding", ["latin-1", "cp437"])
def test_names_in_a_zip_archive_of_another_encoding_are_refused(encoding: str, project: Path) -> None:
    path = write_unmarked_zip(project / "photos.zip", "train/cat/größe.png".encode(encoding))
    refused(path, r"train/cat/gr\x", "not UTF-8")


def test_names_in_a_tar_archive_that_are_not_utf_8_are_refused(project: Path) -> None:
    path = write_archive(project.parent / "photos.tar.gz", (*GOOD, "train/cat/\udcff.png"))
    with pytest.raises(UserError, match=r"photos\.tar\.gz.*not UTF-8.*train/cat/\\udcff\.png"):
        loaded(path)


# Links and devices


@pytest.mark.parametrize("name", ["train/dog/x.png", "train/fox"])
@pytest.mark.parametrize(
    ("kind", "target"),
    [
        (tarfile.SYMTYPE, "../../../secret.png"),
        (tarfile.SYMTYPE, "1.png"),
        (tarfile.LNKTYPE, "train/cat/1.png"),
        (tarfile.CHRTYPE, ""),
        (tarfile.FIFOTYPE, ""),
    ],
)
def test_links_and_devices_in_a_tar_archive_are_refused(kind: bytes, target: str, name: str, project: Path) -> None:
    path = write_archive(project.parent / "photos.tar.gz", GOOD, tar_member(name, kind, target))
    refused(path, "data.root", f"{name} in it is a link, device or pipe")


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO])
def test_links_and_devices_in_a_zip_archive_are_refused(kind: int, project: Path) -> None:
    path = write_archive(project.parent / "photos.zip", GOOD, zip_member("train/dog/x.png", kind))
    refused(path, "data.root", "train/dog/x.png in it is a link, device or pipe")


# Sizes


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_archive_that_unpacks_to_more_than_the_limit_is_refused(suffix: str, tmp_path: Path) -> None:
    path = write_archive(tmp_path / f"photos{suffix}", GOOD)
    size = 2 * len(png())
    with pytest.raises(UserError, match=r"^run\.max_unpacked_gib: .*photos"):
        unpack(path, tmp_path / "raw", size - 1)
    assert list((tmp_path / "raw").iterdir()) == []
    unpack(path, tmp_path / "raw", size)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_limit_is_looked_at_before_anything_of_a_member_is_written(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A small archive of many zeros."""
    path = tmp_path / f"bomb{suffix}"
    if suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("train/cat/1.png", bytes(20 * MIB))
    else:
        header = tar_member("train/cat/1.png", tarfile.REGTYPE, size=20 * MIB).tobuf()
        path.write_bytes(gzip.compress(header + bytes(20 * MIB) + bytes(1024)))
    for reader in (zipfile.ZipFile, tarfile.TarFile):
        monkeypatch.setattr(reader, "extract", lambda *_, **__: pytest.fail("it was unpacked"))
    with pytest.raises(UserError, match=r"^run\.max_unpacked_gib: "):
        unpack(path, tmp_path / "raw", 10 * MIB)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_archive_that_the_disk_has_no_room_for_is_refused(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_archive(tmp_path / f"photos{suffix}", GOOD)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=len(png()) - 1))
        with pytest.raises(UserError, match=r"^data\.root: .*photos.*free; make room"):
            unpack(path, tmp_path / "raw", GIB)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    for reader in (zipfile.ZipFile, tarfile.TarFile):
        monkeypatch.setattr(reader, "extract", full)
    with pytest.raises(RunError, match=r"photos.*No space left"):
        unpack(path, tmp_path / "raw", GIB)
    assert list((tmp_path / "raw").iterdir()) == []


# Damage


COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "tar": bytes,
    "tar.gz": gzip.compress,
    "tar.bz2": bz2.compress,
    "tar.xz": lzma.compress,
}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Pictures of noise, which no compressor makes much smaller."""
    for i in range(12):
        write_picture(tmp_path / "tree" / "train" / ("cat", "dog")[i % 2] / f"{i}.png", i, size=(40, 30))
    return tmp_path / "tree"


def packed(tree: Path, path: Path) -> Path:
    made = shutil.make_archive(str(path.parent / "made"), "zip" if path.suffix == ".zip" else "tar", tree)
    compress = COMPRESSORS.get(path.name.partition(".")[2], bytes)
    path.write_bytes(compress(Path(made).read_bytes()))
    Path(made).unlink()
    return path


@pytest.mark.parametrize("suffix", ["zip", *COMPRESSORS])
def test_every_kind_of_archive_is_read(suffix: str, tree: Path, project: Path) -> None:
    assert loaded(packed(tree, project / f"photos.{suffix}")) == loaded(tree)


@pytest.mark.parametrize("suffix", ["zip", *COMPRESSORS])
@pytest.mark.parametrize("part", [0.001, 0.1, 0.5, 0.9])
def test_an_archive_that_is_cut_off_is_refused(suffix: str, part: float, tree: Path, project: Path) -> None:
    path = packed(tree, project / f"photos.{suffix}")
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    refused(path, "data.root: ")


@pytest.mark.parametrize("suffix", ["zip", "tar.gz", "tar.bz2", "tar.xz"])
@pytest.mark.parametrize("part", [0.3, 0.7])
def test_a_flipped_bit_is_found(suffix: str, part: float, tree: Path, project: Path) -> None:
    path = packed(tree, project / f"photos.{suffix}")
    content = bytearray(path.read_bytes())
    content[int(part * len(content))] ^= 0x10
    path.write_bytes(content)
    refused(path, "data.root: ", "damaged")


def test_the_checksum_at_the_end_of_a_gzip_file_is_read(tree: Path, project: Path) -> None:
    path = packed(tree, project / "photos.tar.gz")
    content = bytearray(path.read_bytes())
    content[-6] ^= 0x10
    path.write_bytes(content)
    refused(path, "data.root: ", "damaged")


FIRST = tar_member("train/cat/1.png", tarfile.REGTYPE).tobuf()
NEGATIVE = bytearray(tar_member("train/cat/2.png", tarfile.REGTYPE).tobuf(tarfile.GNU_FORMAT))
NEGATIVE[124:136] = b"\xff" * 10 + b"\xfe\x00"  # -512, as GNU writes it
NEGATIVE[148:156] = b" " * 8
NEGATIVE[148:156] = b"%06o\0 " % sum(NEGATIVE)


@pytest.mark.parametrize("suffix", COMPRESSORS)
@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (FIRST, "damaged"),
        (FIRST + b"x" * 512 + bytes(1024), "damaged"),
        (tar_member("train/cat/1.png", tarfile.REGTYPE, size=3 * MIB).tobuf(), "damaged"),
        (tar_member("train/cat/1.png", tarfile.REGTYPE, size=1 << 40).tobuf(tarfile.GNU_FORMAT), "run.max_unpacked"),
        (bytes(NEGATIVE) + bytes(1024), "data.root"),
        (FIRST[:400], "expected a folder, a tar or zip archive"),
    ],
    ids=["cut off between two", "a damaged header", "cut off", "a size that lies", "a negative size", "half a header"],
)
def test_headers_that_are_damaged_or_lie(suffix: str, content: bytes, expected: str, project: Path) -> None:
    path = project.parent / f"photos.{suffix}"
    path.write_bytes(COMPRESSORS[suffix](content))
    refused(path, expected)


def test_a_zip_directory_that_lies_gives_no_more_than_it_says(tmp_path: Path) -> None:
    path = tmp_path / "photos.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("train/cat/1.png", bytes(3 * MIB))
    content = path.read_bytes()
    path.write_bytes(content.replace((3 * MIB).to_bytes(4, "little"), (100).to_bytes(4, "little")))
    with pytest.raises(UserError, match=r"photos\.zip: damaged"):
        unpack(path, tmp_path / "raw", MIB)
    assert list((tmp_path / "raw").iterdir()) == []


def test_an_archive_that_ends_in_a_zip_archive_is_what_it_begins_as(tmp_path: Path) -> None:
    inner = write_archive(tmp_path / "inner.zip", GOOD)
    with tarfile.open(tmp_path / "outer.tar", "w", format=tarfile.GNU_FORMAT) as archive:
        archive.add(inner, "inner.zip")
    content = (tmp_path / "outer.tar").read_bytes()
    (tmp_path / "outer.tar").write_bytes(content[: 512 + inner.stat().st_size])
    assert zipfile.is_zipfile(tmp_path / "outer.tar")
    with pytest.raises(UserError, match=r"outer\.tar: damaged"):
        unpack(tmp_path / "outer.tar", tmp_path / "raw", GIB)


@pytest.mark.parametrize("content", [b"", b"no archive at all" * 99], ids=["empty", "text"])
def test_a_file_that_is_no_archive_is_refused(content: bytes, project: Path) -> None:
    (project / "photos.zip").write_bytes(content)
    refused(project / "photos.zip", "data.root", "expected a folder, a tar or zip archive")


@pytest.mark.parametrize("suffix", [".tar", ".tar.xz", ".zip"])
def test_unpacking_says_how_far_it_is(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / f"a{suffix}"
    generator = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for name in "abcde":
        (tmp_path / "images" / name).write_bytes(generator.bytes(2 * MIB))
    shutil.make_archive(
        str(tmp_path / "a"), {".tar": "tar", ".tar.xz": "xztar", ".zip": "zip"}[suffix], tmp_path / "images"
    )
    said: list[str] = []
    now = iter(range(0, 10000, 70))
    monkeypatch.setattr("time.monotonic", lambda: float(next(now)))
    monkeypatch.setattr(console, "say", said.append)
    unpack(path, tmp_path / "raw", GIB)
    assert any(line.startswith("unpacking: ") and line.endswith(" left") for line in said)
