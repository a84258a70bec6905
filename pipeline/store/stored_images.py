"""The images in data/dataset.h5, which many stages do without."""

from __future__ import annotations

from pathlib import Path
from threading import Lock
from typing import Any, overload

import h5py
import numpy as np
from numpy.typing import NDArray

from pipeline.store import hdf5


class StoredImages:
    """Stands in for the array of images [N, C, H, W]: it is read, as a whole, when the first image is wanted.

    The file stays open until then, so that one that takes its place is not read.

    Attributes:
        shape: [N, C, H, W].
    """

    def __init__(self, path: Path) -> None:
        """
        Raises:
            UserError: the file is damaged.
        """
        self._path = path
        self._lock = Lock()
        self._pixels: NDArray[np.uint8] | None = None
        with hdf5.reading(path):
            self._file = h5py.File(path, "r", locking=False)
            count, channels, height, width = self._file["images"].shape
        self.shape: tuple[int, int, int, int] = (count, channels, height, width)

    def __len__(self) -> int:
        return self.shape[0]

    @overload
    def __getitem__(self, rows: int) -> NDArray[np.uint8]: ...

    @overload
    def __getitem__(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]: ...

    def __getitem__(self, rows: int | NDArray[np.int64]) -> NDArray[np.uint8]:
        """One image [C, H, W], or some [n, C, H, W].

        Raises:
            UserError: the file is damaged.
        """
        found: NDArray[np.uint8] = self.read()[rows]
        return found

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.array(self.read(), dtype=dtype, copy=copy)

    def read(self) -> NDArray[np.uint8]:
        """All of them, uint8 [N, C, H, W]; the same array each time.

        Raises:
            UserError: the file is damaged.
        """
        with self._lock:
            if self._pixels is None:
                with hdf5.reading(self._path):
                    self._pixels = self._file["images"][:]
                self._file.close()
        return self._pixels
