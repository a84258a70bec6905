"""`model.train: head`: the network is frozen, and a linear classifier is trained on its embeddings.

What is trained, evaluated and filtered by is the head on standardised embeddings. What is saved is the whole network,
the standardisation folded into its classifier: on images it gives the logits that the head gives on embeddings.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from mlnt import seeding
from mlnt.images.embeddings import FileEmbeddings, MemoryEmbeddings, SampleRows, Standardization
from mlnt.networks import LinearHead
from pipeline.base.errors import UserError
from pipeline.params.schema import Params
from pipeline.store import models
from pipeline.store.dataset import TRAIN, Dataset, Labels
from pipeline.store.embeddings import EmbeddingFile
from pipeline.training.plan import System
from pipeline.training.start_weights.start import digest_here, identity


class Heads:
    """The embeddings of a run, and the heads that are trained on them.

    Attributes:
        embeddings: data/embeddings.h5.
        standardization: of the training split.
        store: the standardised embeddings of all samples, in the place of their images.
    """

    def __init__(self, params: Params, dataset: Dataset, labels: Labels, device: torch.device) -> None:
        """
        Raises:
            UserError: the embeddings are missing, damaged, or of other data or another network.
        """
        self.embeddings = EmbeddingFile(dataset, identity(params.model))
        self.embeddings.check_weights(digest_here(params.model, self.embeddings.hub))
        self.standardization = Standardization.of(self.embeddings.pieces(labels.rows(TRAIN)))
        self.store: MemoryEmbeddings | FileEmbeddings
        if self.embeddings.gib <= params.run.max_features_gib:
            self.store = MemoryEmbeddings(self.embeddings.read(), self.standardization, device)
        else:
            self.store = FileEmbeddings(self.embeddings, self.standardization, device)
        self._classes = len(dataset.class_names)
        self._seed = params.seed
        self._device = device

    def features(self, labels: Labels) -> Tensor | SampleRows:
        """What neighbours are found by: the standardised embeddings of the training samples."""
        return self.store.features(torch.from_numpy(labels.rows(TRAIN)))

    def fresh(self, system: System) -> nn.Module:
        """The head that a system starts from."""

        def linear(number: int, outputs: int) -> nn.Module:
            made = LinearHead(self.embeddings.width, outputs)
            if number:  # two that start alike would stay alike, where they see the same batches
                draw = seeding.generator(self._seed, "initialisation", *system.address(number))
                nn.init.normal_(made.weight, std=0.01, generator=draw)
            return made

        return system.network(linear, self._classes).to(self._device)

    def whole(self, head: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of the whole network, by the names that `create_model` gives them, from those of a head."""
        whole = dict(head)
        for place in _places(head):
            weight, bias = self.standardization.folded(whole.pop(f"{place}weight"), whole.pop(f"{place}bias"))
            classifier = place + self.embeddings.classifier
            whole |= {place + name: tensor for name, tensor in self._network.items()}
            whole |= {f"{classifier}.weight": weight, f"{classifier}.bias": bias}
        return whole

    def load(self, system: System, path: Path) -> nn.Module:
        """The head in a file that holds what `whole` gave.

        Raises:
            UserError: the file is missing, damaged, or belongs to another network.
        """
        head, tensors = self.fresh(system), models.load_tensors(path)
        try:
            for place in _places(head.state_dict()):
                classifier = place + self.embeddings.classifier
                folded = tensors[f"{classifier}.weight"], tensors[f"{classifier}.bias"]
                tensors[f"{place}weight"], tensors[f"{place}bias"] = self.standardization.unfolded(*folded)
            head.load_state_dict({name: tensors[name] for name in head.state_dict()})
        except (KeyError, RuntimeError) as error:
            reason = str(error).splitlines()[-1].strip()
            raise UserError(f"{path}: not the weights of this network ({reason}); train again: `dvc repro`") from error
        return head

    @cached_property
    def _network(self) -> dict[str, Tensor]:
        return self.embeddings.network()


def _places(head: Mapping[str, Tensor]) -> list[str]:
    """What stands before the names of each linear layer: nothing, or where a system has put it."""
    return [name.removesuffix("weight") for name in head if name.rpartition(".")[2] == "weight"]
