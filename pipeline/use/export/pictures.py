"""The image files of an export: the person's own where there are some, else written out as PNG."""

from __future__ import annotations

import os
import shutil
from pathlib import Path, PurePosixPath

from pipeline.sources.places.folder import require
from pipeline.use.export.policy import LabelExport, Sample

WRITTEN = "images"
"""The folder for the images of a data set without files."""


class Pictures:
    """Where the images of the samples are.

    Attributes:
        folder: that the names of the data set's files start from; None where it has none.

    Raises:
        UserError: files are missing.
    """

    def __init__(self, export: LabelExport) -> None:
        self._export = export
        self._width = len(str(len(export.dataset.names)))
        place = export.dataset.folder
        self.folder: Path | None = None if place is None else Path(os.path.realpath(place))
        if self.folder is not None:
            require(self.folder, [each.name for each in export.samples])

    def path(self, sample: Sample, start: str = ".") -> str:
        """The image's path from the folder `start` of the export: of its own file, or of one that is written now."""
        place = self._export.place
        if self.folder is not None:
            return os.path.relpath(self.folder / sample.name, place / start)
        written = Path(WRITTEN) / self._numbered(sample)
        self._write(sample, self._export.folder / written)
        return os.path.relpath(place / written, place / start)

    def put(self, sample: Sample, folder: Path) -> str:
        """Copy the image into a folder of the export, and return what it is called there: its number.

        It is no link: who edits the export in place would edit the original.
        """
        name = self._numbered(sample)
        target = folder / name
        folder.mkdir(exist_ok=True)
        if self.folder is None:
            self._write(sample, target)
            return name
        shutil.copyfile(self.folder / sample.name, target)
        return name

    def _numbered(self, sample: Sample) -> str:
        suffix = ".png" if self.folder is None else PurePosixPath(sample.name).suffix
        return f"{sample.row:0{self._width}}{suffix}"

    def _write(self, sample: Sample, target: Path) -> None:
        from PIL import Image

        pixels = self._export.dataset.images[sample.row]
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)).save(target, format="PNG")
