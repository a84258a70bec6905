"""An own data set: train/ [val/] test/ with a folder per class, or a CSV."""

from __future__ import annotations

import stat
from pathlib import Path, PurePosixPath

from pipeline.base import console
from pipeline.base.errors import UserError
from pipeline.decoding.decode import EXTENSIONS
from pipeline.sources.labelled_files.csv_list import read_table
from pipeline.sources.labelled_files.sample import SPLIT_NAMES, Sample
from pipeline.sources.labelled_files.to_dataset import FileOptions, load_files, look_at_files
from pipeline.sources.places.folder import contents, file_type, first_few, is_hidden, is_text, printable
from pipeline.store.dataset import SPLITS, TEST, TRAIN, VALIDATION, Dataset
from pipeline.store.sizes import Sizes

_SPLIT_FOLDERS = {**SPLIT_NAMES, "training": TRAIN, "dev": VALIDATION, "testing": TEST}
"""By name, in any case."""

_RENAME = "rename its folder, or list the images in a .csv file with the columns path,label, where any name will do"

BESIDE_IMAGES = (
    ".txt", ".md", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".yaml", ".yml", ".html", ".log", ".ini", ".db",
)  # fmt: skip
"""Ends of files that people and programs put beside images, and that are no reason for a warning."""


def load(root: Path, options: FileOptions) -> Dataset:
    """Read a folder of images, or the images that a .csv file lists.

    Args:
        root: the folder, or the .csv file.

    Raises:
        UserError: `listed` or `load_files` fails.
    """
    folder, samples = listed(root)
    return load_files(_numbered(samples), folder, options, "imagefolder")


def look(root: Path, options: FileOptions) -> Sizes:
    """What `load` would give, from the names of the files and one of them."""
    folder, samples = listed(root)
    return look_at_files(samples, folder, options)


def listed(root: Path) -> tuple[Path, list[Sample]]:
    """The images of a folder, or those that a .csv file lists, and the folder that their paths are relative to.

    Raises:
        UserError: nothing is there, another layout, no images, names that are not UTF-8.
    """
    if root.suffix.lower() == ".csv":
        return read_table(root)
    if (found := file_type(root)) != stat.S_IFDIR:
        what = "expected a folder, a tar or zip archive or a .csv file" if found else "no such folder or file"
        raise UserError(f"data.root: {root}: {what}")
    return root, _samples(root)


def _samples(root: Path) -> list[Sample]:
    """The images of a folder, with the split and class that their paths name.

    Raises:
        UserError: there are no images, or `_images` or `_place` fails.
    """
    files, others = contents(root)
    if not (names := _images(files, others, root)):
        raise UserError(
            f"data.root: {root}: no images in it; expected train/CLASS/FILE, or a .csv file with the columns "
            f"path,label; images end in {' '.join(EXTENSIONS)}"
        )
    samples = _place(names, root)
    _warn_of_others(files, PurePosixPath(names[0]).parts, root)
    return samples


def _images(files: list[str], others: list[str], root: Path) -> list[str]:
    """The images in a folder. One that cannot be read is an error: its absence would go unnoticed.

    Raises:
        UserError: names that are not UTF-8, links that lead nowhere.
    """
    names = [name for name in files if name.lower().endswith(EXTENSIONS) and not is_hidden(name)]
    # A link without a suffix may be one to a class folder.
    suffixes = (*EXTENSIONS, "")
    broken = [name for name in others if PurePosixPath(name).suffix.lower() in suffixes and not is_hidden(name)]
    unreadable = [name for name in names + broken if not is_text(name)]
    _refuse(root, unreadable, "have names that are not UTF-8", "rename them")
    _refuse(root, broken, "are links that lead nowhere, devices or pipes", "put files in their place, or remove them")
    return names


def _refuse(root: Path, found: list[str], what: str, remedy: str) -> None:
    if found:
        raise UserError(
            f"data.root: {root}: {len(found)} images in it {what}: {first_few(map(printable, found))}; {remedy}"
        )


def _place(names: list[str], root: Path) -> list[Sample]:
    """The split and the class that each path names: …/train/CLASS/…, or CLASS/FILE where no path says a split.

    Raises:
        UserError: a path that says no class or two splits, or none beside others that do; without splits, class folders
            in different folders.
    """
    placed: list[Sample] = []
    without: list[Sample] = []
    twice: list[str] = []
    first: dict[tuple[str, ...], str] = {}
    for name in names:
        parts = PurePosixPath(name).parts
        if at := _split_folders(parts):
            placed.append(Sample(name, parts[at[0] + 1], _SPLIT_FOLDERS[parts[at[0]].casefold()], -1))
            if len(at) > 1:
                twice.append(name)
        elif len(parts) >= 2 and parts[-2].casefold() not in _SPLIT_FOLDERS:
            without.append(Sample(name, parts[-2], TRAIN, -1))
            first.setdefault(parts[:-2], name)
        else:
            raise UserError(f"data.root: {root}: {name} {_why_no_class(parts)}")
    _refuse(
        root,
        twice,
        "lie below two folders that name a split",
        f"set data.root to one of these folders, or rename one; where one is a class, {_RENAME}",
    )
    if placed:
        _refuse(
            root,
            [sample.path for sample in without],
            "lie in no split, and others do",
            "move them to train/CLASS/, val/CLASS/ or test/CLASS/, or remove them; where the folder of a split is a "
            f"class, {_RENAME}",
        )
    elif len(first) > 1:
        raise UserError(
            f"data.root: {root}: its class folders lie in {len(first)} different folders: "
            f"{first_few(map(printable, first.values()))}; expected CLASS/FILE for all images, or train/CLASS/FILE, "
            "where folders inside of CLASS belong to it"
        )
    return placed or without


def _why_no_class(parts: tuple[str, ...]) -> str:
    if len(parts) < 2:
        return "lies in no class folder; expected train/CLASS/FILE or CLASS/FILE"
    return (
        f"lies in no class folder: {printable(parts[-2])!r} is taken for a split, as are folders called "
        f"{', '.join(_SPLIT_FOLDERS)} in any case; expected train/CLASS/FILE or CLASS/FILE; if it is a class, {_RENAME}"
    )


def _split_folders(parts: tuple[str, ...]) -> list[int]:
    """Where in a path folders are named like a split, and a class folder comes after them."""
    return [i for i, part in enumerate(parts[:-2]) if part.casefold() in _SPLIT_FOLDERS]


def _warn_of_others(files: list[str], image: tuple[str, ...], root: Path) -> None:
    """Warn of files in class folders whose names are not those of images. `image` is the path of one that is."""
    by_split = bool(_split_folders(image))

    def in_class(parts: tuple[str, ...]) -> bool:
        return bool(_split_folders(parts)) if by_split else len(parts) > 1 and parts[:-2] == image[:-2]

    known = (*EXTENSIONS, *BESIDE_IMAGES)
    unknown = [name for name in files if not name.lower().endswith(known) and not is_hidden(name)]
    if others := [name for name in unknown if in_class(PurePosixPath(name).parts)]:
        console.warn(
            f"data.root: {root}: {len(others)} files in class folders are left out, as their names do not end in "
            f"{' '.join(EXTENSIONS)}: {first_few(map(printable, others))}; convert or rename those that are images"
        )


def _numbered(samples: list[Sample]) -> list[Sample]:
    """Number each split's samples: by the number in the file name where all have one of their own, else by order."""
    numbered: list[Sample] = []
    for split in range(len(SPLITS)):
        members = [sample for sample in samples if sample.split == split]
        stems = [PurePosixPath(sample.path).stem for sample in members]
        short = all(stem.isdecimal() and len(stem) <= 18 for stem in stems)  # fits 64 bits
        by_name = short and len({int(stem) for stem in stems}) == len(stems)
        numbers = [int(stem) for stem in stems] if by_name else range(len(members))
        numbered += [sample._replace(number=i) for sample, i in zip(members, numbers, strict=True)]
    return numbered
