"""data/embeddings.h5: what a frozen network sees in each image, in sample order, and that network; empty where no head
is trained."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load
from torch import Tensor

from mlnt.images.statistics import InputStatistics
from pipeline.base import files
from pipeline.base.errors import UserError
from pipeline.store import hdf5
from pipeline.store.dataset import Dataset
from pipeline.store.models import encoded
from pipeline.store.rows import RowFile, write_rows

COMMAND = "embed"


@dataclass(frozen=True)
class Embedder:
    """The network that embeds.

    Attributes:
        start: which one it is: its name, and how its images are normalised.
        weights: the digest of the file that it starts from, "" where that is not known.
        hub: the repository on the Hugging Face hub that the file is from, "" for another file.
        classifier: the name of its last layer, a linear one.
        tensors: all of it by name; the classifier's are of no use.
    """

    start: str
    weights: str
    hub: str
    classifier: str
    tensors: dict[str, Tensor]


def write(
    pieces: Iterable[NDArray[np.floating]],
    shape: tuple[int, int],
    dtype: str,
    dataset: Dataset,
    network: Embedder,
    statistics: InputStatistics,
) -> str:
    """Write data/embeddings.h5 from float32 rows of this shape [N, D]; returns its digest.

    Args:
        statistics: what the images were normalised by.

    Raises:
        UserError: a number is not finite, or too large for `dtype`. The file is then as it was before.
    """
    arrays = {
        "network": np.frombuffer(encoded(network.tensors), np.uint8),
        "input_mean": np.atleast_1d(statistics.mean.numpy()),
        "input_std": np.atleast_1d(statistics.std.numpy()),
    }
    about = {"start": network.start, "weights": network.weights, "classifier": network.classifier}
    about["dataset_digest"] = dataset.digest
    digest = hashlib.sha256(hdf5.digest(arrays, {**about, "dtype": dtype}).encode())

    def hashed() -> Iterator[NDArray[np.floating]]:
        for piece in pieces:
            digest.update(np.ascontiguousarray(piece).data)
            yield piece

    with hdf5.create(files.EMBEDDINGS) as (file, sink):
        write_rows(file, sink, "embeddings", hashed(), shape, dtype, "give other weights: the network is broken")
        hdf5.store(file, arrays, {**about, "hub": network.hub, "digest": digest.hexdigest()})
    return digest.hexdigest()


class EmbeddingFile(RowFile):
    """Rows of the table.

    Attributes:
        digest: of the file.
        hub: the repository of the network's weights, as `Embedder.hub`.
        classifier: the name of the network's last layer.
        statistics: what its images are normalised by.
    """

    def __init__(self, dataset: Dataset, start: str) -> None:
        """Open data/embeddings.h5, and check that it was made from this data set by this network (`Embedder.start`).

        Raises:
            UserError: the file is missing, damaged, empty, or made from other data or by another network.
        """
        with hdf5.opened(files.EMBEDDINGS, COMMAND) as file:
            about = hdf5.about(file)
            if about.get("start") != start:
                raise UserError(
                    f"{files.EMBEDDINGS}: was made by {about.get('start', 'no network, for model.train: all')}, "
                    f"expected {start}; run `mlnt {COMMAND}` again, or `dvc repro`"
                )
            hdf5.check_origin(file, files.EMBEDDINGS, "dataset", dataset.digest, COMMAND)
            self.digest: str = about["digest"]
            self.hub: str = about["hub"]
            self._weights: str = about["weights"]
            self.classifier: str = about["classifier"]
            mean, std = (torch.from_numpy(file[name][:]) for name in ("input_mean", "input_std"))
            self.statistics = InputStatistics(mean, std)
        super().__init__(files.EMBEDDINGS, "embeddings")

    def check_weights(self, expected: str) -> None:
        """Check that the network had the weights of this digest; "" takes any.

        Raises:
            UserError: it had others.
        """
        if expected and self._weights != expected:
            raise UserError(
                f"{files.EMBEDDINGS}: was made by other weights (digest {self._weights[:12] or 'not known'}, expected "
                f"{expected[:12]}); run `mlnt {COMMAND}` again, or `dvc repro`"
            )

    def network(self) -> dict[str, Tensor]:
        """The tensors of the network that made it, by name.

        Raises:
            UserError: the file is damaged.
        """
        with hdf5.reading(files.EMBEDDINGS):
            return load(self._file["network"][:].tobytes())

    def pieces(self, rows: NDArray[np.int64]) -> Iterator[Tensor]:
        """These rows, in order, in pieces."""
        for at in range(0, len(rows), PIECE):
            yield self.rows(torch.from_numpy(rows[at : at + PIECE]))


PIECE = 4096
