"""Pickles from the internet, read by an unpickler that builds arrays, dicts, lists, text and numbers and nothing else.

Whatever else a pickle asks for is refused by its name before it exists, so that opening one runs nothing.
"""

from __future__ import annotations

import io
import pickle
from typing import Any, ClassVar

import numpy as np

_ORDERS = {"<": "<", ">": ">", "|": "<", "=": "="}
_NUMBERS = ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f4", "f8")

Value = np.ndarray | list[Any] | str | bytes | int | float
"""What the dict of a pickle may hold; a list holds text, bytes and numbers alone."""

_EXPECTED = "expected arrays, lists, dicts, text and numbers"


class _DataType:
    """Stands in for `numpy.dtype`, whose own unpickling believes whatever flags the file gives."""

    def __init__(self, code: object, *_: object) -> None:
        if not isinstance(code, str) or code not in _NUMBERS:
            raise ValueError(f"it holds values of type {_shown(code)}, expected numbers")
        self.code = code
        self.order = "<"

    def __setstate__(self, state: tuple[object, ...]) -> None:
        order = state[1]
        if not isinstance(order, str) or order not in _ORDERS:
            raise ValueError(f"it holds numbers of byte order {_shown(order)}")
        self.order = _ORDERS[order]

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


def _encode(text: object, encoding: object) -> bytes:
    """How protocol 2 writes bytes."""
    if not isinstance(text, str) or encoding != "latin1":
        raise ValueError(f"it holds text in {_shown(encoding)}, expected latin1")
    return text.encode("latin1")


def _shown(value: object) -> str:
    """Text in quotes, cut; of everything else, which may be as large as it likes, the type."""
    return repr(value[:40]) if isinstance(value, str) else f"a {type(value).__name__}"


class _KeyedDict(dict[str | bytes | int, Any]):
    """A dict that takes no tuple for a key: one whose parts are each other's parts takes for ever to hash."""

    def __setitem__(self, key: object, value: object) -> None:
        if not isinstance(key, str | bytes | int):
            raise ValueError(f"it holds a key that is {_shown(key)}, expected text")
        super().__setitem__(key, value)


_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "dtype"): _DataType,
    ("numpy", "ndarray"): _Array,
    ("_codecs", "encode"): _encode,
}
for _module in ("numpy.core.multiarray", "numpy._core.multiarray"):
    _ALLOWED[_module, "_reconstruct"] = lambda *_: _Array()
    _ALLOWED[_module, "scalar"] = lambda data_type, data: data_type.read(data)[0].item()


_OPERATIONS = (
    pickle.PROTO, pickle.FRAME, pickle.STOP, pickle.MARK,
    pickle.NONE, pickle.NEWTRUE, pickle.NEWFALSE,
    pickle.INT, pickle.BININT, pickle.BININT1, pickle.BININT2, pickle.LONG, pickle.LONG1, pickle.LONG4,
    pickle.FLOAT, pickle.BINFLOAT,
    pickle.STRING, pickle.BINSTRING, pickle.SHORT_BINSTRING,
    pickle.UNICODE, pickle.BINUNICODE, pickle.SHORT_BINUNICODE, pickle.BINUNICODE8,
    pickle.BINBYTES, pickle.SHORT_BINBYTES, pickle.BINBYTES8,
    pickle.EMPTY_DICT, pickle.DICT, pickle.SETITEM, pickle.SETITEMS,
    pickle.EMPTY_LIST, pickle.LIST, pickle.APPEND, pickle.APPENDS,
    pickle.EMPTY_TUPLE, pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3,
    pickle.GLOBAL, pickle.STACK_GLOBAL, pickle.REDUCE, pickle.BUILD,
    pickle.GET, pickle.BINGET, pickle.LONG_BINGET, pickle.PUT, pickle.BINPUT, pickle.LONG_BINPUT, pickle.MEMOIZE,
)  # fmt: skip


class _Unpickler(pickle._Unpickler):
    """In Python, for its memo is a dict: in the C one twelve bytes that name a large memo index take gigabytes.

    It knows only the operations that such values are written with. Among the others is BYTEARRAY8, which makes room
    for as many bytes as it is told.
    """

    dispatch: ClassVar[dict[int, Any]] = {code[0]: pickle._Unpickler.dispatch[code[0]] for code in _OPERATIONS}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it holds a {module}.{name}, {_EXPECTED}")
        return _ALLOWED[module, name]

    def load_empty_dictionary(self: Any) -> None:
        self.append(_KeyedDict())

    dispatch[pickle.EMPTY_DICT[0]] = load_empty_dictionary

    def load_filled_dict(self: Any) -> None:
        content, items = _KeyedDict(), self.pop_mark()
        for key, value in zip(items[::2], items[1::2], strict=True):
            content[key] = value
        self.append(content)

    dispatch[pickle.DICT[0]] = load_filled_dict


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
            kind = "dict" if isinstance(item, dict) else type(item).__name__
            raise ValueError(f"it holds a {kind} in {_shown(key)}, {_EXPECTED}")
    return value  # type: ignore[return-value]
