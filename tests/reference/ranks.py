"""What three processes compute with gloo, alone, as two and as three ranks; a file each, for `test_ranks.py`.

python tests/reference/ranks.py FOLDER RANK
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from algorithm1 import Hyper
from test_step import BATCH_SIZE, KEPT, make_batch, make_rates, make_state, make_step, preact, snapshot
from torch import Tensor

import mlnt.method.step
from mlnt.images.batches import MemoryImages
from mlnt.images.statistics import InputStatistics
from mlnt.training.distributed import ProcessRanks, Ranks
from mlnt.training.evaluation import predict_logits
from mlnt.training.passes import Network

SIZES = (1, 2, 3)
CASES = [
    *(
        (Hyper(M=m, order=order, update=update, kl=kl), True)
        for m, order, update, kl in itertools.product(
            (2, 5), ("first", "second"), ("sequential", "joint"), ("batchmean", "mean")
        )
    ),
    (Hyper(M=5), False),
    (Hyper(M=5, teacher_bn="ema"), False),
    (Hyper(M=5, fast="classifier"), True),
    (Hyper(M=5, fast="classifier", order="second", update="joint"), True),
]
"""The switches, and whether there is a mentor that has kept some samples. With two mini-batches the third of three
ranks has none, with five they have unequal numbers of them."""
ERRING = "erring"
COUNTS = (0, 1, 2, 3, 7)
IMAGES = 7
BATCH = 2


def steps(h: Hyper, with_mentor: bool, ranks: Ranks) -> dict[str, Tensor]:
    """Everything that two steps have changed, and their losses."""
    mentor = make_state(lambda _: preact(9)).student.module.eval() if with_mentor else None
    state, losses = make_state(), []
    step = make_step(h, mentor)
    step.ranks = ranks
    for seed in (2, 3):
        batch = make_batch(seed, KEPT["some"] if with_mentor else None)
        draws = step.draw(BATCH_SIZE, torch.Generator().manual_seed(seed))
        metrics = step(state, replace(batch, draws=draws), make_rates(h))
        losses += [metrics["class_loss"], metrics["meta_loss"]]
    return snapshot(state) | {"losses": torch.stack(losses)}


@contextmanager
def erring(rank: int) -> Iterator[None]:
    """All ranks but the first find another class gradient, as by a GPU whose kernels add up in any order."""
    exact = mlnt.method.step._gradient_of
    mlnt.method.step._gradient_of = lambda loss, student: [g * (1 + rank / 7) for g in exact(loss, student)]
    try:
        yield
    finally:
        mlnt.method.step._gradient_of = exact


def items(count: int) -> list[Tensor]:
    """Of several lengths, with numbers that a sum would not keep."""
    return [torch.tensor([-0.0, torch.nan, 1.0 + i])[: 1 + i % 3] for i in range(count)]


def predictions(ranks: Ranks) -> dict[str, Tensor]:
    """The logits of two networks, of more and of fewer batches than there are ranks."""
    pixels = torch.randint(256, (IMAGES, 1, 8, 8), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    images = MemoryImages(pixels, InputStatistics(torch.zeros(()), torch.ones(())), torch.device("cpu"))
    networks = [Network(preact(seed).float()) for seed in (3, 4)]
    found: dict[str, Tensor] = {}
    for size in (BATCH, IMAGES):
        logits = predict_logits(networks, images, torch.arange(IMAGES), size, ranks=ranks)
        found |= {f"{size}/{number}": each for number, each in enumerate(logits)}
    assert all(network.module.training for network in networks)
    return found


def main(folder: Path, rank: int) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=max(SIZES), timeout=timedelta(minutes=2))
    found: dict[Any, Any] = {}
    for size in SIZES:
        group = dist.new_group(list(range(size)))
        if rank < size:
            ranks = ProcessRanks(group)
            for case, (h, with_mentor) in enumerate(CASES):
                found[size, case] = steps(h, with_mentor, ranks)
            with erring(rank):
                found[size, ERRING] = steps(*CASES[-4], ranks)
            found[size, "predictions"] = predictions(ranks)
            for count in COUNTS:
                found[size, "items", count] = list(ranks.in_order(iter(ranks.share(items(count)))))
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
