from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch

from pipeline.params.schema import Noise
from pipeline.sources import human_labels
from pipeline.sources.human_labels import load_human_labels

LABEL_SETS = [name for name, found in human_labels.LABEL_SETS.items() if found.file == "CIFAR-10_human.pt"]
CLEAN = np.array([0, 1, 2, 3, 9], dtype=np.int64)


def content() -> dict[str, Any]:
    """A small label file of CIFAR-10N's shape; every set differs."""
    return {"clean_label": CLEAN} | {name: (CLEAN + i + 1) % 10 for i, name in enumerate(LABEL_SETS)}


def content_100() -> dict[str, Any]:
    """A small label file of CIFAR-100N's shape: two tasks, the coarse one as lists."""
    fine = np.array([19, 29, 0, 11, 1])
    coarse = [11, 15, 4, 14, 1]
    return {
        "clean_label": fine,
        "noisy_label": (fine + 30) % 100,
        "clean_coarse_label": coarse,
        "noisy_coarse_label": coarse[::-1],
    }


def write(path: Path, value: object) -> Path:
    torch.save(value, path)
    return path


@pytest.mark.parametrize("label_set", LABEL_SETS)
def test_every_label_set_is_read(label_set: str, tmp_path: Path) -> None:
    clean, human = load_human_labels(write(tmp_path / "labels.pt", content()), label_set)
    assert clean.dtype == human.dtype == np.int64
    assert np.array_equal(clean, CLEAN)
    assert np.array_equal(human, content()[label_set])


def test_the_schema_has_every_label_set() -> None:
    assert set(get_args(Noise.model_fields["human_labels"].annotation)) == set(human_labels.LABEL_SETS)


@pytest.mark.parametrize("task", ["", "coarse_"])
def test_each_label_set_of_cifar100n_comes_with_its_own_clean_labels(task: str, tmp_path: Path) -> None:
    clean, human = load_human_labels(write(tmp_path / "labels.pt", content_100()), f"noisy_{task}label")
    assert clean.dtype == human.dtype == np.int64
    assert clean.tolist() == list(content_100()[f"clean_{task}label"])
    assert human.tolist() == list(content_100()[f"noisy_{task}label"])


@pytest.mark.parametrize(
    ("value", "label_set", "message"),
    [
        (
            content(),
            "noisy_label",
            r"it has no 'noisy_label', only aggre_label, .*noisy_label is in CIFAR-100_human.pt",
        ),
        (content(), "noisy_coarse_label", r"it has no 'clean_coarse_label', .* is in CIFAR-100_human.pt"),
        (content_100(), "worse_label", r"it has no 'worse_label', only clean_coarse.* is in CIFAR-10_human.pt"),
        (
            {**content_100(), "noisy_coarse_label": [1, 2]},
            "noisy_coarse_label",
            "'noisy_coarse_label' has 2 labels, 'clean_coarse_label' 5",
        ),
    ],
)
def test_the_file_of_the_other_data_set_is_told_from_the_right_one(
    value: dict[str, Any], label_set: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        load_human_labels(write(tmp_path / "labels.pt", value), label_set)


@pytest.mark.parametrize("convert", [np.int32, np.uint8, ">i4", "tensor", "list"])
def test_labels_may_be_integers_of_any_type(convert: Any, tmp_path: Path) -> None:
    others = {"tensor": torch.from_numpy, "list": np.ndarray.tolist}
    value = {key: others[convert](a) if convert in others else a.astype(convert) for key, a in content().items()}
    _, human = load_human_labels(write(tmp_path / "labels.pt", value), "worse_label")
    assert np.array_equal(human, content()["worse_label"])


def test_files_of_numpy_1_are_read(tmp_path: Path) -> None:
    """As the real one: NumPy 1 called its module numpy.core."""
    write(tmp_path / "new.pt", content())
    with zipfile.ZipFile(tmp_path / "new.pt") as new, zipfile.ZipFile(tmp_path / "old.pt", "w") as old:
        for name in new.namelist():
            old.writestr(name, new.read(name).replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert b"numpy.core.multiarray" in (tmp_path / "old.pt").read_bytes()
    _, human = load_human_labels(tmp_path / "old.pt", "worse_label")
    assert np.array_equal(human, content()["worse_label"])


class Attack:
    """Makes a file when an ordinary unpickler loads it."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("plain", [False, True])
def test_code_in_the_file_never_runs(plain: bool, tmp_path: Path) -> None:
    path, marker = tmp_path / "labels.pt", tmp_path / "executed"
    value = content() | {"x": Attack(marker)}
    path.write_bytes(pickle.dumps(value)) if plain else write(path, value)
    with pytest.raises(ValueError, match="not a readable label file"):
        load_human_labels(path, "worse_label")
    assert not marker.exists()
    pickle.loads(pickle.dumps(value))  # noqa: S301 (the attack is a real one)
    assert marker.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"worse_label": None}, "it has no 'worse_label', only aggre_label, clean_label, random_label1"),
        ({"clean_label": None}, "it has no 'clean_label', only aggre_label, random_label1"),
        ({"worse_label": CLEAN[:3]}, "'worse_label' has 3 labels, 'clean_label' 5"),
        (
            {"worse_label": CLEAN.astype(float)},
            r"expected a list of integers in 'worse_label', found float64 \(5,\)",
        ),
        ({"clean_label": CLEAN.reshape(5, 1)}, r"expected a list of integers in 'clean_label', found int64 \(5, 1\)"),
        ({"worse_label": "text"}, "expected a list of integers in 'worse_label'"),
    ],
)
def test_wrong_contents_are_named(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    value = {key: labels for key, labels in (content() | change).items() if labels is not None}
    with pytest.raises(ValueError, match=message):
        load_human_labels(write(tmp_path / "labels.pt", value), "worse_label")


def test_something_else_than_a_dict_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected a dict of arrays, found list"):
        load_human_labels(write(tmp_path / "labels.pt", [1, 2]), "worse_label")


@pytest.mark.parametrize(
    "data",
    [b"", b"<!DOCTYPE html><html>404: Not Found</html>", bytes(range(256)), pickle.dumps([1, 2])],
    ids=["empty", "html", "bytes", "a plain pickle"],
)
def test_other_files_are_one_message(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "labels.pt").write_bytes(data)
    with pytest.raises(ValueError, match=r"^not a readable label file: .*\Z") as caught:
        load_human_labels(tmp_path / "labels.pt", "worse_label")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git-LFS pointer.*git lfs pull"),
        (b"\n <!DOCTYPE html><html>404: Not Found</html>", "web page"),
        (b"\x93NUMPY\x01\x00v\x00{'descr': '|O'", "TensorFlow's order"),
        (b"something", "another file, or damaged"),
    ],
)
def test_what_is_taken_for_the_file_is_named(data: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "labels.pt").write_bytes(data)
    with pytest.raises(ValueError, match=rf"expected CIFAR-100_human.pt, .*{message}"):
        load_human_labels(tmp_path / "labels.pt", "noisy_label")


def test_files_cut_off_anywhere_are_value_errors(tmp_path: Path) -> None:
    path = write(tmp_path / "labels.pt", content())
    whole = path.read_bytes()
    for size in range(0, len(whole), 50):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="not a readable label file"):
            load_human_labels(path, "worse_label")


def test_a_flipped_bit_is_found(tmp_path: Path) -> None:
    path = write(tmp_path / "labels.pt", content())
    whole = path.read_bytes()
    at = whole.index(b"worse_label")
    path.write_bytes(whole[:at] + b"-" + whole[at + 1 :])
    with pytest.raises(ValueError, match="not a readable label file"):
        load_human_labels(path, "worse_label")
