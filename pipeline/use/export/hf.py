"""An image folder of Hugging Face's `datasets`: SPLIT/metadata.csv beside the images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.base import console, files
from pipeline.base.errors import UserError
from pipeline.sources.places.folder import first_few
from pipeline.use.export.pictures import Pictures
from pipeline.use.export.policy import LabelExport

NO_TEXT = {
    "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA", "NULL", "None", "n/a",
    "null", "true", "false", "True", "False", "TRUE", "FALSE",
}  # fmt: skip
"""What pandas, which `datasets` reads metadata.csv with, takes for a missing value or a boolean."""


def write(export: LabelExport) -> str:
    """A folder for each split, with its images and metadata.csv: file_name, label, the name that the data set has for
    the image, and what the model says. Returns how to read it.

    Images are called by numbers: `datasets` finds splits in the names of files and folders too.

    Raises:
        UserError: the folder would lie in the folder of images that it is made from, and become part of the data.
    """
    pictures = Pictures(export)
    folder, root = pictures.folder, export.params.data.root
    if folder and root and Path(root).is_dir() and export.place.is_relative_to(folder):
        raise UserError(
            f"--out: {export.out} lies in data.root, {root}, whose images it would add to; name a folder outside"
        )
    for split, chosen in export.of_split():
        place = export.folder / split
        rows = (
            {"file_name": pictures.put(each, place), "label": each.label, "name": each.name, **each.judged}
            for each in chosen
        )
        files.write_csv(place / "metadata.csv", rows)
    if misread := _misread(export.dataset.class_names):
        console.warn(
            f"hf: load_dataset guesses from a CSV what its fields are, and does not take these classes for text: "
            f"{first_few(misread)}; rename them"
        )
    return f'datasets.load_dataset("imagefolder", data_dir="{export.out}")'


def _misread(class_names: Sequence[str]) -> list[str]:
    """The classes that would be numbers, missing or booleans; none where all are whole numbers, which stay the same."""
    if all(name.isdecimal() and name == str(int(name)) for name in class_names):
        return []
    return [name for name in class_names if name in NO_TEXT or _is_number(name)]


def _is_number(name: str) -> bool:
    try:
        float(name)
    except ValueError:
        return False
    return True
