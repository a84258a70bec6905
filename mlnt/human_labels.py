"""CIFAR-10N (Wei et al. 2022): the human labels of CIFAR-10's training images.

The label file is a pickle from the internet. It is read by an unpickler that can build arrays, dicts, lists,
strings and numbers and refuses everything else, so that opening it runs nothing.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from mlnt.noise import Labels

LABEL_SETS = ("aggre_label", "random_label1", "random_label2", "random_label3", "worse_label")

_NUMBERS = ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f4", "f8")


class _DataType:
    """Stands in for `numpy.dtype`, whose own unpickling believes whatever flags the file gives."""

    def __init__(self, code: str, *_: Any) -> None:
        if code not in _NUMBERS:
            raise ValueError(f"it holds values of type {code!r}, expected numbers")
        self.code = code
        self.order = "<"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = {"<": "<", ">": ">", "|": "<", "=": "="}[state[1]]

    def read(self, data: bytes) -> np.ndarray:
        return np.frombuffer(data, np.dtype(self.order + self.code))


class _Array:
    """Stands in for `numpy.ndarray`."""

    values: np.ndarray

    def __setstate__(self, state: tuple[int, tuple[int, ...], _DataType, bool, bytes]) -> None:
        _, shape, data_type, is_fortran, data = state
        self.values = data_type.read(data).reshape(shape, order="F" if is_fortran else "C")


def _encode(text: str, encoding: str) -> bytes:
    """How protocol 2 writes bytes."""
    if encoding != "latin1":
        raise ValueError(f"it holds text in {encoding!r}, expected latin1")
    return text.encode("latin1")


_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "dtype"): _DataType,
    ("numpy", "ndarray"): _Array,
    ("_codecs", "encode"): _encode,
}
for _module in ("numpy.core.multiarray", "numpy._core.multiarray"):
    _ALLOWED[_module, "_reconstruct"] = lambda *_: _Array()
    _ALLOWED[_module, "scalar"] = lambda data_type, data: data_type.read(data)[0].item()


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it holds a {module}.{name}, which label files do not need")
        return _ALLOWED[module, name]


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a pickled dict, plain or inside a zip as `torch.save` writes it.

    Raises:
        ValueError: no such pickle, or one that holds more than arrays, lists, text and numbers.
        OSError: the file cannot be read.
    """
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                inner = [name for name in archive.namelist() if name.endswith("/data.pkl")]
                if len(inner) != 1:
                    raise ValueError("expected one data.pkl in the archive")
                data = archive.read(inner[0])
        else:
            data = path.read_bytes()
        content = _ArrayUnpickler(io.BytesIO(data)).load()
        if not isinstance(content, dict):
            raise ValueError(f"expected a dict of arrays, found {type(content).__name__}")
        return {str(k): v.values if isinstance(v, _Array) else np.asarray(v) for k, v in content.items()}
    except OSError:
        raise
    except Exception as error:  # a damaged pickle can raise anything
        raise ValueError(f"not a readable label file: {error}") from error


def load_human_labels(path: Path, label_set: str) -> tuple[Labels, Labels]:
    """(clean labels, human labels), int64 [50000] each, in torchvision's order.

    Raises:
        ValueError: not such a file, or without that label set; names what was found.
    """
    arrays = load_arrays(path)
    for key in ("clean_label", label_set):
        if key not in arrays:
            raise ValueError(f"it has no {key!r}, only {', '.join(sorted(arrays))}")
        if arrays[key].ndim != 1 or arrays[key].dtype.kind not in "iu":
            raise ValueError(f"expected a list of integers in {key!r}, found {arrays[key].dtype} {arrays[key].shape}")
    clean, human = arrays["clean_label"].astype(np.int64), arrays[label_set].astype(np.int64)
    if len(clean) != len(human):
        raise ValueError(f"{label_set!r} has {len(human)} labels, 'clean_label' {len(clean)}")
    return clean, human
