"""Embeddings in the place of images: rows of a frozen network's pre-logit features, standardised."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

LEAST = 1e-3
"""A feature that varies less than this, measured by the mean deviation of all, is divided by as much."""


@dataclass(frozen=True)
class Standardization:
    """h ↦ (h − mean) / std, feature by feature; both float64 [D] on the CPU."""

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, pieces: Iterable[Tensor]) -> Standardization:
        """Of the rows [n, D] in these pieces, at least one; sums in float64.

        A feature that is all but constant there is not blown up: its deviation counts as `LEAST` of the mean one.
        """
        count, total, squares = 0, torch.zeros(()), torch.zeros(())
        for piece in pieces:
            rows = piece.double()
            count, total, squares = count + len(rows), total + rows.sum(dim=0), squares + rows.square().sum(dim=0)
        mean = total / count
        std = (squares / count - mean.square()).clamp_min(0).sqrt()
        return cls(mean, std.clamp_min(max(LEAST * float(std.mean()), torch.finfo(torch.float32).tiny)))

    def __call__(self, rows_ND: Tensor) -> Tensor:
        """In float32, on the device of the rows."""
        device = rows_ND.device
        return (rows_ND.float() - self.mean.float().to(device)).div_(self.std.float().to(device))

    def folded(self, weight_CD: Tensor, bias_C: Tensor) -> tuple[Tensor, Tensor]:
        """The linear layer that gives for h what this one gives for (h − mean) / std."""
        weight = weight_CD.double().cpu() / self.std
        return weight.to(weight_CD.dtype), (bias_C.double().cpu() - weight @ self.mean).to(bias_C.dtype)

    def unfolded(self, weight_CD: Tensor, bias_C: Tensor) -> tuple[Tensor, Tensor]:
        """The inverse of `folded`."""
        weight, bias = weight_CD.double().cpu(), bias_C.double().cpu()
        return (weight * self.std).to(weight_CD.dtype), (bias + weight @ self.mean).to(bias_C.dtype)


class Rows(Protocol):
    """A table that is not in memory."""

    def __len__(self) -> int: ...

    def rows(self, positions: Tensor) -> Tensor:
        """[B, D] on the CPU."""
        ...


class MemoryEmbeddings:
    """An `ImageStore` of a table [N, D], standardised and moved to the device once; `batch` gives [B, D]."""

    def __init__(self, table: Tensor, standardization: Standardization, device: torch.device) -> None:
        self._table = standardization(table.to(device))
        self.device = device

    def __len__(self) -> int:
        return len(self._table)

    def fetch(self, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        return (indices.to(self.device, non_blocking=True) for indices in batches)

    def batch(self, fetched: Tensor) -> Tensor:
        return self._table[fetched]

    def features(self, samples: Tensor) -> Tensor:
        """The rows of these samples [n, D], to find neighbours by."""
        return self._table[samples.to(self.device)]

    def close(self) -> None:
        pass


class FileEmbeddings:
    """The same of a table that is read row by row."""

    def __init__(self, table: Rows, standardization: Standardization, device: torch.device) -> None:
        self._table = table
        self._standardize = standardization
        self.device = device

    def __len__(self) -> int:
        return len(self._table)

    def fetch(self, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        return (self._table.rows(indices).to(self.device, non_blocking=True) for indices in batches)

    def batch(self, fetched: Tensor) -> Tensor:
        return self._standardize(fetched)

    def features(self, samples: Tensor) -> SampleRows:
        """The rows of these samples, to find neighbours by."""
        return SampleRows(self._table, self._standardize, samples)

    def close(self) -> None:
        pass


@dataclass(frozen=True)
class SampleRows:
    """`mlnt.training.data.FeatureRows` of some samples of a table."""

    table: Rows
    standardize: Standardization
    samples: Tensor

    def rows(self, positions: Tensor) -> Tensor:
        return self.standardize(self.table.rows(self.samples[positions]))
