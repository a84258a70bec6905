"""What `storage.py` measures on: generated photographs, long lists of them, networks that nobody has trained."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mlnt.method.step import MLNTStep
from mlnt.training.loop import MODELS
from pipeline.base import files
from pipeline.decoding.decode import ImageOptions
from pipeline.decoding.image_files import ImageFiles
from pipeline.params.load import changed, check, read_yaml
from pipeline.params.schema import Params
from pipeline.sources import imagefolder
from pipeline.sources.labelled_files.to_dataset import FileOptions
from pipeline.stages import noise
from pipeline.store import cards, models
from pipeline.store.dataset import (
    TEST,
    TRAIN,
    VALIDATION,
    Dataset,
    Labels,
    Names,
    read_dataset,
    read_labels,
    write_dataset,
)
from pipeline.systems.mlnt import step_options
from pipeline.systems.registry import DEFAULT
from pipeline.training.plan import Plan
from pipeline.training.session import Session

ROOT = Path(__file__).resolve().parents[2]
CLASSES = 14


def make_photos(folder: Path, count: int, size: tuple[int, int]) -> None:
    """JPEG files with the detail of photographs, a folder a class."""
    rng = np.random.default_rng(0)
    for i in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (size[1] // 16 + 1, size[0] // 16 + 1, 3)).astype(np.uint8))
        pixels = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC)).astype(np.int16)
        pixels += rng.integers(-12, 13, pixels.shape, dtype=np.int16)
        path = folder / "train" / f"class {i % CLASSES:02}" / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=88)


def make_params(args: argparse.Namespace, **changes: Any) -> Params:
    """Those of the preset for files, on what was generated."""
    settings = {
        "data.source": "imagefolder",
        "data.root": str(Path("photos").absolute()),
        "data.storage": "files",
        "run.workers": args.workers,
        "data.resize": args.resize,
        "data.crop": args.crop,
        "model.normalize": "channel",
        "noise.kind": "none",
        "model.name": args.network,
        "train.batch_size": args.batch_size,
        "compute.eval_batch_size": 128,
        "train.epochs": 1,
        "train.lr_drop_epochs": [],
        "compute.threads": args.threads,
        "mlnt.M": args.m,
        "seed": 0,
        **changes,
    }
    return check(changed(read_yaml(ROOT / "params.yaml"), settings), Path("params.yaml"))


def repeated(entries: int, args: argparse.Namespace) -> Dataset:
    """A data set of so many entries: the generated files again and again, a hundredth each for validation and test."""
    options = FileOptions(
        ImageOptions("auto", args.resize, args.crop, 100, "white"), "error", None, None, "files", args.workers
    )
    found = imagefolder.load(Path("photos"), options)
    assert isinstance(found.images, ImageFiles)
    rows = np.arange(entries) % len(found.labels)
    split = np.full(entries, TRAIN, np.uint8)
    split[1::100], split[2::100] = VALIDATION, TEST
    names = Names.of(found.names[int(row)] for row in rows)
    images = ImageFiles(
        names, found.images.sizes[rows], found.images.digests[rows], found.images.decode, found.images.sums
    )
    return replace(found, images=images, labels=found.labels[rows], split=split, source_index=rows, names=names)


def with_labels(entries: int, args: argparse.Namespace) -> tuple[Dataset, Labels]:
    dataset = repeated(entries, args)
    write_dataset(dataset)
    noise.run(make_params(args))
    dataset = read_dataset()
    return dataset, read_labels(dataset)


def write_untrained(params: Params) -> None:
    """models/ and plots/ as evaluate and report want them, of networks before their first step."""
    session = Session.open(params)
    for system in DEFAULT:
        training = session.training(system, Plan(MLNTStep(**step_options(params))))
        each = dict.fromkeys(MODELS, 0.0)
        card = cards.ModelCard(
            network=params.model.name,
            system=system.stage,
            class_names=session.dataset.class_names,
            shape=list(session.dataset.images.shape[1:]),
            options=None,
            labels_digest=session.labels.digest,
            mentor="teacher",
            best_epoch=dict.fromkeys(MODELS, 1.0),
            validation_accuracy=each,
            kept_fraction=1.0,
            kept_purity=None,
            folds=0,
        )
        weights = {(name, choice): training.module(name).state_dict() for name in MODELS for choice in models.CHOICES}
        models.save_models(system.stage, weights, session.statistics, card, {})
        accuracies = {f"{m}_{part}_accuracy": 0.0 for m in MODELS for part in ("train", "validation", "test")}
        files.write_csv(files.PLOTS / f"{system.stage}.csv", [{"epoch": params.train.epochs, **accuracies}])
    session.close()
