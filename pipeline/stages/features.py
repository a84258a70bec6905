"""Stage features: the pre-trained network's view of every image → data/features.h5."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from mlnt.data import index_batches
from mlnt.networks import pre_logit_features
from pipeline import artifacts, console, runtime
from pipeline.params import Params
from pipeline.trained import load_best


def run(params: Params) -> str:
    """Write one row of pre-logit features per sample: best weights on validation, eval mode, un-augmented.

    Raises:
        UserError: inputs that are missing, damaged or of another run.
    """
    device = runtime.prepare(params.train)
    dataset = artifacts.read_dataset()
    labels = artifacts.read_labels(dataset)
    module, digest = load_best(params, dataset, labels, "pretrain", device)
    images, _ = runtime.image_store(params, dataset, labels, device)
    rows = torch.arange(len(images))
    size = params.train.eval_batch_size

    @torch.no_grad()
    def batch(indices: torch.Tensor) -> NDArray[np.floating]:
        features: NDArray[np.floating] = pre_logit_features(module, images.batch(indices)).float().cpu().numpy()
        return features

    def chunks() -> Iterator[NDArray[np.floating]]:
        with console.progress("features", len(rows)) as bar:
            for indices in index_batches(rows, size):
                bar.at(int(indices[-1]))
                yield batch(indices)

    width = batch(rows[:1]).shape[1]
    artifacts.write_features(chunks(), len(rows), width, params.features.dtype, labels, digest)
    return f"features: {len(rows)} rows of {width} numbers"
