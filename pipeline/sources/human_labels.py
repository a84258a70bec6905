"""CIFAR-10N (Wei et al. 2022): the human labels of CIFAR-10's training images.

The label file is a pickle from the internet; `restricted_pickle` reads it, so that opening it runs nothing.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from mlnt.noise.matrices import Labels
from pipeline.sources.restricted_pickle import Value, load_dict

LABEL_SETS = ("aggre_label", "random_label1", "random_label2", "random_label3", "worse_label")

MOST_BYTES = 1 << 28
"""A label file has some megabytes; an archive may claim to unpack to any size."""


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays and lists of a pickled dict, plain or inside a zip as `torch.save` writes it.

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
                info = archive.getinfo(inner[0])
                if info.file_size > MOST_BYTES:
                    raise ValueError(f"its data.pkl has {info.file_size} bytes, expected at most {MOST_BYTES}")
                # Of the others zipfile unpacks a block at once, whatever comes out.
                if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise ValueError(f"its data.pkl is compressed by method {info.compress_type}, expected deflate")
                data = archive.read(inner[0])
        else:
            data = path.read_bytes()
        # Text as objects: an array of it is as wide as the longest for each.
        return {key: np.asarray(value, object if _has_text(value) else None) for key, value in load_dict(data).items()}
    except OSError:
        raise
    except Exception as error:  # a damaged archive can raise anything
        raise ValueError(f"not a readable label file: {error}") from error


def _has_text(value: Value) -> bool:
    return any(isinstance(item, str | bytes) for item in (value if isinstance(value, list) else [value]))


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
