"""Tasks for Label Studio, and the labeling interface that they belong to."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree

from pipeline.base import files
from pipeline.base.errors import UserError
from pipeline.sources.places.folder import printable
from pipeline.systems.registry import FINAL
from pipeline.training.build import best_weights
from pipeline.use.export.pictures import WRITTEN, Pictures
from pipeline.use.export.policy import LabelExport, Sample


def write(export: LabelExport) -> str:
    """tasks.json, most suspicious first, and config.xml; returns how to read them.

    A label that nobody doubts, or that the policy has set, is an annotation. One that is to be reviewed has none: its
    task is open, with the model's label as a prediction.

    Raises:
        UserError: an image lies outside of the folder that Label Studio will serve; or the model is missing, damaged or
            from another run.
    """
    pictures = Pictures(export)
    storage = pictures.folder or export.place / WRITTEN
    model = f"{FINAL.stage} {files.file_digest(best_weights(export.params, export.labels, FINAL.stage))[:12]}"
    ordered = sorted(export.samples, key=lambda each: (not each.is_issue, each.doubt.score))
    tasks = [_task(each, _url(export.place / pictures.path(each), storage), model) for each in ordered]
    files.write_text(export.folder / "tasks.json", json.dumps(tasks, indent=1, ensure_ascii=False) + "\n")
    files.write_text(export.folder / "config.xml", _interface(export.dataset.class_names))
    return (
        "start Label Studio with LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true and "
        f"LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT={storage.parent}; make a project with {export.out / 'config.xml'}, "
        f"add {storage} as its local storage, import {export.out / 'tasks.json'}"
    )


def _task(sample: Sample, url: str, model: str) -> dict[str, Any]:
    task: dict[str, Any] = {
        "data": {"image": url, "name": sample.name, "split": sample.split, **sample.judged},
        "predictions": [{"model_version": model, "result": _chosen(sample.doubt.predicted)}],
    }
    if not sample.is_issue or sample.label != sample.given:
        task["annotations"] = [{"result": _chosen(sample.label)}]
    return task


def _chosen(label: str) -> list[dict[str, Any]]:
    return [{"from_name": "label", "to_name": "image", "type": "choices", "value": {"choices": [label]}}]


def _url(path: Path, storage: Path) -> str:
    """Where Label Studio has the file: its path from the folder above the storage."""
    file = Path(os.path.normpath(path))
    if not file.is_relative_to(storage):
        raise UserError(
            f"--format: found label-studio, which serves the files below one folder, and {printable(str(file))} is not "
            f"in {storage}; expected all images there"
        )
    return f"/data/local-files/?d={quote(str(file.relative_to(storage.parent)))}"


def _interface(class_names: Sequence[str]) -> str:
    view = ElementTree.Element("View")
    ElementTree.SubElement(view, "Image", name="image", value="$image")
    ElementTree.SubElement(view, "Header", value="Given label: $given_label")
    choices = ElementTree.SubElement(view, "Choices", name="label", toName="image", choice="single")
    for name in class_names:
        ElementTree.SubElement(choices, "Choice", value=name)
    ElementTree.indent(view)
    return ElementTree.tostring(view, encoding="unicode") + "\n"
