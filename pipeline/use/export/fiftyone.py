"""FiftyOne's FiftyOneImageClassificationDataset, a folder for each split; no image is copied."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipeline.base import files
from pipeline.use.export.pictures import Pictures
from pipeline.use.export.policy import LabelExport, Sample


def write(export: LabelExport) -> str:
    """SPLIT/labels.json: `classes`, and `labels` by a sample's key, what the model says of each as attributes.
    SPLIT/data.json: key → file, relative to it. Returns how to read them."""
    pictures, classes = Pictures(export), export.dataset.class_names
    number = {name: i for i, name in enumerate(classes)}
    for split, chosen in export.of_split():
        # FiftyOne cuts what looks like a suffix off the keys of data.json, so that no file name can be one.
        labels = {_key(each): _label(each, number) for each in chosen}
        _write(export.folder / split / "labels.json", {"classes": classes, "labels": labels})
        _write(export.folder / split / "data.json", {_key(each): pictures.path(each, split) for each in chosen})
    first = next(export.of_split())[0]
    return (
        f'fiftyone.Dataset.from_dir("{export.out / first}", fiftyone.types.FiftyOneImageClassificationDataset, '
        f'data_path="data.json", tags="{first}")'
    )


def _key(sample: Sample) -> str:
    return f"sample {sample.row}"


def _label(sample: Sample, number: dict[str, int]) -> Any:
    return {"label": number[sample.label], "attributes": sample.judged}


def _write(path: Path, content: Any) -> None:
    files.write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
