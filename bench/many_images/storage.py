"""Images in files (`data.storage: files`): how fast, how much waiting, how much memory, beside torchvision's loader.

python bench/many_images/storage.py --quick                          # a minute, small: that it runs
python bench/many_images/storage.py --entries 10000 100000 1000000   # the table of docs/performance.md
python bench/many_images/storage.py --parts decode --photo 500x400 --images 2000

Files are generated. A data set of N entries lists the same files again and again: what is measured is the list, not
the disk. Every row is a process of its own, so that its peak memory is its own.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import storage_parts as parts
import torch
from photos import ROOT, make_photos
from rich.console import Console
from rich.table import Table
from storage_parts import Row

PARTS = {
    "decode": parts.decode,
    "waiting": parts.waiting,
    "manifest": parts.manifest,
    "noise": parts.labels,
    "batches": parts.batches,
    "features": parts.features,
    "filtering": parts.filtering,
    "evaluate": parts.evaluating,
    "report": parts.reporting,
    "download": parts.downloading,
}
ONCE = ("decode", "waiting")
DECODES_ALL = ("filtering", "evaluate", "report", "download")


def one(part: str, entries: int, args: argparse.Namespace) -> None:
    """In this process: rows as lines of JSON."""
    if args.threads:
        torch.set_num_threads(args.threads)
    for row in PARTS[part](entries, args):
        print(json.dumps({"peak MiB": parts.peak(), **row, "N": "" if part in ONCE else entries}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--entries", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--decoded", type=int, default=20_000, help="entries of the parts that decode each of them")
    parser.add_argument("--photo", default="256x256", help="width x height of the files")
    parser.add_argument("--images", type=int, default=1000, help="how many files")
    parser.add_argument("--resize", type=int, default=256)
    parser.add_argument("--crop", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--network", default="resnet50")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--m", type=int, default=10, help="synthetic mini-batches")
    parser.add_argument("--steps", type=int, default=5, help="of training, timed")
    parser.add_argument("--width", type=int, default=2048, help="of a row of features")
    parser.add_argument("--batches", type=int, default=200, help="of features, read at random")
    parser.add_argument("--whole", action=argparse.BooleanOptionalAction, default=True, help="also read them at once")
    parser.add_argument("--quick", action="store_true", help="small sizes for everything")
    parser.add_argument("--folder", type=Path, help="where to work; a temporary folder unless given")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.quick:
        args.entries, args.decoded, args.images, args.rounds = [1000, 10_000], 300, 100, 3
        args.network, args.m, args.steps, args.resize, args.crop, args.batches = "resnet18", 2, 3, 64, 56, 20
    if args.one:
        one(args.parts[0], int(args.one), args)
        return
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        os.chdir(folder)
        width, _, height = args.photo.partition("x")
        make_photos(Path("photos"), args.images, (int(width), int(height)))
        show(rows_of(args), args)
        os.chdir(ROOT)


def rows_of(args: argparse.Namespace) -> list[Row]:
    found: list[Row] = []
    given = [value for value in sys.argv[1:] if value != "--parts" and value not in PARTS]
    for part in args.parts:
        sizes = [0] if part in ONCE else [args.decoded] if part in DECODES_ALL else args.entries
        for entries in sizes:
            command = [sys.executable, str(Path(__file__).resolve()), *given, "--parts", part, "--one", str(entries)]
            paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
            done = subprocess.run(  # noqa: S603
                command, env={**os.environ, "PYTHONPATH": paths}, stdout=subprocess.PIPE, text=True, check=True
            )
            found += [json.loads(line) for line in done.stdout.splitlines()]
    return found


def show(rows: list[Row], args: argparse.Namespace) -> None:
    table = Table(title=f"files of {args.photo}, resize {args.resize}, crop {args.crop}")
    columns = ("part", "N", "s", "images/s", "peak MiB", "note")
    for column in columns:
        table.add_column(column, justify="left" if column in ("part", "note") else "right")
    for row in rows:
        table.add_row(*(_text(row.get(column, "")) for column in columns))
    Console(width=160).print(table)


def _text(value: Any) -> str:
    return (
        f"{value:,.2f}"
        if isinstance(value, float) and value < 100
        else f"{value:,.0f}"
        if value != "" and not isinstance(value, str)
        else str(value)
    )


if __name__ == "__main__":
    main()
