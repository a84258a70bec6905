"""Stage features: the pre-trained network's view of every image → data/features.h5; nothing, where heads are trained,
whose neighbours are found by their embeddings.

Torch is imported inside a function: a run that trains heads does not wait for it here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline import console, files
from pipeline.params.load import values_of
from pipeline.params.schema import Params
from pipeline.store import hdf5
from pipeline.store.dataset import TRAIN, Dataset, Labels, read_dataset, read_labels
from pipeline.store.record import Record
from pipeline.systems.registry import CROSS_ENTROPY, sections

if TYPE_CHECKING:
    from torch import Tensor


def run(params: Params) -> str:
    """Write one row of pre-logit features per sample: best weights on validation, eval mode, un-augmented.

    Raises:
        UserError: inputs are missing, damaged or from another run.
    """
    dataset = read_dataset(params.data.root)
    labels = read_labels(dataset)
    own = values_of(params, sections("features"))
    if params.model.train == "all":
        inputs, outputs, said = _extract(params, dataset, labels)
    else:
        with hdf5.create(files.FEATURES) as (file, _):
            hdf5.store(file, {}, {"labels_digest": labels.digest})
        inputs, outputs, said = {}, {}, "none; neighbours are found by the embeddings (model.train: head)"
    Record.of("features", own, [__name__], {"labels": labels.digest, **inputs}, outputs).write()
    return f"features: {said}"


def _extract(params: Params, dataset: Dataset, labels: Labels) -> tuple[dict[str, str], dict[str, str], str]:
    """The digests of what they come from and of what they are, by name, and a line about them."""
    import torch

    from mlnt.images.batches import index_batches
    from mlnt.networks import pre_logit_features
    from pipeline.store import features
    from pipeline.training.build import load_best
    from pipeline.training.device import prepare
    from pipeline.training.images import image_store

    device = prepare(params.compute)
    module, digest = load_best(CROSS_ENTROPY, params, dataset, labels, device)
    images, _ = image_store(params, dataset, labels.rows(TRAIN), device)
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
    outputs = {"features": features.identity(digest, params.features.dtype)}
    return {"pretrain": digest}, outputs, f"{len(rows)} rows of {width} numbers"
