from __future__ import annotations

import os
import pickle
import subprocess
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.sources.human_labels import LABEL_SETS, load_arrays, load_human_labels

CLEAN = np.array([0, 1, 2, 3, 9], dtype=np.int64)


def content() -> dict[str, Any]:
    """A small label file of CIFAR-10N's shape; every set differs."""
    return {"clean_label": CLEAN} | {name: (CLEAN + i + 1) % 10 for i, name in enumerate(LABEL_SETS)}


def as_plain(path: Path, value: object, protocol: int = 2) -> Path:
    path.write_bytes(pickle.dumps(value, protocol=protocol))
    return path


def as_zip(path: Path, value: object, name: str = "archive/data.pkl") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, pickle.dumps(value, protocol=2))
        archive.writestr("archive/version", "3\n")
    return path


def as_torch(path: Path, value: object) -> Path:
    torch.save(value, path)
    return path


@pytest.mark.parametrize("write", [as_plain, as_zip, as_torch])
@pytest.mark.parametrize("label_set", LABEL_SETS)
def test_every_label_set_is_read(tmp_path: Path, write: Any, label_set: str) -> None:
    clean, human = load_human_labels(write(tmp_path / "labels.pt", content()), label_set)
    assert clean.dtype == human.dtype == np.int64
    assert np.array_equal(clean, CLEAN)
    assert np.array_equal(human, content()[label_set])


@pytest.mark.parametrize("protocol", [0, 2, 3, 4])
@pytest.mark.parametrize("dtype", ["int64", "int32", "uint8", ">i4"])
def test_arrays_of_any_integer_type_are_read(tmp_path: Path, protocol: int, dtype: str) -> None:
    value = {key: array.astype(dtype) for key, array in content().items()}
    _, human = load_human_labels(as_plain(tmp_path / "labels.pkl", value, protocol), "worse_label")
    assert np.array_equal(human, content()["worse_label"])


def test_files_of_older_numpy_are_read(tmp_path: Path) -> None:
    # NumPy 1 called its module numpy.core, and pickled scalars and lists occur beside arrays.
    data = pickle.dumps(content() | {"rate": np.float64(0.4021), "note": "x", "list": [1, 2]}, protocol=2)
    old = data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert old != data
    path = tmp_path / "labels.pkl"
    path.write_bytes(old)
    arrays = load_arrays(path)
    assert np.array_equal(arrays["worse_label"], content()["worse_label"])
    assert arrays["rate"] == 0.4021
    assert arrays["list"].tolist() == [1, 2]


class Attack:
    """Calls `function(argument)` when an ordinary unpickler loads it."""

    def __init__(self, function: Any, argument: Any) -> None:
        self.call = (function, (argument,))

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("write", [as_plain, as_zip])
@pytest.mark.parametrize("where", ["alone", "value", "key"])
@pytest.mark.parametrize(
    ("function", "name"),  # in protocol 2, which names modules as Python 2 does
    [(os.system, "posix.system"), (subprocess.check_output, "commands.check_output"), (eval, "__builtin__.eval")],
)
def test_code_in_the_file_is_refused_and_never_runs(
    tmp_path: Path, write: Any, where: str, function: Any, name: str
) -> None:
    marker = tmp_path / "executed"
    argument = f"__import__('pathlib').Path({str(marker)!r}).touch()" if function is eval else f"touch {marker}"
    attack = Attack(function, [*argument.split()] if function is subprocess.check_output else argument)
    value = {"alone": attack, "value": content() | {"x": attack}, "key": {attack: CLEAN}}[where]
    path = write(tmp_path / "labels.pt", value)
    with pytest.raises(ValueError, match=f"not a readable label file: it holds a {name}"):
        load_human_labels(path, "worse_label")
    assert not marker.exists()
    # The attack is a real one: an ordinary unpickler runs it.
    pickle.loads(pickle.dumps(attack))  # noqa: S301
    assert marker.exists()


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (OrderedDict(content()), "collections.OrderedDict"),
        ({"clean_label": Path("x")}, "Path"),
        ({"clean_label": np.random.default_rng}, "default_rng"),
        ({"clean_label": getattr}, "getattr"),
    ],
)
def test_even_harmless_objects_are_refused_by_name(tmp_path: Path, value: object, name: str) -> None:
    with pytest.raises(ValueError, match=rf"it holds a [\w.]*{name}, expected arrays, lists, dicts, text and numbers"):
        load_arrays(as_plain(tmp_path / "labels.pkl", value))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"worse_label": None}, "it has no 'worse_label', only aggre_label, clean_label, random_label1"),
        ({"clean_label": None}, "it has no 'clean_label', only aggre_label, random_label1"),
        ({"worse_label": CLEAN[:3]}, "'worse_label' has 3 labels, 'clean_label' 5"),
        ({"worse_label": CLEAN.astype(float)}, r"expected a list of integers in 'worse_label', found float64 \(5,\)"),
        ({"clean_label": CLEAN.reshape(5, 1)}, r"expected a list of integers in 'clean_label', found int64 \(5, 1\)"),
        ({"worse_label": "text"}, "expected a list of integers in 'worse_label'"),
    ],
)
def test_wrong_contents_are_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    value = {key: array for key, array in (content() | change).items() if array is not None}
    with pytest.raises(ValueError, match=message):
        load_human_labels(as_plain(tmp_path / "labels.pkl", value), "worse_label")


def test_other_pickles_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected a dict of arrays, found list"):
        load_arrays(as_plain(tmp_path / "labels.pkl", [1, 2]))


def test_other_archives_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected one data\.pkl in the archive"):
        load_arrays(as_zip(tmp_path / "labels.zip", content(), name="other.txt"))


WHOLE = pickle.dumps(content(), protocol=2)
DTYPE_STATE = b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"<!DOCTYPE html><html>404: Not Found</html>",
        b"not a pickle",
        bytes(range(256)),
        b"\x80\xff.",  # a protocol of the future
        b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x04\x00\x00\x00nope\x86R.",  # an encoding nobody has
        b"\x80\x04\x8e" + b"\xff" * 8 + b".",  # more bytes than there is memory
        WHOLE.replace(b"i8", b"i9"),
        WHOLE.replace(b"K\x05\x85", b"K\x06\x85"),  # more elements than data
        WHOLE.replace(b"numpy\ndtype", b"numpy\nndarray"),
    ],
    ids=["empty", "html", "text", "bytes", "protocol", "encoding", "huge", "dtype", "shape", "class"],
)
def test_damaged_files_are_value_errors(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "labels.pt"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"."):
        load_human_labels(path, "worse_label")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"clean_label": np.array(["a", "b"])}, "it holds values of type 'U1', expected numbers"),
        ({"clean_label": np.array([{}, None])}, "it holds values of type 'O8', expected numbers"),
        ({"clean_label": np.array(["2020-01-01"], dtype="M8[D]")}, "it holds values of type 'M8', expected numbers"),
    ],
)
def test_arrays_of_other_things_than_numbers_are_refused(
    tmp_path: Path, value: dict[str, np.ndarray], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        load_arrays(as_plain(tmp_path / "labels.pkl", value))


def test_only_the_encoding_of_protocol_2_is_known(tmp_path: Path) -> None:
    # Looking another one up would import a module of the file's choice.
    path = tmp_path / "labels.pkl"
    path.write_bytes(WHOLE.replace(b"latin1", b"utf_16"))
    with pytest.raises(ValueError, match="it holds text in 'utf_16', expected latin1"):
        load_arrays(path)


def test_files_cut_off_anywhere_are_value_errors(tmp_path: Path) -> None:
    path = tmp_path / "labels.pt"
    for size in range(len(WHOLE)):
        path.write_bytes(WHOLE[:size])
        with pytest.raises(ValueError, match="not a readable label file"):
            load_arrays(path)


def test_flags_of_a_data_type_cannot_be_forged(tmp_path: Path) -> None:
    # NumPy believes the flags that a pickle gives: integers that claim to be objects are addresses.
    assert WHOLE.count(DTYPE_STATE + b"\x00") == 1
    path = tmp_path / "labels.pt"
    path.write_bytes(WHOLE.replace(DTYPE_STATE + b"\x00", DTYPE_STATE + b"\x3f"))
    try:
        arrays = load_arrays(path)
    except ValueError:
        return
    assert not any(array.dtype.hasobject for array in arrays.values())


def test_damaged_archives_are_value_errors(tmp_path: Path) -> None:
    path = as_zip(tmp_path / "labels.pt", content())
    data = bytearray(path.read_bytes())
    at = data.index(b"clean_label")
    data[at : at + 5] = b"-----"  # the checksum no longer fits
    path.write_bytes(bytes(data))
    with pytest.raises(ValueError, match="not a readable label file"):
        load_arrays(path)


def test_an_archive_that_cannot_be_unpacked_within_bounds_is_refused(tmp_path: Path) -> None:
    """Of bzip2 a kilobyte can be a gibibyte, whatever the archive says."""
    path = tmp_path / "labels.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("labels/data.pkl", WHOLE)
    with pytest.raises(ValueError, match=r"data\.pkl is compressed by method 12, expected deflate"):
        load_arrays(path)


def test_lists_of_text_become_no_wider_than_they_are(tmp_path: Path) -> None:
    path = as_plain(tmp_path / "labels.pkl", {"a": ["x" * 20_000, *["y"] * 20_000]})  # type: ignore[dict-item]
    assert load_arrays(path)["a"].nbytes < 1_000_000
