"""Stage report: every metric, curve and doubtful image of a run → reports/index.html; reports/review.html to decide."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from numpy.typing import NDArray

from pipeline.base import console, files
from pipeline.base.errors import UserError, damaged
from pipeline.params.schema import Params
from pipeline.report import figures, gallery, results, review
from pipeline.report.pictures import pixelated
from pipeline.report.votes import Vote, votes
from pipeline.store import checked
from pipeline.store.dataset import SPLITS, TRAIN, Dataset, Labels, read_dataset, read_labels
from pipeline.systems.registry import FINAL, GROUPS, GroupName


def run(params: Params, group: GroupName | None = None) -> str:
    """Write the report.

    Args:
        group: show its evaluated systems too, and write its report instead.

    Raises:
        UserError: inputs are missing, damaged or from another run.
    """
    dataset = read_dataset(params.data.root)
    labels = read_labels(dataset)
    metrics = results.evaluation()
    counts = {name: len(labels.rows(i)) for i, name in enumerate(SPLITS)}
    if metrics["samples"] != counts:
        raise UserError(
            f"{files.EVALUATION}: was made from other labels (found samples {metrics['samples']}, expected {counts}); "
            "run `dvc repro`"
        )
    beside = None if group is None else GROUPS[group]
    others = {} if beside is None else results.metrics_of(beside)
    noise = results.noise()
    issues = _issues(checked.label_issues(dataset, labels), params.report.gallery)
    doubtful = _doubtful(params.report.review, dataset, labels) if beside is None else None
    shown = [int(entry["index"]) for entries in issues.first.values() for entry in entries]
    judged = votes(labels, [*(doubtful.rows if doubtful else ()), *shown], params.mlnt.neighbors)
    threads = params.run.num_workers or 1
    known = labels.true_labels is not None
    clothing = dataset.source == "clothing1m"
    comparable = clothing or (known and dataset.true_labels is None)  # noise.kind says how they were made
    paper = results.paper_column(dataset.source, params.noise.kind, params.noise.rate) if comparable else {}
    final = metrics[FINAL.name]
    threshold = final["label_issues"]["threshold"]
    in_test = metrics["samples"]["test"]
    templates = environment()
    page = templates.get_template("page.html.jinja").render(
        params=params.model_dump(mode="json", by_alias=True),
        dataset=dataset,
        shape=dataset.images.shape[1:],
        noise=noise,
        decided=results.decided(noise),
        metrics=metrics,
        rows=results.rows({**metrics, **others}, paper),
        known=known,
        paper=f"paper, {'Clothing1M' if clothing else 'CIFAR-10'}" if paper else "",
        percent=results.percent,
        curves=figures.progress_curves(files.PLOTS, params.train.epochs, list(others)),
        matrices=figures.noise_matrices(dataset.class_names, _matrices(dataset.class_names, known)),
        confusion=_confusion(dataset.class_names, final["mentor"], in_test) if in_test else None,
        histogram=figures.score_histogram(issues.scores, issues.wrong if known else None, threshold),
        threshold=threshold,
        out_of_fold=issues.out_of_fold,
        issues={name: (issues.listed[name], n) for name, n in metrics["samples"].items() if n},
        num_contradicted=issues.contradicted,
        gallery={
            split: gallery.cards(dataset, labels, entries, judged, threads) for split, entries in issues.first.items()
        },
        pixelated=pixelated(dataset),
        final=final,
    )
    target = files.REPORT if beside is None else beside.report
    files.write_text(target, page)
    decide = ""
    if doubtful is not None:
        _write_review(params, templates, dataset, labels, doubtful, judged)
        decide = f", {files.REVIEW} to decide about doubtful labels"
    return f"report: open {target} in a browser{decide}; `mlnt show` prints its table"


def _doubtful(most: int, dataset: Dataset, labels: Labels) -> review.Doubtful:
    doubtful = review.choose(checked.label_issues(dataset, labels), labels, most)
    if doubtful.left_out:
        console.warn(
            f"report.review: {files.REVIEW} has the {most} most doubtful labels; {doubtful.left_out} more are in "
            f"{files.LABEL_ISSUES} alone"
        )
    return doubtful


def _write_review(
    params: Params,
    templates: Environment,
    dataset: Dataset,
    labels: Labels,
    doubtful: review.Doubtful,
    judged: Mapping[int, Vote],
) -> None:
    page = review.page(
        templates,
        dataset,
        labels,
        doubtful,
        judged,
        most=params.report.review,
        threads=params.run.num_workers or 1,
        originals=_originals(params),
    )
    files.write_text(files.REVIEW, page)


def _originals(params: Params) -> str | None:
    """Where the files of a folder or a list lie, seen from the report; an archive's are elsewhere."""
    if not params.data.has_image_files or params.data.root is None:
        return None
    place = Path(params.data.root)
    if place.suffix.lower() == ".csv":
        place = place.parent
    if not files.resolve(str(place)).is_dir():
        return None
    return f"{place.expanduser().as_uri() if place.expanduser().is_absolute() else f'../{quote(place.as_posix())}'}/"


@dataclass
class Issues:
    """What the page needs from the table of label issues; whole rows are kept for the gallery only.

    Attributes:
        scores: the label score of each training sample.
        wrong: whether its label is wrong, where the truth is known.
        out_of_fold: whether these scores are of networks that were not trained on the label.
        listed: how many labels of each split are taken for wrong.
        contradicted: how many of these are of an image that has another label elsewhere.
        first: split → the first of these rows, for the gallery.
    """

    scores: list[float] = field(default_factory=list)
    wrong: list[bool] = field(default_factory=list)
    out_of_fold: bool = False
    listed: Counter[str] = field(default_factory=Counter)
    contradicted: int = 0
    first: dict[str, list[dict[str, str]]] = field(default_factory=lambda: {split: [] for split in SPLITS})


def _issues(rows: Iterable[dict[str, str]], most: int) -> Issues:
    """
    Args:
        rows: the table of label issues.
        most: rows of each split for the gallery.
    """
    issues = Issues()
    for row in rows:
        listed = row["is_label_issue"] == "True"
        if row["split"] == SPLITS[TRAIN]:
            issues.scores.append(float(row["label_score"]))
            issues.wrong.append(row.get("true_label") != row["given_label"])
            issues.out_of_fold = row["score_kind"] == "out of fold"
        issues.listed[row["split"]] += listed
        issues.contradicted += listed and bool(row.get("also_labelled"))
        if listed and len(issues.first[row["split"]]) < most:
            issues.first[row["split"]].append(row)
    return issues


def environment() -> Environment:
    """The templates; everything is escaped, since class and file names may hold HTML."""
    return Environment(
        loader=PackageLoader("pipeline.report", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )


def _matrices(class_names: list[str], known: bool) -> dict[str, NDArray[np.float64]]:
    """Those that are known, in the order intended, realised, estimated.

    Args:
        known: whether the true labels are; otherwise there is an estimated one alone.
    """
    size = len(class_names)
    found: dict[str, NDArray[np.float64]] = {}
    realised = list(checked.table(files.NOISE_MATRIX, numbers=("intended", "realised"), gaps=True))
    estimated = list(checked.table(files.NOISE_ESTIMATED, numbers=("estimated",), gaps=True))
    for path, table, wanted in (
        (files.NOISE_MATRIX, realised, size**2 * known),
        (files.NOISE_ESTIMATED, estimated, size**2),
    ):
        if len(table) != wanted:
            raise damaged(path, f"has {len(table)} rows, expected {wanted}, one for each pair of classes")
    for name, table in (("intended", realised), ("realised", realised), ("estimated", estimated)):
        values = [row[name] for row in table]
        if any(values):
            found[name] = np.array([float(v) if v else np.nan for v in values]).reshape(size, size)
    return found


def _confusion(class_names: list[str], mentor: str, samples: int) -> str:
    position = {name: i for i, name in enumerate(class_names)}
    counts = np.zeros((len(class_names), len(class_names)))
    texts = ("system", "model", "choice", "actual", "predicted")
    for row in checked.table(files.CONFUSIONS, texts, ("count",)):  # pairs of classes that no sample has are left out
        known = {row["actual"], row["predicted"]} <= position.keys()
        if known and (row["system"], row["model"], row["choice"]) == (FINAL.name, mentor, "best"):
            counts[position[row["actual"]], position[row["predicted"]]] = float(row["count"])
    if counts.sum() != samples:
        found = f"has {counts.sum():g} test samples of {FINAL.title}, expected {samples}"
        raise damaged(files.CONFUSIONS, found)
    return figures.confusion_matrix(class_names, counts)
