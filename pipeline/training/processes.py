"""A stage in several processes: how they find each other, end together, and share one checkpoint.

Each is a process of this stage that a launcher has started with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT in its
environment: `pipeline.cli.launch`, or torchrun by hand, on one machine or many.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from mlnt.training.distributed import ALONE, LostRankError, ProcessRanks, Ranks
from pipeline.base import console, signals
from pipeline.base.errors import RunError, UserError
from pipeline.params.schema import Params
from pipeline.store import checkpoints
from pipeline.store.record import Record
from pipeline.training.device import prepare

TIMEOUT = timedelta(minutes=10)
"""After which a process that is not heard of counts as lost. While rank 0 saves, the others wait."""
PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
TOLD, STATUS = "mlnt/told", "mlnt/status"


@contextmanager
def joined(params: Params, count: int) -> Iterator[Ranks]:
    """The ranks of this stage, once all are there; a process that nobody has launched is alone, and so is that of a
    stage that is worth no more than one (`count`).

    Only rank 0 speaks. Of an error that ends several processes, the first one to have it raises it, and the others end
    in silence with the same exit status.

    Raises:
        RunError: another process was lost.
    """
    if count == 1 or not {"RANK", "WORLD_SIZE"} <= os.environ.keys():
        yield ALONE
        return
    _end_with_launcher()
    store, rank, size = next(rendezvous("env://", timeout=TIMEOUT))
    if rank:
        console.mute()
    try:
        backend = "cpu:gloo,cuda:nccl" if prepare(params.compute).type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=TIMEOUT)
        yield ProcessRanks()
    except Exception as error:
        signals.ignore()  # it ends by itself, with its own words and status, when the launcher ends the others
        with suppress(dist.DistError):  # without a store, whoever kept it has ended: each tells its own
            if store.add(TOLD, 1) > 1:
                raise SystemExit(int(store.get(STATUS))) from None
            store.set(STATUS, str(2 if isinstance(error, UserError) else 1))
        if isinstance(error, LostRankError):
            raise RunError(
                f"another of {size} processes ended, or was not heard of for {TIMEOUT}: was it killed, or out of "
                "memory? The same command goes on from what is saved"
            ) from error
        raise
    finally:
        if dist.is_initialized():  # else its threads may end the process by SIGABRT, whatever status it has
            dist.destroy_process_group()


@contextmanager
def progress(ranks: Ranks, title: str, total: int) -> Iterator[Callable[[int], None]]:
    """How far the ranks are with something that all of them go through in the same order; the block calls what it is
    given with the number of samples that are done. A signal to one of several ranks ends all of them there."""
    with ExitStack() as stack:
        stop = stack.enter_context(signals.deferred()) if ranks.size > 1 else signals.Stop()
        bar = stack.enter_context(console.progress(title, total))

        def end_if_asked() -> None:
            if signal := ranks.largest(stop.requested):
                signals.end(signal)

        def at(done: int) -> None:
            bar.at(done - 1)
            end_if_asked()

        yield at
        end_if_asked()


def _end_with_launcher() -> None:
    """A launcher that is killed can end nobody: let the system send SIGTERM then. Of Linux, and of torch's launchers,
    whose main thread starts processes: the signal comes when that thread ends."""
    if sys.platform.startswith("linux") and "TORCHELASTIC_RUN_ID" in os.environ:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def require_same(ranks: Ranks, record: Record) -> None:
    """
    Raises:
        UserError: the stage of rank 0 would end in another record: on another machine something else lies.
    """
    own = asdict(record)
    theirs = ranks.shared(lambda: own)
    other = [name for name, value in own.items() if theirs[name] != value]
    if other:
        raise UserError(
            f"{record.stage}: rank {ranks.rank} has other {', '.join(other)} than rank 0; expected the same "
            "params.yaml, data, models, code and packages on every machine"
        )


class SharedCheckpoint:
    """A checkpoint that rank 0 keeps for all ranks; `store.checkpoints.Checkpoint` for one. Every rank calls the same
    methods."""

    def __init__(self, ranks: Ranks, of_rank_0: checkpoints.Checkpoint | None) -> None:
        self._ranks = ranks
        self._own = of_rank_0

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        return self._ranks.shared(lambda: self.of_rank_0.load())  # noqa: PLW0108 (only rank 0 has it)

    def save(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """It is saved when this returns, on every rank: no process ends before."""
        self._ranks.shared(lambda: self.of_rank_0.save(tensors, values))

    def has_piece(self, number: int) -> bool:
        return self._ranks.shared(lambda: self.of_rank_0.has_piece(number))

    def save_piece(self, number: int, tensors: Mapping[str, Tensor]) -> None:
        self._ranks.shared(lambda: self.of_rank_0.save_piece(number, tensors))

    def load_piece(self, number: int) -> dict[str, Tensor]:
        return self._ranks.shared(lambda: self.of_rank_0.load_piece(number))

    def note_divergence(self, params: Mapping[str, Any], message: str) -> None:
        """By rank 0, whom another rank that has diverged and ended first would not interrupt."""
        if self._own is not None:
            with signals.deferred():
                self._own.note_divergence(params, message)

    def remove(self) -> None:
        self.of_rank_0.remove()

    @property
    def of_rank_0(self) -> checkpoints.Checkpoint:
        """On rank 0 alone: the checkpoint itself, of which no other rank hears."""
        assert self._own is not None  # noqa: S101
        return self._own


@contextmanager
def opened(record: Record, ranks: Ranks) -> Iterator[SharedCheckpoint]:
    """The checkpoint of a run, as `checkpoints.opened` gives it to rank 0.

    Raises:
        UserError, RunError: on rank 0, as there.
    """
    if ranks.rank:
        yield SharedCheckpoint(ranks, None)
        return
    with checkpoints.opened(record) as own:
        yield SharedCheckpoint(ranks, own)
