"""`data.storage: files`: images that stay where they are, listed in the data set and decoded when they are wanted."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from mlnt.images.statistics import PixelSums
from pipeline.base import files
from pipeline.base.errors import UserError
from pipeline.decoding.decode import ImageOptions, UndecodableError, decode_image


class ImageFile(NamedTuple):
    """A file below the root, and its size in bytes when the data set was made."""

    name: str
    size: int


@dataclass(frozen=True)
class FileDecoder:
    """Decodes a file in the same way as when the data set was made.

    Attributes:
        shape: the shape of every image, [C, H, W].
    """

    root: str
    shape: tuple[int, int, int]
    options: ImageOptions

    def __call__(self, file: ImageFile) -> NDArray[np.uint8]:
        """Decode one file to uint8 [C, H, W].

        Raises:
            UserError: the file has changed since the data set was made, or cannot be read or decoded.
        """
        path = Path(self.root, file.name)
        try:
            # A pipe, which would never end, is opened without waiting for its other end.
            with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as opened:  # noqa: PTH123 (of a handle)
                about = os.fstat(opened.fileno())
                if not stat.S_ISREG(about.st_mode):
                    raise OSError("it is no file")
                if about.st_size != file.size:
                    raise UserError(self._changed(path, f"found {about.st_size} bytes, expected {file.size}"))
                content = opened.read()
            image = decode_image(content, self.options).pixels
        except (OSError, UndecodableError) as error:
            raise UserError(self._changed(path, f"it cannot be read ({error})")) from error
        if image.shape != self.shape:
            raise UserError(self._changed(path, f"found an image of shape {image.shape}, expected {self.shape}"))
        return image

    def _changed(self, path: Path, how: str) -> str:
        remedy = "put it back, or make the data set anew with `dvc repro`"
        if Path(self.root).parent == files.raw().absolute():  # which no stage depends on
            remedy = f"run `mlnt download`, which unpacks the archive again where there is no {self.root}"
        return f"data.root: {path} has changed since the data set was made: {how}; {remedy}"


@dataclass(frozen=True)
class ImageFiles:
    """Stands in for the array of images [N, C, H, W].

    Attributes:
        sizes: of the files, in bytes [N].
        digests: of what each image shows, 64 bits [N].
        sums: over the source's training images.
    """

    names: Sequence[str]
    sizes: NDArray[np.int64]
    digests: NDArray[np.uint64]
    decode: FileDecoder
    sums: PixelSums

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return (len(self), *self.decode.shape)

    def __len__(self) -> int:
        return len(self.names)

    def file(self, row: int) -> ImageFile:
        return ImageFile(self.names[row], int(self.sizes[row]))

    @overload
    def __getitem__(self, rows: int) -> NDArray[np.uint8]: ...

    @overload
    def __getitem__(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]: ...

    def __getitem__(self, rows: int | NDArray[np.int64]) -> NDArray[np.uint8]:
        """Decode one image [C, H, W], or some [n, C, H, W], in this process. `mlnt.images.files` reads many in others.

        Raises:
            UserError: a file has changed, or cannot be read or decoded.
        """
        if isinstance(rows, np.ndarray):
            return np.stack([self.decode(self.file(int(row))) for row in rows])
        return self.decode(self.file(rows))
