"""CIFAR-10N (Wei et al. 2022): the human labels of CIFAR-10's training images."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from mlnt.noise.matrices import Labels


def load_human_labels(path: Path, label_set: str) -> tuple[Labels, Labels]:
    """(clean labels, human labels), int64 [50000] each, in torchvision's order.

    The label file is a pickle from the internet, as `torch.save` writes it. It is read so that arrays, lists, text and
    numbers are accepted, and code is not.

    Raises:
        ValueError: another file, or one without that label set; says what was found.
        OSError: the file cannot be read.
    """
    content = _load(path)
    if not isinstance(content, dict):
        raise ValueError(f"expected a dict of arrays, found {type(content).__name__}")
    found: list[Labels] = []
    for key in ("clean_label", label_set):
        if key not in content:
            raise ValueError(f"it has no {key!r}, only {', '.join(sorted(map(str, content)))}")
        labels = np.asarray(content[key])
        if labels.ndim != 1 or labels.dtype.kind not in "iu":
            raise ValueError(f"expected a list of integers in {key!r}, found {labels.dtype} {labels.shape}")
        found.append(labels.astype(np.int64))
    clean, human = found
    if len(clean) != len(human):
        raise ValueError(f"{label_set!r} has {len(human)} labels, 'clean_label' {len(clean)}")
    return clean, human


def _load(path: Path) -> Any:
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
        raise ValueError(
            "not a readable label file: expected CIFAR-10_human.pt, a dict of integer arrays as torch.save writes it; "
            "this is another file, or damaged: fetch it again"
        ) from error
