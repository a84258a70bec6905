"""What people name to be predicted: image files, folders with images, CSV files that list some."""

from __future__ import annotations

import os
import tarfile
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from pipeline.base import console
from pipeline.base.errors import UserError
from pipeline.decoding.decode import EXTENSIONS
from pipeline.sources.imagefolder import BESIDE_IMAGES
from pipeline.sources.labelled_files import csv_list
from pipeline.sources.places.folder import contents, first_few, is_hidden, printable


def image_files(named: Iterable[str | Path]) -> list[str]:
    """The paths of all images that are named, each once: as they open from the current folder.

    A file is taken whatever its name, a folder with all in it that ends like an image; of a CSV file the column `path`,
    relative to it.

    Raises:
        UserError: something is not there, a folder has no images, or a CSV file cannot be read or lists none.
    """
    try:
        return list(dict.fromkeys(path for each in named for path in _of(Path(each))))
    except UserError as error:
        raise UserError(str(error).replace("data.root: ", "", 1)) from None


def _of(path: Path) -> Iterator[str]:
    if os.path.isdir(path):  # noqa: PTH112 (pathlib raises for a long path)
        yield from _of_folder(path)
    elif not os.path.isfile(path):  # noqa: PTH113
        raise UserError(f"{path}: no such file or folder")
    elif path.suffix.lower() == ".csv":
        if not (names := csv_list.paths(path)):
            raise UserError(f"{path}: lists no images; expected a row for each, with its path")
        yield from (str(path.parent / name) for name in names)
    elif not path.name.lower().endswith(EXTENSIONS) and (zipfile.is_zipfile(path) or tarfile.is_tarfile(path)):
        raise UserError(f"{path}: found an archive, expected images or a folder of them; unpack it first")
    else:
        yield str(path)


def _of_folder(folder: Path) -> Iterator[str]:
    found = [name for name in contents(folder)[0] if not is_hidden(name)]
    images = [name for name in found if name.lower().endswith(EXTENSIONS)]
    if others := [name for name in found if not name.lower().endswith((*EXTENSIONS, *BESIDE_IMAGES))]:
        console.warn(
            f"{folder}: {len(others)} files are left out, as their names do not end in {' '.join(EXTENSIONS)}: "
            f"{first_few(map(printable, others))}"
        )
    if not images:
        raise UserError(f"{folder}: no images in it; their names end in {' '.join(EXTENSIONS)}")
    yield from (str(folder / name) for name in images)
