from __future__ import annotations

import pickle
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from pipeline.sources.restricted_pickle import load_dict

# What Python 2 writes for {"data": array([[1, 200]], uint8), "labels": [3], "batch_label": "one"}.
PYTHON_2 = (
    b"\x80\x02}q\x01(U\x04dataq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\nq\x04K\x00\x85U\x01b\x87"
    b"Rq\x05(K\x01K\x01K\x02\x86cnumpy\ndtype\nq\x06U\x02u1K\x00K\x01\x87Rq\x07(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff"
    b"\xff\xff\xffK\x00tb\x89U\x02\x01\xc8tbU\x06labelsq\x08]q\x09K\x03aU\x0bbatch_labelq\nU\x03oneu."
)


def test_pickles_of_python_2_are_read() -> None:
    content = load_dict(PYTHON_2)
    assert list(content) == ["data", "labels", "batch_label"]
    expected = pickle.loads(PYTHON_2, encoding="latin1")  # noqa: S301
    for key, value in expected.items():
        found: Any = content[key]
        assert type(found) is type(value)
        assert np.array_equal(found, value)
    data: Any = content["data"]
    assert (data.dtype, data.tolist()) == (np.uint8, [[1, 200]])


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    "value", [np.arange(6, dtype=np.int16).reshape(2, 3), ["a", "größe"], [1, 2.5, b"x"], "text", b"\xff", 7, 0.5, True]
)
def test_plain_values_come_back_as_they_were(value: Any, protocol: int) -> None:
    if protocol == 5 and isinstance(value, np.ndarray):
        pytest.skip("protocol 5 has another function for arrays, which no file that is meant here uses")
    found: Any = load_dict(pickle.dumps({"key": value}, protocol))["key"]
    assert type(found) is type(value)
    assert np.array_equal(found, value)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ({"x": None}, "it holds a NoneType in 'x'"),
        ({"x": {1, 2}}, "set"),
        ({"x": (1, 2)}, "it holds a tuple in 'x'"),
        ({"x": {"y": 1}}, "it holds a dict in 'x'"),
        ({"x": [1, [2]]}, "it holds a list in 'x'"),
        ({"x": [1, None]}, "it holds a NoneType in 'x'"),
        ({"x": 1j}, "complex"),
        ({"x": np.float64}, "float64"),
        ([1, 2], "expected a dict of arrays, found list"),
        (np.zeros(3), "expected a dict of arrays, found _Array"),
    ],
)
def test_anything_else_is_refused_by_name(value: Any, kind: str) -> None:
    with pytest.raises(ValueError, match=kind):
        load_dict(pickle.dumps(value, 2))


def test_lists_that_multiply_are_refused() -> None:
    """Eight lists of ten references each: some hundred bytes, and a hundred million numbers as an array."""
    lists: list[Any] = [0]
    for _ in range(8):
        lists = [lists] * 10
    data = pickle.dumps({"x": lists}, 2)
    assert len(data) < 1000
    with pytest.raises(ValueError, match="it holds a list in 'x'"):
        load_dict(data)


LOAD = """
import resource, sys
import numpy
from mlnt.restricted_pickle import load_dict
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(load_dict(b"\\x80\\x02}U\\x01xK\\x01sr\\xff\\xff\\xff\\x0f."))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(sys.platform == "darwin", reason="ru_maxrss has another unit")
def test_a_memo_index_takes_no_memory() -> None:
    """Python's own unpickler makes a table of 4 GiB for it."""
    done = subprocess.run(
        [sys.executable, "-c", LOAD],
        capture_output=True,
        text=True,
        check=True,
    )
    content, kibibytes = done.stdout.splitlines()
    assert content == "{'x': 1}"
    assert int(kibibytes) < 50_000


def bomb(data: bytes) -> bytes:
    """Where `data` says TUPLE, a tuple of the same tuple twice, and so on: four bytes a level, and twice the parts."""
    levels = b"".join(b"h%bh%b\x86q%b" % (bytes([i]), bytes([i]), bytes([i + 1])) for i in range(60))
    return b"\x80\x02(K\x01q\x00" + levels + b"l" + data.replace(b"TUPLE", b"h\x3c") + b"."


@pytest.mark.parametrize(
    ("data", "refused"),
    [
        (b"\x80\x05}(\x96\x00\x00\x00\xc0\x00\x00\x00\x00", "150"),  # BYTEARRAY8 of 3 GiB
        (bomb(b"}(TUPLEK\x01u"), "a key that is a tuple"),
        (bomb(b"(TUPLEI1\nd"), "a key that is a tuple"),
        (bomb(b"}(K\x01cnumpy\ndtype\nTUPLE\x85Ru"), "values of type a tuple"),
        (bomb(b"}(K\x01c_codecs\nencode\nX\x01\x00\x00\x00aTUPLE\x86Ru"), "text in a tuple"),
        (bomb(b"}(K\x01cnumpy\ndtype\nX\x02\x00\x00\x00u1\x85RK\x03TUPLE\x86bu"), "byte order a tuple"),
        (b"\x80\x02}(K\x012u.", "50"),  # DUP, which doubles in one byte
        (b"\x80\x04\x8f.", "143"),  # a set
        (b"\x80\x02}q\x00(X\x01\x00\x00\x00ah\x00u.", "it holds a dict in 'a'"),  # itself
    ],
)
def test_bombs_are_refused_at_once(data: bytes, refused: str) -> None:
    with pytest.raises(ValueError, match=refused) as caught:
        load_dict(data)
    assert len(str(caught.value)) < 200


def test_long_names_are_cut_in_messages() -> None:
    with pytest.raises(ValueError, match=r"it holds a NoneType in .a{40}., expected") as caught:
        load_dict(pickle.dumps({"a" * 10_000: None}, 2))
    assert len(str(caught.value)) < 200
