"""CIFAR-10N and CIFAR-100N (Wei et al. 2022): the human labels of CIFAR's training images."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mlnt.noise.matrices import Labels


class LabelSet(NamedTuple):
    """Where labels are: in which file, beside which true labels, and of what."""

    file: str
    clean: str
    of: str


_OF_10 = LabelSet("CIFAR-10_human.pt", "clean_label", "CIFAR-10's training images (data.source cifar10)")
LABEL_SETS = {
    "aggre_label": _OF_10,
    "random_label1": _OF_10,
    "random_label2": _OF_10,
    "random_label3": _OF_10,
    "worse_label": _OF_10,
    "noisy_label": LabelSet("CIFAR-100_human.pt", "clean_label", "CIFAR-100's training images (data.source cifar100)"),
    "noisy_coarse_label": LabelSet(
        "CIFAR-100_human.pt",
        "clean_coarse_label",
        "CIFAR-100's superclasses (data.source cifar100-coarse); those of a file from before March 2023 are wrong: "
        "fetch it again",
    ),
}
"""The values of `noise.human_labels`."""

_MISTAKEN = {
    b"version https://git-lfs": "this is a git-LFS pointer to it: run `git lfs pull` in the clone that it is from",
    b"<": "this is a web page: download the file itself",
    b"\x93NUMPY": "this is a NumPy file, whose labels are in TensorFlow's order",
}
"""How files begin that people take for it."""


def load_human_labels(path: Path, label_set: str) -> tuple[Labels, Labels]:
    """(clean labels, human labels), int64 [50000] each, in torchvision's order.

    The label file is a pickle from the internet, as `torch.save` writes it. It is read so that arrays, lists, text and
    numbers are accepted, and code is not.

    Raises:
        ValueError: another file, or one without that label set; says what was found.
        OSError: the file cannot be read.
    """
    wanted = LABEL_SETS[label_set]
    content = _load(path, wanted.file)
    if not isinstance(content, dict):
        raise ValueError(f"expected a dict of arrays, found {type(content).__name__}")
    found: list[Labels] = []
    for key in (wanted.clean, label_set):
        if key not in content:
            raise ValueError(
                f"it has no {key!r}, only {', '.join(sorted(map(str, content)))}; noise.human_labels {label_set} is in "
                f"{wanted.file}"
            )
        labels = np.asarray(content[key])
        if labels.ndim != 1 or labels.dtype.kind not in "iu":
            raise ValueError(f"expected a list of integers in {key!r}, found {labels.dtype} {labels.shape}")
        found.append(labels.astype(np.int64))
    clean, human = found
    if len(clean) != len(human):
        raise ValueError(f"{label_set!r} has {len(human)} labels, {wanted.clean!r} {len(clean)}")
    return clean, human


def _load(path: Path, expected: str) -> Any:
    import torch

    reconstruct: Any = np.empty(0).__reduce__()[0]
    # NumPy 1 called its module numpy.core.
    safe = [(reconstruct, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")]
    numbers = {type(np.dtype(code)) for code in np.typecodes["AllInteger"] + np.typecodes["Float"]}
    allowed = torch.serialization.safe_globals([*safe, np.ndarray, np.dtype, *numbers])
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive, allowed:
            if archive.testzip() is not None:  # torch reads wrong labels where a bit has flipped
                raise ValueError("wrong checksum")
            file.seek(0)
            return torch.load(file, weights_only=True)
    except OSError:
        raise
    except Exception as error:  # a damaged file can raise anything
        with path.open("rb") as file:
            start = file.read(100).lstrip()
        mistaken = (what for begins, what in _MISTAKEN.items() if start.startswith(begins))
        what = next(mistaken, "this is another file, or damaged: fetch it again")
        raise ValueError(
            f"not a readable label file: expected {expected}, a dict of integer arrays as torch.save writes it; {what}"
        ) from error
