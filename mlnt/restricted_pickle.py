"""Pickles from the internet, read by an unpickler that builds arrays, dicts, lists, text and numbers and nothing else.

Whatever else a pickle asks for is refused by its name before it exists, so that opening one runs nothing.
"""

from __future__ import annotations

import io
import pickle
from typing import Any

import numpy as np

_NUMBERS = ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f4", "f8")

Value = np.ndarray | list[Any] | str | bytes | int | float
"""What the dict of a pickle may hold; a list holds text, bytes and numbers alone."""

_EXPECTED = "expected arrays, lists, dicts, text and numbers"


class _DataType:
    """Stands in for `numpy.dtype`, whose own unpickling believes whatever flags the file gives."""

    def __init__(self, code: str, *_: Any) -> None:
        if code not in _NUMBERS:
            raise ValueError(f"it holds values of type {code!r}, expected numbers")
        self.code = code
        self.order = "<"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = {"<": "<", ">": ">", "|": "<", "=": "="}[state[1]]

    def read(self, data: bytes | str) -> np.ndarray:
        # Python 2 wrote bytes as text.
        content = data.encode("latin1") if isinstance(data, str) else data
        return np.frombuffer(content, np.dtype(self.order + self.code))


class _Array:
    """Stands in for `numpy.ndarray`."""

    values: np.ndarray

    def __setstate__(self, state: tuple[int, tuple[int, ...], _DataType, bool, bytes | str]) -> None:
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


class _Unpickler(pickle._Unpickler):
    """In Python, for its memo is a dict: in the C one twelve bytes that name a large memo index take gigabytes."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it holds a {module}.{name}, {_EXPECTED}")
        return _ALLOWED[module, name]


def load_dict(data: bytes) -> dict[str, Value]:
    """The dict that a pickle of Python 2 or 3 holds.

    Raises:
        ValueError: a damaged pickle, one that holds another thing than a dict, or a dict that holds more than arrays,
            flat lists, text, bytes and numbers.
    """
    try:
        content = _Unpickler(io.BytesIO(data), encoding="latin1").load()
        if not isinstance(content, dict):
            raise ValueError(f"expected a dict of arrays, found {type(content).__name__}")
        return {str(key): _plain(key, value) for key, value in content.items()}
    except Exception as error:  # a damaged pickle can raise anything
        raise ValueError(str(error) or type(error).__name__) from error


def _plain(key: object, value: object) -> Value:
    if isinstance(value, _Array):
        return value.values
    # Flat lists alone: a list that holds another one ten times, which holds a third ten times …, is small here and
    # huge as an array.
    for item in value if isinstance(value, list) else [value]:
        if not isinstance(item, str | bytes | int | float):
            raise ValueError(f"it holds a {type(item).__name__} in {key!r}, {_EXPECTED}")
    return value  # type: ignore[return-value]
