"""A CSV list, as `data.root` takes one."""

from __future__ import annotations

from pipeline import files
from pipeline.export.pictures import Pictures
from pipeline.export.samples import LabelExport

SPLIT = {"train": "train", "validation": "val", "test": "test"}


def write(export: LabelExport) -> str:
    """labels.csv: path (relative to it), label, split; beside them what the model says, which `data.root` leaves
    alone. Returns how to read it."""
    pictures = Pictures(export)
    files.write_csv(
        export.folder / "labels.csv",
        (
            {"path": pictures.path(each), "label": each.label, "split": SPLIT[each.split], **each.judged}
            for each in export.samples
        ),
    )
    return f"data.root: {export.out / 'labels.csv'}"
