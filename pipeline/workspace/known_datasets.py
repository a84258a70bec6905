"""`mlnt list`: the images of a known data set, in its owners' folders and lists, as a .csv file for `data.root`."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from pipeline.base import files
from pipeline.base.errors import UserError
from pipeline.sources.places import delimited
from pipeline.sources.places.folder import contents, first_few, is_hidden, printable, readable

KEY = "mlnt list"
WEBVISION_CLASSES = 50
"""What "mini" means: the first ones."""


class Image(NamedTuple):
    """An image: where it lies below the data set's folder, its class, its split."""

    path: str
    label: str
    split: str


class Decision(NamedTuple):
    """A row of a file for `noise.corrections`."""

    path: str
    given_label: str
    decision: str
    label: str = ""


class Layout(NamedTuple):
    """How a data set is handed out.

    Attributes:
        needs: files and folders that must be there.
        images: folder ↦ its images.
        verified: folder ↦ what its owners verified of its labels.
    """

    title: str
    needs: tuple[str, ...]
    images: Callable[[Path], Iterator[Image]]
    verified: Callable[[Path], Iterator[Decision]] | None = None


def run(name: str, folder: Path, out: Path | None) -> str:
    """Write the list, and beside it what the owners verified, if they did; returns a line that says what it holds.

    Args:
        name: a key of `LAYOUTS`.
        out: the list; None for labels.csv in the folder.

    Raises:
        UserError: the folder has another layout, its lists are damaged or name images that are not there, or there is
            such a file already.
    """
    layout, out = LAYOUTS[name], folder / "labels.csv" if out is None else out
    verified = out.with_name(f"{out.stem}-verified.csv")
    if there := [path for path in (out, verified) if path.exists()]:
        raise UserError(f"--out: {there[0]} is there already; remove it, or name another file")
    if missing := [need for need in layout.needs if not (folder / need).exists()]:
        raise UserError(
            f"{KEY}: {folder}: no {', no '.join(missing)} in it; expected {layout.title} as its owners hand it out, "
            f"unpacked, with {', '.join(layout.needs)}"
        )
    images = list(layout.images(folder))
    if lost := [each.path for each in images if not os.path.isfile(folder / each.path)]:  # noqa: PTH113
        raise UserError(
            f"{KEY}: {folder}: {len(lost)} of the {len(images)} images that its lists name are not there: "
            f"{first_few(map(printable, lost))}"
        )
    decided = list(layout.verified(folder)) if layout.verified is not None else []
    to_images = os.path.relpath(folder, out.parent)

    def rows(found: Sequence[Image | Decision]) -> Iterator[dict[str, str]]:
        for each in found:
            yield {**each._asdict(), "path": os.path.normpath(f"{to_images}/{each.path}")}

    files.write_csv(out, rows(images))
    splits = Counter(each.split for each in images)
    counts = ", ".join(f"{splits[split]} {split}" for split in ("train", "val", "test") if splits[split])
    said = f"{out}: {counts}, {len({each.label for each in images})} classes"
    if decided:
        files.write_csv(verified, rows(decided))
        said += f"; {verified}: {len(decided)} labels of train that were verified, for noise.corrections"
    return f"{said}; `mlnt init --images {out}` begins with it"


def _animal10n(folder: Path) -> Iterator[Image]:
    for part, split in (("training", "train"), ("testing", "test")):
        names = [name for name in contents(folder / part)[0] if not is_hidden(name)]
        if other := [name for name in names if not re.fullmatch(r"[0-9]_[^/]+\.jpe?g", name, re.IGNORECASE)]:
            raise UserError(
                f"{KEY}: {folder / part}: {len(other)} of {len(names)} files are not called LABEL_NAME.jpg, with a "
                f"label from 0 to 9: {first_few(map(printable, other))}"
            )
        for name in names:
            yield Image(f"{part}/{name}", name[0], split)


FOOD = "Food-101N_release"


def _food101n(folder: Path) -> Iterator[Image]:
    validation = {key for key, right in _verified(folder, "verified_val.tsv") if right}
    for _, row in delimited.rows(folder / FOOD / "meta/imagelist.tsv", KEY, ("class_name/key",)):
        key = row["class_name/key"]
        yield Image(f"{FOOD}/images/{key}", _class_of(key), "val" if key in validation else "train")
    for key in _lines(folder / "food-101/meta/test.txt"):
        yield Image(f"food-101/images/{key}.jpg", _class_of(key), "test")


def _food101n_verified(folder: Path) -> Iterator[Decision]:
    for key, right in _verified(folder, "verified_train.tsv"):
        yield Decision(f"{FOOD}/images/{key}", _class_of(key), "keep" if right else "drop")


def _verified(folder: Path, name: str) -> Iterator[tuple[str, bool]]:
    path = folder / FOOD / "meta" / name
    for line, row in delimited.rows(path, KEY, ("class_name/key", "verification_label")):
        if row["verification_label"] not in ("0", "1"):
            raise UserError(f"{KEY}: {path}, line {line}: found {row}, expected a verification_label of 0 or 1")
        yield row["class_name/key"], row["verification_label"] == "1"


def _class_of(key: str) -> str:
    return key.partition("/")[0]


def _mini_webvision(folder: Path) -> Iterator[Image]:
    names = [_first_name(line) for line in _lines(folder / "info/synsets.txt")]
    for part, below, split in (
        ("train_filelist_google.txt", "", "train"),
        ("val_filelist.txt", "val_images_256/", "test"),
    ):
        for line in _lines(folder / "info" / part):
            path, _, number = line.rpartition(" ")
            if not path or not number.isdecimal() or int(number) >= len(names):
                raise UserError(
                    f"{KEY}: {folder / 'info' / part}: found {line!r}, expected an image and a label from 0 to "
                    f"{len(names) - 1}"
                )
            if int(number) < WEBVISION_CLASSES:
                yield Image(below + path, names[int(number)], split)


def _tiny_imagenet(folder: Path) -> Iterator[Image]:
    words = {line.partition("\t")[0]: _first_name(line.replace("\t", " ")) for line in _lines(folder / "words.txt")}
    classes = {wnid: words.get(wnid, wnid) for wnid in _lines(folder / "wnids.txt")}
    for wnid, label in classes.items():
        for name in contents(folder / "train" / wnid / "images")[0]:
            if not is_hidden(name):
                yield Image(f"train/{wnid}/images/{name}", label, "train")
    annotations = folder / "val/val_annotations.txt"
    for line in _lines(annotations):
        name, wnid = (*line.split("\t"), "")[:2]
        if wnid not in classes:
            raise UserError(
                f"{KEY}: {annotations}: found {line!r}, expected an image and a class of wnids.txt, with tabs between"
            )
        yield Image(f"val/images/{name}", classes[wnid], "test")


def _first_name(line: str) -> str:
    """`n01440764 tench, Tinca tinca` → `n01440764 tench`."""
    return line.partition(",")[0].strip()


def _lines(path: Path) -> list[str]:
    """Those that are not empty."""
    try:
        with readable(path, KEY):
            return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise UserError(f"{KEY}: {path}: not readable as text: {error}") from error


LAYOUTS: dict[str, Layout] = {
    "animal10n": Layout("Animal-10N", ("training", "testing"), _animal10n),
    "food101n": Layout(
        "Food-101N, beside Food-101 with its test images",
        (
            *(f"{FOOD}/meta/{name}.tsv" for name in ("imagelist", "verified_train", "verified_val")),
            "food-101/meta/test.txt",
        ),
        _food101n,
        _food101n_verified,
    ),
    "mini-webvision": Layout(
        "WebVision 1.0",
        ("info/synsets.txt", "info/train_filelist_google.txt", "info/val_filelist.txt", "google", "val_images_256"),
        _mini_webvision,
    ),
    "tiny-imagenet": Layout(
        "Tiny-ImageNet",
        ("wnids.txt", "words.txt", "train", "val/val_annotations.txt", "val/images"),
        _tiny_imagenet,
    ),
}
