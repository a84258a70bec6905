"""Folders and archives that were made to be misread."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import stat
import subprocess
import sys
import tarfile
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from projects import ROOT, digests, make_params, write_picture

from pipeline.errors import UserError
from pipeline.sources import archives
from pipeline.sources.archives import Tar, Zip
from pipeline.sources.containers import open_container
from pipeline.stages import download
from pipeline.store.dataset import read_dataset

MIB = 1 << 20
GOOD = ("train/cat/1.png", "train/dog/1.png")


def png(size: tuple[int, int] = (4, 4)) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", size).save(content, "PNG")
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


def tar_member(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
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
    assert all(part in message for part in expected), message
    assert message.isprintable()
    assert digests(Path.cwd().parent) == before


# Names


@pytest.mark.parametrize("suffix", [".zip", ".tar.gz"])
@pytest.mark.parametrize(
    "name",
    [
        "../train/dog/evil.png",
        "train/dog/../../../evil.png",
        "train/dog/..",
        "/train/dog/evil.png",
        "//host/train/dog/evil.png",
        "C:/train/dog/evil.png",
        "C:train/dog/evil.png",
        "train\\dog\\evil.png",
        "..\\train\\dog\\evil.png",
        "\\\\host\\train\\dog\\evil.png",
    ],
)
def test_names_that_point_outside_of_an_archive_are_refused(suffix: str, name: str, project: Path) -> None:
    name = name if name.endswith(".png") else f"{name}/evil.png"
    path = write_archive(project.parent / f"archive{suffix}", (*GOOD, name, f"{name}.png"))
    shown = name if name.isprintable() else ascii(name)
    refused(path, "data.root", path.name, "2 images in it have names that point outside", shown, "pack it anew")


@pytest.mark.parametrize("name", ["../notes.txt", "/etc/passwd"])
def test_names_of_what_is_no_image_do_not_matter(name: str, project: Path) -> None:
    assert loaded(write_archive(project.parent / "archive.tar.gz", (*GOOD, name))) == list(GOOD)


def test_only_the_first_five_are_named(project: Path) -> None:
    path = write_archive(project.parent / "archive.zip", tuple(f"../{i}.png" for i in range(9)))
    refused(path, "9 images", "../0.png; ../1.png; ../2.png; ../3.png; ../4.png; and 4 more")


@pytest.mark.parametrize("suffix", [".zip", ".tar.gz"])
@pytest.mark.parametrize("again", ["train/cat/1.png", "./train/cat/1.png", "train//cat/1.png", "train/./cat/1.png"])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_that_occurs_twice_is_refused(suffix: str, again: str, project: Path) -> None:
    path = write_archive(project.parent / f"archive{suffix}", (*GOOD, again))
    refused(path, "data.root", path.name, "1 images in it occur more than once: train/cat/1.png")


def test_names_that_are_not_utf_8_are_refused(project: Path) -> None:
    name = "train/cat/\udcff.png"
    refused(write_archive(project.parent / "archive.tar.gz", (*GOOD, name)), "not UTF-8", r"train/cat/\udcff.png")
    folder = project.parent / "folder"
    for path in (*GOOD, name):
        write_picture(folder / path, 0)
    refused(folder, "1 images in it have names that are not UTF-8", r"train/cat/\udcff.png")


def write_unmarked_zip(path: Path, names: list[bytes], *marked: str) -> Path:
    """A zip archive whose names are these bytes, without the mark that says that they are UTF-8; and some with it."""
    places = [f"train/cat/{i}".ljust(len(name), "x") for i, name in enumerate(names)]
    content = write_archive(path, (*GOOD, *places, *marked)).read_bytes()
    for place, name in zip(places, names, strict=True):
        assert content.count(place.encode()) == 2
        content = content.replace(place.encode(), name)
    path.write_bytes(content)
    return path


def test_names_in_a_zip_archive_are_utf_8_with_or_without_its_mark(project: Path) -> None:
    names = ["train/cat/größe.png", "train/dog/犬.png"]
    path = write_unmarked_zip(project.parent / "archive.zip", [name.encode() for name in names], "train/dog/ä.png")
    assert loaded(path) == sorted([*GOOD, *names, "train/dog/ä.png"])


@pytest.mark.parametrize("encoding", ["latin-1", "cp437"])
def test_names_in_a_zip_archive_of_another_encoding_are_refused(encoding: str, project: Path) -> None:
    name = "train/cat/größe.png".encode(encoding)
    path = write_unmarked_zip(project.parent / "archive.zip", [name])
    refused(path, "1 images in it have names that are not UTF-8: ", r"train/cat/gr\udc", "rename them")


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("train/cat/größe.png", "occur more than once"),
        ("../größe.png", "point outside"),
        (r"train/ß\1.png", "point outside"),
    ],
)
def test_names_without_the_mark_are_checked_as_they_are_meant(name: str, what: str, project: Path) -> None:
    path = write_unmarked_zip(project.parent / "archive.zip", [name.encode()], "train/cat/größe.png")
    refused(path, "1 images in it", what, name, "pack it anew")


def test_a_folder_of_ones_own_may_have_names_that_archives_may_not(project: Path) -> None:
    names = [r"train/C:/a\b.png", "train/new\nline/1.png"]
    for i, name in enumerate(names):
        write_picture(project.parent / "folder" / name, i)
    assert loaded(project.parent / "folder") == names


# Links and devices


TAR_KINDS = {
    "symlink": (tarfile.SYMTYPE, "../../../secret.png"),
    "symlink inside": (tarfile.SYMTYPE, "1.png"),
    "hard link": (tarfile.LNKTYPE, "train/cat/1.png"),
    "hard link outside": (tarfile.LNKTYPE, "/etc/passwd"),
    "character device": (tarfile.CHRTYPE, ""),
    "block device": (tarfile.BLKTYPE, ""),
    "pipe": (tarfile.FIFOTYPE, ""),
}


@pytest.mark.parametrize("kind", TAR_KINDS)
@pytest.mark.parametrize("name", ["train/dog/x.png", "train/fox"])
def test_links_and_devices_in_a_tar_archive_are_refused(kind: str, name: str, project: Path) -> None:
    member = tar_member(name, *TAR_KINDS[kind])
    path = write_archive(project.parent / "archive.tar.gz", GOOD, member)
    refused(path, "data.root", path.name, f"1 images in it are links, devices or pipes, not files: {name}", "--deref")


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFSOCK])
def test_links_and_devices_in_a_zip_archive_are_refused(kind: int, project: Path) -> None:
    path = write_archive(project.parent / "archive.zip", GOOD, zip_member("train/dog/x.png", kind))
    refused(path, "1 images in it are links, devices or pipes, not files: train/dog/x.png")


def test_ordinary_zip_members_with_a_file_type_are_read(project: Path) -> None:
    path = write_archive(project.parent / "archive.zip", GOOD, zip_member("train/dog/x.png", stat.S_IFREG))
    assert loaded(path) == [*GOOD, "train/dog/x.png"]


def test_links_to_what_is_no_image_do_not_matter(project: Path) -> None:
    member = tar_member("train/notes.txt", tarfile.SYMTYPE, "/etc/passwd")
    assert loaded(write_archive(project.parent / "archive.tar.gz", GOOD, member)) == list(GOOD)


def test_links_in_a_folder_of_ones_own_are_followed(project: Path) -> None:
    disk = project.parent / "disk"
    for name in ("cats/1.png", "dogs/1.png", "one.png"):
        write_picture(disk / name, len(name))
    root = project.parent / "folder"
    (root / "train").mkdir(parents=True)
    (root / "train" / "cat").symlink_to(disk / "cats")
    (root / "train" / "dog").symlink_to("../../disk/dogs")
    (disk / "dogs" / "2.png").symlink_to(disk / "one.png")
    (root / "train" / "cat" / "up").symlink_to(root)  # no end, if it were followed again and again
    (project.parent / "link").symlink_to(root)
    expected = ["train/cat/1.png", "train/dog/1.png", "train/dog/2.png"]
    assert loaded(root) == loaded(project.parent / "link") == expected


def broken_link(path: Path) -> None:
    path.symlink_to("/nosuch")


def circular_link(path: Path) -> None:
    path.symlink_to(path)


@pytest.mark.parametrize("name", ["train/cat/x.png", "train/fox"])
@pytest.mark.parametrize("make", [os.mkfifo, broken_link, circular_link])
def test_pipes_and_broken_links_in_a_folder_are_named(name: str, make: Callable[[Path], None], project: Path) -> None:
    root = project.parent / "folder"
    for path in GOOD:
        write_picture(root / path, 0)
    make(root / name)
    with pytest.raises(
        UserError, match=f"^data.root: .*1 images in it are links, devices or pipes, not files: {name};"
    ):
        loaded(root)


def test_a_csv_may_point_anywhere_but_not_at_a_pipe(project: Path) -> None:
    outside = project.parent / "elsewhere" / "1.png"
    for path in (outside, project.parent / "lists" / "2.png"):
        write_picture(path, 0)
    table = project.parent / "lists" / "labels.csv"
    table.write_text(f"path,label\n{outside},cat\n2.png,dog\n../elsewhere/1.png,cat\n", encoding="utf-8")
    assert loaded(table) == [str(outside), "2.png", "../elsewhere/1.png"]
    os.mkfifo(project.parent / "lists" / "pipe.png")
    table.write_text("path,label\n2.png,dog\npipe.png,cat\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"line 3: no such file: pipe\.png"):
        loaded(table)


@pytest.mark.parametrize("name", ["pipe", "pipe.zip"])
def test_a_pipe_is_no_archive(name: str, project: Path) -> None:
    os.mkfifo(project.parent / name)
    with pytest.raises(UserError, match="expected a folder, a tar or zip archive"):
        loaded(project.parent / name)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read all folders")
def test_a_folder_that_may_not_be_read_is_named(project: Path) -> None:
    for name in GOOD:
        write_picture(project / name, 0)
    (project / "train" / "cat").chmod(0)
    refused(project, "train/cat", "not readable")
    (project / "train" / "cat").chmod(0o755)


# What archives unpack to


COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "tar": bytes,
    "tar.gz": gzip.compress,
    "tar.bz2": bz2.compress,
    "tar.xz": lzma.compress,
}


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


def write_tar_bomb(path: Path, name: str, mebibytes: int, kind: bytes = tarfile.REGTYPE) -> Path:
    """Zeros under a name, as so many compressed streams behind each other as there are mebibytes."""
    compress = COMPRESSORS[path.name.partition(".")[2]]
    end = compress(bytes(2 * tarfile.BLOCKSIZE))
    path.write_bytes(compress(header(name, mebibytes * MIB, kind)) + compress(bytes(MIB)) * mebibytes + end)
    return path


def write_zip_bomb(path: Path, name: str, mebibytes: int, method: int) -> Path:
    with zipfile.ZipFile(path, "w", method, compresslevel=1) as archive, archive.open(name, "w") as member:
        for _ in range(mebibytes):
            member.write(bytes(MIB))
    return path


@pytest.mark.parametrize("suffix", COMPRESSORS)
@pytest.mark.parametrize("name", ["train/cat/1.png", "notes.txt"])
def test_a_tar_archive_is_unpacked_up_to_the_limit(suffix: str, name: str, tmp_path: Path) -> None:
    path = write_tar_bomb(tmp_path / f"bomb.{suffix}", name, 3)
    limit = 3 * MIB + 3 * tarfile.BLOCKSIZE
    for allowed, archive in ((True, Tar(path, limit)), (False, Tar(path, 3 * MIB))):
        if allowed:
            assert archive.members().files == [name]
            assert [len(content) for _, content in archive.read([name], 9 * MIB)] == [3 * MIB]
            assert [len(content) for _, content in archive.read([name], MIB)] == [MIB + 1]
            continue
        for use in (archive.members, lambda archive=archive: list(archive.read([name], 9 * MIB))):
            with pytest.raises(UserError, match=r"^run.max_unpacked_gib: .*unpacks to more than 0.0029"):
                use()


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_zip_archive_is_unpacked_up_to_the_limit(method: int, tmp_path: Path) -> None:
    path = write_zip_bomb(tmp_path / "bomb.zip", "train/cat/1.png", 3, method)
    names = Zip(path, 1).members().files  # the directory of an archive is not compressed
    assert [len(content) for _, content in Zip(path, 3 * MIB).read(names, 9 * MIB)] == [3 * MIB]
    assert [len(content) for _, content in Zip(path, 3 * MIB).read(names, MIB)] == [MIB + 1]
    with pytest.raises(UserError, match=r"^run.max_unpacked_gib: .*unpacks to more than 0.0029"):
        list(Zip(path, 3 * MIB - 1).read(names, MIB))


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_zip_archive_of_other_methods_is_refused(method: int, project: Path) -> None:
    path = write_zip_bomb(project.parent / "archive.zip", "train/cat/1.png", 1, method)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("train/dog/1.png", png())
    refused(path, "data.root", f"train/cat/1.png is compressed by method {method}", "pack it anew with deflate")


def test_a_zip_directory_that_lies_gives_no_more_than_it_says(tmp_path: Path) -> None:
    path = write_zip_bomb(tmp_path / "bomb.zip", "train/cat/1.png", 3, zipfile.ZIP_DEFLATED)
    content = path.read_bytes()
    assert content.count((3 * MIB).to_bytes(4, "little")) == 2
    path.write_bytes(content.replace((3 * MIB).to_bytes(4, "little"), (100).to_bytes(4, "little")))
    with pytest.raises(UserError, match=r"bomb\.zip, train/cat/1\.png: damaged \(Bad CRC-32"):
        list(Zip(path, MIB).read(["train/cat/1.png"], MIB))


def sparse(name: str, size: int) -> bytes:
    """The header of an old GNU sparse member: no bytes in the archive, `size` of them when it is read."""
    content = bytearray(header(name, 0, tarfile.GNUTYPE_SPARSE))
    content[345:500] = bytes(155)
    content[483:495] = b"\x80" + size.to_bytes(11, "big")
    content[148:156] = b" " * 8
    content[148:156] = b"%06o\0 " % sum(content)
    return bytes(content)


FIRST = header("notes.txt", 0)


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        (header("train/cat/1.png", 1 << 40), "run.max_unpacked_gib"),
        (sparse("train/cat/1.png", 1 << 40) + header("train/dog/1.png", 0) + bytes(1024), "run.max_unpacked_gib"),
        (FIRST + header("notes", 200 * MIB, tarfile.XHDTYPE), "damaged (a header of 209715200 bytes)"),
        (FIRST + header("notes", 200 * MIB, tarfile.GNUTYPE_LONGNAME), "damaged (a header of"),
        (header("train/cat/1.png", 3 * MIB), "damaged"),
        (header("train/cat/1.png", 0) + b"x" * 512, "no end mark at 512 bytes"),
        (header("train/cat/1.png", 0), "no end mark at 512 bytes"),
        (header("train/cat/1.png", 0)[:400], "expected a folder, a tar or zip archive"),
    ],
    ids=["huge", "sparse", "pax header", "long name", "truncated", "damaged header", "cut off", "half a header"],
)
@pytest.mark.parametrize("suffix", COMPRESSORS)
def test_headers_that_lie(suffix: str, start: bytes, expected: str, project: Path) -> None:
    path = project.parent / f"archive.{suffix}"
    path.write_bytes(COMPRESSORS[suffix](start))
    refused(path, expected, path.name, max_unpacked_gib=0.25, max_image_mpixels=100_000)


def greedy_xz(content: bytes, size: int) -> bytes:
    """An xz stream whose header asks for a dictionary of 4 GiB (40), 3 GiB (39), …"""
    data = bytearray(lzma.compress(content))
    length = 4 * (data[12] + 1)
    assert data[14:16] == b"\x21\x01"  # LZMA2, one byte of properties
    data[16] = size
    data[12 + length - 4 : 12 + length] = zlib.crc32(data[12 : 12 + length - 4]).to_bytes(4, "little")
    return bytes(data)


@pytest.mark.parametrize("before", [b"", lzma.compress(header("train/cat/1.png", 0)), lzma.compress(b"") + bytes(8)])
def test_an_xz_archive_takes_no_more_memory_than_the_highest_preset(before: bytes, project: Path) -> None:
    path = project.parent / "archive.tar.xz"
    path.write_bytes(before + greedy_xz(header("train/cat/2.png", 0) + bytes(1024), 40))
    refused(path, "data.root", path.name, "more than 256 MiB of memory", "pack it anew with xz -9")
    path.write_bytes(before + greedy_xz(header("train/cat/2.png", 0) + bytes(1024), 28))  # 64 MiB, as xz -9 has it
    assert Tar(path, MIB).members().files[-1] == "train/cat/2.png"


def test_an_old_lzma_archive_takes_no_more_memory_either(project: Path) -> None:
    content = lzma.compress(header("train/cat/1.png", 0) + bytes(1024), lzma.FORMAT_ALONE)
    path = project.parent / "archive.tar.lzma"
    path.write_bytes(content)
    assert Tar(path, MIB).members().files == ["train/cat/1.png"]
    path.write_bytes(content[:1] + b"\0\0\0\xc0" + content[5:])
    refused(path, "more than 256 MiB of memory")


@pytest.mark.parametrize("after", [b"rubbish", bytes(3), bytes(70_000)])
def test_what_follows_the_last_xz_stream_does_not_matter(after: bytes, tmp_path: Path) -> None:
    path = tmp_path / "archive.tar.xz"
    content = header("train/cat/1.png", 3) + b"abc".ljust(512, b"\0") + bytes(1024)
    path.write_bytes(lzma.compress(content[:100]) + bytes(4) + lzma.compress(content[100:]) + after)
    assert dict(Tar(path, MIB).read(["train/cat/1.png"], MIB)) == {"train/cat/1.png": b"abc"}


def test_an_archive_of_very_many_members_takes_no_more_than_their_names(tmp_path: Path) -> None:
    path = tmp_path / "many.tar.gz"
    path.write_bytes(gzip.compress(b"".join(header(f"{i}.txt", 0) for i in range(8_000)) + bytes(1024)))
    tracemalloc.start()
    try:
        assert len(Tar(path, 1 << 30).members().files) == 8_000
        assert tracemalloc.get_traced_memory()[1] < 2 * MIB  # as `TarInfo`s they take several times that
    finally:
        tracemalloc.stop()


def test_an_archive_that_ends_in_a_zip_archive_is_what_it_begins_as(tmp_path: Path) -> None:
    inner = write_archive(tmp_path / "inner.zip", GOOD)
    with tarfile.open(tmp_path / "outer.tar", "w", format=tarfile.GNU_FORMAT) as archive:
        archive.add(inner, "inner.zip")
    (tmp_path / "outer.tar").write_bytes((tmp_path / "outer.tar").read_bytes()[: 512 + inner.stat().st_size])
    assert zipfile.is_zipfile(tmp_path / "outer.tar")
    assert isinstance(open_container(tmp_path / "outer.tar", MIB), Tar)


READ_ALL = """
import resource, sys
from pathlib import Path
from pipeline.errors import UserError
from pipeline.sources.containers import open_container
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (80 << 20),) * 2)
for path in map(Path, sys.argv[1:]):
    archive = open_container(path, 900 << 20)
    try:
        names = archive.members().files
        (content,) = [content for _, content in archive.read(names, 16 << 20)]
        print(path.name, len(content))
    except UserError as error:
        print(path.name, str(error).split(":")[0])
"""


def test_bombs_take_no_memory(tmp_path: Path) -> None:
    """128 MiB of zeros are cut off at 16, 1 GiB is refused, in a process that may take 80 MiB more."""
    paths = [
        write_tar_bomb(tmp_path / f"{size}.{suffix}", "train/cat/1.png", size)
        for suffix in ("tar.gz", "tar.bz2", "tar.xz")
        for size in (128, 1024)
    ]
    paths += [write_zip_bomb(tmp_path / "128.zip", "1.png", 128, zipfile.ZIP_DEFLATED)]
    done = subprocess.run(
        [sys.executable, "-c", READ_ALL, *map(str, paths)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    cut, large = str(16 * MIB + 1), "run.max_unpacked_gib"
    expected = [large if path.name.startswith("1024") else cut for path in paths]
    assert done.stdout.splitlines() == [f"{path.name} {end}" for path, end in zip(paths, expected, strict=True)]


# What makes reading last for ever, or take all memory


def tar_gz(path: Path, *members: tarfile.TarInfo, pax: dict[str, str] | None = None) -> Path:
    with tarfile.open(path, "w:gz", format=tarfile.PAX_FORMAT, pax_headers=pax or {}) as tar:
        for member in members:
            tar.addfile(member)
    return path


def test_a_member_of_negative_size_does_not_come_again_for_ever(project: Path) -> None:
    """Python's tarfile goes back to the header that it has just read."""
    header = bytearray(tarfile.TarInfo("train/cat/1.png").tobuf(tarfile.GNU_FORMAT))
    header[124:136] = b"\xff" * 10 + b"\xfe\x00"  # -512, as GNU writes it
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    (project / "own.tar").write_bytes(bytes(header) + bytes(1024))
    with pytest.raises(UserError, match=r"own\.tar"):
        Tar(project / "own.tar", MIB).members()


def test_names_longer_than_any_path_are_refused(project: Path) -> None:
    path = tar_gz(project / "own.tar.gz", tarfile.TarInfo("train/cat/" + "a" * 5000 + ".png"))
    with pytest.raises(UserError, match=r"own\.tar\.gz: damaged \(a name of 5014 characters\)"):
        Tar(path, 100 * MIB).members()


def test_headers_for_all_members_do_not_add_up(project: Path) -> None:
    """Each below the limit of one header, together above it."""
    path = project / "own.tar"
    path.write_bytes(
        b"".join(tarfile.TarInfo.create_pax_global_header({f"comment{i}": "a" * 700_000}) for i in range(2))
        + tarfile.TarInfo("a.png").tobuf()
        + bytes(1024)
    )
    with pytest.raises(UserError, match="headers of more than 1048576 bytes"):
        Tar(path, 100 * MIB).members()


def test_names_are_counted_in_bytes(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tar_gz(project / "own.tar.gz", *(tarfile.TarInfo(f"train/cat/{i}.png") for i in range(100)))
    assert len(Tar(path, 100 * MIB).members().files) == 100
    monkeypatch.setattr(archives, "_MOST_NAMES_BYTES", 5000)
    with pytest.raises(UserError, match="names of more than"):
        Tar(path, 100 * MIB).members()
