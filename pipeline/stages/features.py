"""Stage features: the pre-trained network's view of every image → data/features.h5."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mlnt.images.batches import index_batches
from mlnt.networks import pre_logit_features
from pipeline import console
from pipeline.params.load import values_of
from pipeline.params.schema import Params
from pipeline.store import features
from pipeline.store.dataset import read_dataset, read_labels
from pipeline.store.record import Record
from pipeline.systems.registry import CROSS_ENTROPY, sections
from pipeline.training.build import load_best
from pipeline.training.device import prepare
from pipeline.training.session import image_store


def run(params: Params) -> str:
    """Write one row of pre-logit features per sample: best weights on validation, eval mode, un-augmented.

    Raises:
        UserError: inputs are missing, damaged or from another run.
    """
    device = prepare(params.compute)
    dataset = read_dataset(params.data.root)
    labels = read_labels(dataset)
    module, digest = load_best(CROSS_ENTROPY, params, dataset, labels, device)
    images, _ = image_store(params, dataset, labels, device)
    rows = torch.arange(len(images))

    @torch.no_grad()
    def chunks(batches: Iterable[Tensor]) -> Iterator[NDArray[np.floating]]:
        with console.progress("features", len(rows)) as bar:
            done = -1
            for fetched in images.fetch(batches):
                features: NDArray[np.floating] = pre_logit_features(module, images.batch(fetched)).float().cpu().numpy()
                done += len(features)
                bar.at(done)
                yield features

    with closing(images):
        width = next(chunks([rows[:1]])).shape[1]
        batches = index_batches(rows, params.compute.eval_batch_size)
        features.write_features(chunks(batches), len(rows), width, params.features.dtype, labels, digest)
    own = values_of(params, sections("features"))
    inputs = {"labels": labels.digest, "pretrain": digest}
    outputs = {"features": features.identity(digest, params.features.dtype)}
    Record.of("features", own, [__name__], inputs, outputs).write()
    return f"features: {len(rows)} rows of {width} numbers"
