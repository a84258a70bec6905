"""Time of a training step by several processes beside that by one, on this machine.

    python bench/speed/processes.py  # two processes of one thread, the 16/32/64 network, M = 10
    python bench/speed/processes.py --processes 4 --synthetic 20 --update joint --rounds 5 --out processes.csv

Each process has a GPU, or a thread. They make a step together, then rank 0 makes one alone while the others wait, in
turns. "ratio" is the median over rounds of the first time divided by the second; "passes" is what the count of forward
and backward passes gives. On a machine with other work the clock also shows when that work ran: "fastest" is the ratio
of the fastest steps, and "CPU" the ratio of the times that rank 0 spent computing.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing
from measure import STEPS, hardware
from rivals import Setting
from steps import Runner

from mlnt.training.distributed import ALONE, ProcessRanks, Ranks
from pipeline.base.files import write_csv
from pipeline.training.device import keep_freed_memory


class Timed:
    """A step, timed by the clock and by what this process computed."""

    def __init__(self, args: argparse.Namespace, device: torch.device) -> None:
        self._runner = Runner(STEPS[args.update], Setting(args.network, 32, 128, args.synthetic), device)

    def __call__(self, ranks: Ranks) -> tuple[float, float]:
        self._runner.own.ranks = ranks
        before = time.process_time()
        return self._runner.timed(), time.process_time() - before


def work(rank: int, args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    keep_freed_memory()
    device = torch.device("cpu" if args.device == "cpu" else f"cuda:{rank}")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(args.port), "GLOO_SOCKET_IFNAME": "lo"}
    backend = "gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, rank=rank, world_size=args.processes)
    ranks, step = ProcessRanks(), Timed(args, device)
    together: list[tuple[float, float]] = []
    alone: list[tuple[float, float]] = []
    for number in range(args.rounds + 1):
        ranks.largest(0)  # all are there
        together.append(step(ranks))
        if rank == 0:
            alone.append(step(ALONE))
            print(f"round {number}: {together[-1][0]:.2f} s, by one {alone[-1][0]:.2f} s", file=sys.stderr)
    dist.destroy_process_group()
    if rank == 0:
        report(args, device, together[1:], alone[1:])  # the first ones warm up


def report(
    args: argparse.Namespace,
    device: torch.device,
    together: list[tuple[float, float]],
    alone: list[tuple[float, float]],
) -> None:
    wall, cpu = (statistics.median(a[i] / b[i] for a, b in zip(together, alone, strict=True)) for i in (0, 1))
    shared = 4 if args.update == "joint" else 5
    mine = math.ceil(args.synthetic / args.processes)
    row = {
        "network": args.network,
        "step": args.update,
        "M": args.synthetic,
        "processes": args.processes,
        "ms": round(1000 * statistics.median(wall for wall, _ in together), 1),
        "ms by one": round(1000 * statistics.median(wall for wall, _ in alone), 1),
        "ratio": round(wall, 3),
        "fastest": round(min(together)[0] / min(alone)[0], 3),
        "CPU": round(cpu, 3),
        "passes": round((shared + 5 * mine) / (shared + 5 * args.synthetic), 3),
        "rounds": args.rounds,
        "load": round(os.getloadavg()[1], 1),
    }
    print(json.dumps(hardware(device) | row))
    if args.out:
        write_csv(args.out, [row])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--network", default="preact_resnet32_narrow")
    parser.add_argument("--update", choices=["sequential", "joint"], default="joint")
    parser.add_argument("--synthetic", type=int, default=10, help="M")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--port", type=int, default=29541)
    parser.add_argument("--out", type=Path, help="a CSV with the row")
    args = parser.parse_args()
    torch.multiprocessing.spawn(work, (args,), nprocs=args.processes)


if __name__ == "__main__":
    main()
