"""What storage.py measures: each part makes files or tables, and yields rows."""

from __future__ import annotations

import argparse
import itertools
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from photos import CLASSES, make_params, repeated, with_labels, write_untrained

from mlnt import seeding
from mlnt.images.files import FileImages
from mlnt.images.statistics import statistics_of
from mlnt.method.step import MLNTStep
from mlnt.networks import create_model
from mlnt.training.evaluation import predict_logits
from mlnt.training.passes import Network
from pipeline.base import files
from pipeline.decoding.image_files import ImageFiles
from pipeline.stages import download, evaluate, noise, report
from pipeline.store.dataset import TRAIN, Dataset, Labels, read_dataset, write_dataset
from pipeline.store.features import FeatureFile, write_features
from pipeline.systems.mlnt import MLNT, step_options
from pipeline.training.plan import Plan
from pipeline.training.session import Session

Row = dict[str, Any]


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def decode(_: int, args: argparse.Namespace) -> Iterator[Row]:
    """Images a second of one worker, and of torchvision's ImageFolder with one; in turns."""
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    dataset = repeated(args.images, args)
    rows = torch.arange(args.images)
    store = image_store(dataset, workers=1)
    before = [v2.Resize((args.resize, args.resize))] if args.resize else []
    folder = ImageFolder(
        "photos/train", v2.Compose([*before, v2.CenterCrop(args.crop or args.resize), v2.PILToTensor()])
    )
    loader = DataLoader(
        folder, args.batch_size, num_workers=1, persistent_workers=True, multiprocessing_context="forkserver"
    )
    runs: dict[str, tuple[Callable[[], Any], list[float]]] = {
        "decode": (lambda: sum(len(b) for b in store.fetch(torch.split(rows, args.batch_size))), []),
        "decode, torchvision": (lambda: sum(len(b) for b, _ in loader), []),
    }
    for run, _times in runs.values():
        run()  # workers start
    for _round in range(args.rounds):
        for run, times in runs.values():
            start = time.perf_counter()
            count = run()
            times.append(count / (time.perf_counter() - start))
    for name, (_run, times) in runs.items():
        yield {"part": name, "images/s": statistics.median(times), "note": f"{args.photo}, 1 worker"}


def image_store(dataset: Dataset, workers: int) -> FileImages:
    assert isinstance(dataset.images, ImageFiles)
    statistics_ = statistics_of(dataset.images.sums, "channel")
    return FileImages(dataset.images, statistics_, torch.device("cpu"), channels_last=True, workers=workers)


def waiting(_: int, args: argparse.Namespace) -> Iterator[Row]:
    """The share of training that is spent on waiting for the next batch."""
    with_labels(max(args.batch_size * args.steps * 2, 200), args)
    params = make_params(args)
    session = Session.open(params)
    seconds = [0.0]
    fetch = session.images.fetch

    def timed(batches: Any) -> Iterator[torch.Tensor]:
        fetched = fetch(batches)
        while True:
            start = time.perf_counter()
            batch = next(fetched, None)
            seconds[0] += time.perf_counter() - start
            if batch is None:
                return
            yield batch

    session.images.fetch = timed  # type: ignore[method-assign]
    width = 64
    train = session.split(TRAIN)
    features = torch.randn(len(train.indices), width, generator=seeding.generator(0, "features"))
    training = session.training(MLNT[0], Plan(MLNTStep(**step_options(params)), features=features, meta=True))
    begun: list[tuple[float, float]] = []

    def on_step(_step: int) -> None:
        begun.append((time.perf_counter(), seconds[0]))
        if len(begun) > args.steps:
            raise StopIteration

    try:
        for _row in training.epochs(on_step):
            pass
    except RuntimeError:
        pass  # a generator makes that of StopIteration
    session.close()
    (start, waited), (end, waited_then) = begun[1], begun[-1]  # the first step waits for the workers to start
    share = (waited_then - waited) / (end - start)
    each = (end - start) / (len(begun) - 2)
    note = f"waits {share:.1%} of a step of {each * 1000:.0f} ms; {args.network}, M = {args.m}, {args.workers} workers"
    yield {"part": "training", "images/s": args.batch_size / each, "note": note}


def manifest(entries: int, args: argparse.Namespace) -> Iterator[Row]:
    dataset = repeated(entries, args)
    start = time.perf_counter()
    write_dataset(dataset)
    written = time.perf_counter()
    read_dataset()
    size = Path("data/dataset.h5").stat().st_size / 2**20
    yield {"part": "data set, written", "s": written - start, "note": f"{size:.0f} MiB"}
    yield {"part": "data set, read", "s": time.perf_counter() - written}


def labels(entries: int, args: argparse.Namespace) -> Iterator[Row]:
    write_dataset(repeated(entries, args))
    start = time.perf_counter()
    noise.run(make_params(args))
    yield {"part": "noise", "s": time.perf_counter() - start}


def batches(entries: int, args: argparse.Namespace) -> Iterator[Row]:
    """Fifty batches at random, as training reads them."""
    dataset, _ = with_labels(entries, args)
    store = image_store(dataset, args.workers)
    order = torch.randperm(entries, generator=seeding.generator(0, "order"))
    start, count = time.perf_counter(), 0
    for batch in itertools.islice(store.fetch(torch.split(order, args.batch_size)), 50):
        count += len(batch)
    seconds = time.perf_counter() - start
    own = max((p.memory_full_info().uss for p in psutil.Process().children(recursive=True)), default=0)
    note = f"a worker {own / 2**20:.0f} MiB of its own"
    yield {"part": "batches", "s": seconds, "images/s": count / seconds, "note": note}
    store.close()


def features(entries: int, args: argparse.Namespace) -> Iterator[Row]:
    """Write a table of this many rows; read it at random, and whole."""
    labels_ = Labels(np.zeros(entries, np.int64), None, np.zeros(entries, np.uint8), None, "", digest="digest")
    block = np.random.default_rng(0).standard_normal((512, args.width)).astype(np.float16)
    start = time.perf_counter()
    chunks = (block[: min(512, entries - at)] for at in range(0, entries, 512))
    write_features(chunks, entries, args.width, "float16", labels_, "network")
    gib = entries * args.width * 2 / 2**30
    yield {"part": "features, written", "s": time.perf_counter() - start, "note": f"{gib:.2f} GiB"}
    table = FeatureFile(labels_, "network", np.arange(entries))
    draw = seeding.generator(0, "rows")
    start = time.perf_counter()
    for _ in range(args.batches):
        table.rows(torch.randint(entries, (args.batch_size,), generator=draw))
    each = (time.perf_counter() - start) / args.batches
    note = f"{each * 1000:.2f} ms for {args.batch_size} rows"
    yield {"part": "features, by batches", "s": each * args.batches, "peak MiB": peak(), "note": note}
    if args.whole:
        start = time.perf_counter()
        table.read()
        yield {"part": "features, whole", "s": time.perf_counter() - start, "peak MiB": peak()}


def filtering(entries: int, args: argparse.Namespace) -> Iterator[Row]:
    """The mentor's logits of all training samples: a small network, so that reading is what counts."""
    dataset, found = with_labels(entries, args)
    module = create_model("preact_resnet_tiny", num_classes=CLASSES, in_chans=3, seed=0).eval()
    store = image_store(dataset, args.workers)
    start = time.perf_counter()
    rows = torch.from_numpy(found.rows(TRAIN))
    (logits,) = predict_logits([Network(module)], store, rows, 128)
    seconds = time.perf_counter() - start
    store.close()
    yield {"part": "filtering", "s": seconds, "images/s": len(logits) / seconds, "note": "preact_resnet_tiny"}


def evaluating(entries: int, args: argparse.Namespace) -> Iterator[Row]:
    with_labels(entries, args)
    params = make_params(args)
    write_untrained(params)
    start = time.perf_counter()
    evaluate.run(params)
    yield {"part": "evaluate", "s": time.perf_counter() - start, "note": f"{args.network}, 6 systems"}


def reporting(entries: int, args: argparse.Namespace) -> Iterator[Row]:
    """Of what `evaluate` has left."""
    if not files.LABEL_ISSUES.exists():
        sys.exit("report needs evaluate: --parts evaluate report")
    start = time.perf_counter()
    report.run(make_params(args))
    size = files.REPORT.stat().st_size / 2**20
    yield {"part": "report", "s": time.perf_counter() - start, "note": f"{entries:,} entries, {size:.1f} MiB"}


def downloading(entries: int, args: argparse.Namespace) -> Iterator[Row]:
    """A CSV that lists the files so often."""
    listed = sorted(Path("photos").rglob("*.jpg"))
    with Path("photos.csv").open("w", encoding="utf-8") as file:
        file.write("path,label\n")
        for i in range(entries):
            path = listed[i % len(listed)]
            file.write(f"{path},{path.parent.name}\n")
    params = make_params(args, **{"data.root": str(Path("photos.csv").absolute())})
    start = time.perf_counter()
    download.run(params)
    seconds = time.perf_counter() - start
    yield {"part": "download", "s": seconds, "images/s": entries / seconds, "note": f"{args.workers} workers"}
