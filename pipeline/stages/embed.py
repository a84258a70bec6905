"""Stage embed: what a frozen network sees in every image → data/embeddings.h5; nothing, unless heads are trained.

Torch is imported inside functions: a run that trains whole networks does not wait for it here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.base import files
from pipeline.base.errors import UserError
from pipeline.params.load import values_of
from pipeline.params.schema import Params
from pipeline.store import hdf5
from pipeline.store.record import Record
from pipeline.systems.registry import sections

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mlnt.images.batches import ImageStore
    from mlnt.training.distributed import Ranks
    from pipeline.training.processes import SharedCheckpoint

PIECE = 512
"""Images that a process embeds between two writes: all that it loses when the stage is killed."""
BATCH = 32
"""Images at a time on a CPU, where larger batches leave the cache, and are slower."""


def processes(params: Params) -> int:
    """How many processes the stage is worth: `run.processes`, where heads are trained."""
    if params.model.train == "all":
        return 1
    from pipeline.training import device

    return device.processes(params)


def run(params: Params) -> str:
    """Write one row of pre-logit features per sample: the start network, eval mode, un-augmented.

    Processes that a launcher has started divide the samples, and rank 0 writes.

    Raises:
        UserError: inputs are missing or damaged, weights cannot be had, or the network has no head to train.
    """
    own = values_of(params, sections("embed"))
    if params.model.train == "head":
        from pipeline.training.processes import joined

        with joined(params, processes(params)) as ranks:
            return _embed(params, own, ranks)
    with hdf5.create(files.EMBEDDINGS) as (file, _):
        hdf5.store(file, {}, {})
    Record.of("embed", own, [__name__], {}).write()
    return "embed: nothing; whole networks are trained (model.train: all)"


def _embed(params: Params, own: Mapping[str, Any], ranks: Ranks) -> str:
    from mlnt.networks import linear_classifier
    from pipeline.store import embeddings
    from pipeline.store.dataset import TRAIN, read_dataset
    from pipeline.training.device import place, prepare
    from pipeline.training.image_store import image_store
    from pipeline.training.processes import opened, require_same
    from pipeline.training.start_weights.pretrained import repository
    from pipeline.training.start_weights.start import identity, start_digest, started

    device, dataset, model = prepare(params.compute), read_dataset(params.data.root), params.model
    module = started(model, len(dataset.class_names), dataset.images.shape[1], seed=0)
    try:
        classifier = linear_classifier(module)
    except ValueError as error:
        raise UserError(
            f"model.name: {model.name} has no head to train: {error}; expected another network, or model.train: all"
        ) from error
    weights, hub = start_digest(model), repository(model) if model.pretrained else ""
    start = embeddings.Embedder(identity(model), weights, hub, classifier, module.state_dict())
    record = Record.of("embed", own, [__name__], {"dataset": dataset.digest, "weights": weights})
    require_same(ranks, record)
    images, statistics = image_store(params, dataset, np.flatnonzero(dataset.split == TRAIN), device)
    with closing(images), opened(record, ranks) as saved:
        module = place(module, params.compute, device).eval().requires_grad_(False)
        width = _width(module, classifier, images, params)
        _make_pieces(module, images, params, saved, ranks)
        if ranks.rank:
            return ""
        count, kept = len(images), saved.of_rank_0
        pieces = (kept.load_piece(at)["embeddings"].numpy() for at in range(0, count, PIECE))
        digest = embeddings.write(pieces, (count, width), params.features.dtype, dataset, start, statistics)
        Record.of("embed", own, [__name__], record.inputs, {"embeddings": digest}).write()
        saved.remove()
    return f"embed: {count} images by {model.name}, {width} numbers each"


def _width(module: nn.Module, classifier: str, images: ImageStore, params: Params) -> int:
    """The length of an embedding, of which the classifier makes what the network itself gives.

    Raises:
        UserError: it does not, or the network does not take such images.
    """
    import torch

    from mlnt.networks import pre_logit_features

    name = params.model.name
    with torch.no_grad():
        batch = images.batch(next(images.fetch([torch.arange(min(2, len(images)))])))
        try:
            logits, features = module(batch), pre_logit_features(module, batch)
            again = module.get_submodule(classifier)(features)
            torch.testing.assert_close(again, logits, rtol=1e-3, atol=1e-3)
        except Exception as error:  # each network has checks of its own, or none
            raise UserError(
                f"model.name: {name} does not embed images of {batch.shape[2]} × {batch.shape[3]} ("
                f"{type(error).__name__}: {str(error).strip().splitlines()[0]}); expected another size (data.resize is "
                f"{params.data.resize or 'null'}, data.crop {params.data.crop or 'null'}), or another network"
            ) from error
    return int(features.shape[1])


def _make_pieces(module: nn.Module, images: ImageStore, params: Params, saved: SharedCheckpoint, ranks: Ranks) -> None:
    """Save the rows, `PIECE` at a time, those that are not there yet.

    Each core has batches of its own, on one thread: that is faster than all cores on one batch, and the numbers do not
    depend on how many there are.
    """
    from concurrent.futures import ThreadPoolExecutor

    import torch

    from mlnt.networks import pre_logit_features
    from pipeline.training.processes import progress

    on_cpu = images.device.type == "cpu"
    workers = torch.get_num_threads() if on_cpu else 1
    size = min(BATCH, params.compute.eval_batch_size) if on_cpu else params.compute.eval_batch_size
    count = len(images)

    def embed(fetched: Tensor) -> Tensor:
        with torch.no_grad():
            return pre_logit_features(module, images.batch(fetched)).float().cpu()

    def made(pieces: Iterable[int]) -> Iterator[Tensor]:
        for at in pieces:
            rows = torch.arange(at, min(at + PIECE, count))
            yield torch.cat(list(pool.map(embed, images.fetch(torch.split(rows, size)))))

    if on_cpu:
        torch.set_num_threads(1)
    missing = [at for at in range(0, count, PIECE) if not saved.has_piece(at)]
    with ThreadPoolExecutor(workers) as pool, progress(ranks, "embed", count) as done:
        pieces = ranks.in_order(made(ranks.share(missing)))
        for at, piece in zip(missing, pieces, strict=True):
            saved.save_piece(at, {"embeddings": piece})
            done(at + len(piece))
