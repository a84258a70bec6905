"""Several processes that make one training together, and what they tell each other: `torch.distributed`, put in words.

Rank r of W takes the synthetic mini-batches r, r + W, … of each step. Mini-batch, draws and forward pass at θ are the
same on every rank. The ranks add up the meta gradient, and all of them take the class gradient of rank 0, so that every
one makes the same update: the step is that of one process to the order of a sum over m, and costs 4 + 5⌈M/W⌉ passes of
the network in the place of 4 + 5M.

Nothing that a rank computes in other bits than the others, by kernels of a GPU that add up in any order or on another
kind of processor, can grow: θ moves by gradients alone, and those are the same bits everywhere. A gradient of its own
would be taken at other weights from then on, and training is chaotic.

What is computed sample by sample, predictions, features and embeddings, is divided by whole batches, each of which is
the same wherever it is made: rank r makes the batches r, r + W, …, and all ranks get the results of all in their order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


class LostRankError(RuntimeError):
    """Another rank has ended, or cannot be reached."""


class Ranks:
    """The processes of one training; this class itself is the one that is alone. Every rank has to call the same
    methods in the same order.

    Attributes:
        rank: r, of this process; rank 0 writes and speaks for all.
        size: W.
    """

    rank: int = 0
    size: int = 1

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over all ranks, the same bits on each."""

    def same_(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by that of rank 0."""

    def largest(self, number: int) -> int:
        """The largest of the numbers of all ranks."""
        return number

    def shared(self, make: Callable[[], T]) -> T:
        """What `make` gives on rank 0, the only one that calls it. It must pickle."""
        return make()

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """Those that this rank works on: r, r + W, …"""
        return items[self.rank :: self.size]

    def in_order(self, made: Iterable[T]) -> Iterator[T]:
        """What all ranks make, in the order of the items whose `share` each of them has; the same on every rank.

        At most W results are there at a time. They must pickle, and lie on the CPU.

        Args:
            made: of this rank's share, in order; it is asked for the next one when those before are used up.
        """
        yield from made


ALONE = Ranks()


class ProcessRanks(Ranks):
    """The ranks of a process group, which has to be initialised: with gloo for tensors on the CPU, the numbers and
    objects, and on GPUs with NCCL too.

    Raises:
        LostRankError: from every method: another rank has ended, or was not heard of for the group's timeout.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self._group = group
        self.rank = dist.get_rank(group)
        self.size = dist.get_world_size(group)

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        self._at_once_(tensors, lambda flat: dist.all_reduce(flat, group=self._group))

    def same_(self, tensors: Sequence[Tensor]) -> None:
        self._at_once_(tensors, lambda flat: dist.broadcast(flat, group=self._group, group_src=0))

    def largest(self, number: int) -> int:
        numbers = torch.tensor([number])
        self._told(lambda: dist.all_reduce(numbers, dist.ReduceOp.MAX, self._group))
        return int(numbers)

    def shared(self, make: Callable[[], T]) -> T:
        box: list[T | None] = [None if self.rank else make()]
        self._told(lambda: dist.broadcast_object_list(box, group=self._group, group_src=0))
        return box[0]  # type: ignore[return-value]

    def in_order(self, made: Iterable[T]) -> Iterator[T]:
        own = iter(made)
        while True:
            found: list[Any] = [None] * self.size
            self._told(partial(dist.all_gather_object, found, next(own, None), group=self._group))
            if found[0] is None:  # the last to have none
                return
            yield from (each for each in found if each is not None)

    @torch.no_grad()
    def _at_once_(self, tensors: Sequence[Tensor], tell: Callable[[Tensor], object]) -> None:
        """In one message: each has its price."""
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        self._told(lambda: tell(flat))
        for tensor, part in zip(tensors, torch.split(flat, [tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view(tensor.shape))

    @staticmethod
    def _told(tell: Callable[[], object]) -> None:
        try:
            tell()
        except RuntimeError as error:
            raise LostRankError(str(error)) from error
