"""A CSV list, as `data.root` takes one."""

from __future__ import annotations

from pipeline.base import files
from pipeline.base.errors import UserError
from pipeline.use.export.pictures import Pictures
from pipeline.use.export.policy import LabelExport

SPLIT = {"train": "train", "validation": "val", "test": "test"}


def write(export: LabelExport) -> str:
    """labels.csv: path (relative to it), label, split; beside them what the model says, which `data.root` leaves
    alone. Returns how to read it.

    Raises:
        UserError: read back, a class would have another name, perhaps another's, and another place.
    """
    if blanks := [name for name in export.dataset.class_names if name != name.strip()]:
        raise UserError(
            f"--format: found csv, but the class {blanks[0]!r} has blanks around its name, which a CSV list does not "
            "keep; expected another format, or other names in data.root"
        )
    pictures = Pictures(export)
    files.write_csv(
        export.folder / "labels.csv",
        (
            {"path": pictures.path(each), "label": each.label, "split": SPLIT[each.split], **each.judged}
            for each in export.samples
        ),
    )
    return f"data.root: {export.out / 'labels.csv'}"
