"""`mlnt export labels`: the labels of a run, in the formats that other tools read."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pipeline.base import console
from pipeline.base.errors import UserError
from pipeline.params.schema import Params
from pipeline.sources.places.folder import printable
from pipeline.store.dataset import TRAIN, read_dataset, read_labels
from pipeline.use.export import cleanlab, csv_list, fiftyone, hf, label_studio
from pipeline.use.export.folder import new_folder
from pipeline.use.export.policy import LabelExport, Policy, Sample, samples

Format = Literal["csv", "hf", "label-studio", "fiftyone", "cleanlab"]
WRITERS = {
    "csv": csv_list.write,
    "hf": hf.write,
    "label-studio": label_studio.write,
    "fiftyone": fiftyone.write,
    "cleanlab": cleanlab.write,
}


def run(
    params: Params,
    kind: Format,
    policy: Policy,
    changed_only: bool,
    out: Path | None,
    keep_test: bool = False,
    complete: bool = False,
) -> str:
    """Write the folder; returns a line with what was done, and how to read it.

    Args:
        complete: whether a class of which no training label is left is an error, and not only said.

    Raises:
        UserError: data, labels, label issues or models are missing, damaged or from another run; images are missing;
            something is at `out`; nothing to export.
        RunError: it could not be written.
    """
    out = out or Path("exports") / kind
    dataset = read_dataset(params.data.root)
    labels = read_labels(dataset)
    with new_folder(out) as folder:
        chosen = samples(dataset, labels, policy, changed_only, keep_test)
        trained = {dataset.class_names[i] for i in labels.labels[labels.rows(TRAIN)]}
        if policy == "drop" and (lost := _lost(trained, chosen)):
            if complete:
                raise UserError(lost)
            console.warn(f"{lost}, or take --policy review")
        use = WRITERS[kind](LabelExport(chosen, dataset, labels, params, folder, out))
    done = {
        "review": f"{sum(each.is_issue for each in chosen)} labels to review",
        "drop": f"{len(labels.labels) - len(chosen)} left out",
        "relabel": f"{sum(each.label != each.given for each in chosen)} with another label",
    }
    return f"export: {len(chosen)} samples, {done[policy]} → {out}; {use}"


def _lost(trained: set[str], chosen: Iterable[Sample]) -> str:
    """The classes of which no training label is left, and what to do."""
    left = {each.label for each in chosen if each.split == "train"}
    names = ", ".join(map(printable, sorted(trained - left)))
    return names and (
        f"no training image of {names} would be left, the model doubts all of their labels; keep some by a look at "
        "reports/review.html (`noise.corrections`)"
    )
