"""Stage features: the pre-trained network's view of every image → data/features.h5; nothing, where heads are trained,
whose neighbours are found by their embeddings.

Torch is imported inside a function: a run that trains heads does not wait for it here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.base import files
from pipeline.params.load import values_of
from pipeline.params.schema import Params
from pipeline.store import hdf5
from pipeline.store.dataset import TRAIN, read_dataset, read_labels
from pipeline.store.record import Record
from pipeline.systems.registry import CROSS_ENTROPY, sections

if TYPE_CHECKING:
    from torch import Tensor


def processes(params: Params) -> int:
    """How many processes the stage is worth: `run.processes`, where whole networks are trained."""
    if params.model.train == "head":
        return 1
    from pipeline.training import device

    return device.processes(params)


def run(params: Params) -> str:
    """Write one row of pre-logit features per sample: best weights on validation, eval mode, un-augmented.

    Processes that a launcher has started divide the samples, and rank 0 writes.

    Raises:
        UserError: inputs are missing, damaged or from another run.
    """
    own = values_of(params, sections("features"))
    if params.model.train == "all":
        return _extract(params, own)
    labels = read_labels(read_dataset(params.data.root))
    with hdf5.create(files.FEATURES) as (file, _):
        hdf5.store(file, {}, {"labels_digest": labels.digest})
    Record.of("features", own, [__name__], {"labels": labels.digest}).write()
    return "features: none; neighbours are found by the embeddings (model.train: head)"


def _extract(params: Params, own: Mapping[str, Any]) -> str:
    import torch

    from mlnt.networks import pre_logit_features
    from pipeline.store import features
    from pipeline.training.build import load_best
    from pipeline.training.device import prepare
    from pipeline.training.image_store import image_store
    from pipeline.training.processes import joined, progress, require_same

    with joined(params, processes(params)) as ranks:
        device, dataset = prepare(params.compute), read_dataset(params.data.root)
        labels = read_labels(dataset)
        module, digest = load_best(CROSS_ENTROPY, params, dataset, labels, device)
        outputs = {"features": features.identity(digest, params.features.dtype)}
        record = Record.of("features", own, [__name__], {"labels": labels.digest, "pretrain": digest}, outputs)
        require_same(ranks, record)
        images, _ = image_store(params, dataset, labels.rows(TRAIN), device)

        @torch.no_grad()
        def made(batches: Iterable[Tensor]) -> Iterator[NDArray[np.floating]]:
            for fetched in images.fetch(batches):
                yield pre_logit_features(module, images.batch(fetched)).float().cpu().numpy()

        count = len(images)
        batches = torch.split(torch.arange(count), params.compute.eval_batch_size)
        with closing(images), progress(ranks, "features", count) as at:
            width = next(made([batches[0][:1]])).shape[1]

            def rows() -> Iterator[NDArray[np.floating]]:
                done = 0
                for part in ranks.in_order(made(ranks.share(batches))):
                    done += len(part)
                    yield part
                    at(done)

            if ranks.rank:
                deque(rows(), 0)
                return ""
            features.write_features(rows(), count, width, params.features.dtype, labels, digest)
        record.write()
    return f"features: {count} rows of {width} numbers"
