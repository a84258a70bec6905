"""Does every kind of step run on this GPU, is it right, how fast is it? One command, one table, at most nine minutes.

    python bench/gpu.py --images cifar10-jpeg.tar.xz --out docs/results/gpu

It needs torch, timm, numpy and Pillow, nothing else of the package's requirements. `--images` is an archive with
CIFAR-10 as images, `…/train/CLASS/FILE` and `…/test/CLASS/FILE`; without it scikit-learn's digits take its place. Each
part ends in rows of the CSV, so that a stop loses no more than one part; a case that fails is a row that says why.

    equal     a step in float64 on the GPU beside the same on the CPU, eager and recorded (CUDA graph); compiled, in
              bfloat16; images in memory beside images in files
    speed     milliseconds a step and MiB beyond the network, beside rivals and the bound: a forward and a backward
              pass, recorded
    scaling   the same for other M and k
    training  cross entropy, then MLNT's first iteration, as many epochs as the minutes allow; stopped half-way, and
              gone on from a checkpoint

With `--miniature` everything is small, and runs on a CPU too.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "bench/speed")]  # nothing is installed where this runs

import torch
import torch.nn.functional as F
from gpu_equal import equal
from gpu_training import Row, read_images, trained
from rivals import Setting
from steps import Kind, Runner

from mlnt.training.cuda_graph import CUDAGraphs
from mlnt.training.state import Metrics

Case = tuple[Row, Callable[..., Row], tuple[Any, ...]]
"""What a row says before anything has run, the work, its arguments."""


def attempt(row: Row, work: Callable[..., Row], arguments: tuple[Any, ...]) -> Row:
    """The row with what `work` found, or with why it failed."""
    try:
        row = row | work(*arguments)
    except Exception as error:
        row = row | {"result": f"failed: {type(error).__name__}: {' '.join(str(error).split())[:300]}"}
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    print(json.dumps(row), flush=True)
    return row


def milliseconds(runner: Runner, seconds: float, work: Callable[[], Any] | None = None) -> float:
    """Median of at least three steps, or of other work, for about this long."""
    times: list[float] = []
    while len(times) < 3 or (sum(times) < seconds and len(times) < 100):
        times.append(runner.timed(work))
    return 1000 * statistics.median(times)


def timed(kind: Kind, setting: Setting, device: torch.device, seconds: float) -> Row:
    runner = Runner(kind, setting, device)
    row: Row = {"network": setting.network, "pixels": setting.pixels, "k": setting.batch_size}
    row["M"] = runner.own.num_synthetic
    before = 0
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    for _ in range(3):
        runner()
    if device.type == "cuda":
        row["peak MiB"] = round((torch.cuda.max_memory_allocated() - before) / 2**20)
    return row | {"ms": round(milliseconds(runner, seconds), 3), "result": "ran"}


def bound(setting: Setting, device: torch.device, seconds: float) -> Row:
    """Milliseconds of a forward pass without gradient, and of a forward with its backward pass, recorded."""
    runner = Runner(Kind(), setting, device)
    net, inputs = runner.state.student, runner.inputs

    def forward() -> Metrics:
        with torch.no_grad():
            return {"loss": net.module(inputs["images"]).sum()}

    def both() -> Metrics:
        gradient = torch.autograd.grad(F.cross_entropy(net.module(inputs["images"]), inputs["labels"]), net.parameters)
        return {"loss": gradient[0].sum()}

    found: list[float] = []
    for work in (forward, both):
        replay = CUDAGraphs(device)(work, runner.state.tensors())[0] if device.type == "cuda" else work
        found.append(milliseconds(runner, seconds, replay))
    return {"forward ms": round(found[0], 3), "backward ms": round(found[1] - found[0], 3), "result": "ran"}


def speed(settings: list[Setting], device: torch.device, seconds: float, more: bool) -> Iterator[Case]:
    own = [Kind(num_synthetic=0)]
    own += [Kind(fast, update) for fast in ("classifier", "all") for update in ("joint", "sequential")]
    for setting in settings:
        kinds = [*own, Kind("classifier", "joint", "second"), Kind("all", "joint", "second")]
        kinds += [Kind(rival=rival, channels_last=False) for rival in ("plain", "released")]
        if device.type == "cuda":
            kinds += [replace(kind, recorded=True) for kind in own]
            kinds += [replace(kind, recorded=True, channels_last=False) for kind in own]
            kinds += [replace(kind, recorded=True, amp=True) for kind in own]
        if more and setting is settings[0]:
            kinds += [replace(kind, compiled=True) for kind in own[:2]]
        about = {"part": "speed", "network": setting.network, "pixels": setting.pixels, "k": setting.batch_size}
        yield {**about, "case": "bound"}, bound, (setting, device, seconds)
        for kind in kinds:
            yield {**about, "case": str(kind)}, timed, (kind, setting, device, seconds)


def scaling(setting: Setting, device: torch.device, seconds: float, more: bool) -> Iterator[Case]:
    settings = [replace(setting, num_synthetic=m) for m in ((1, 2, 5, 20, 50) if more else (1, 3))]
    settings += [replace(setting, batch_size=k) for k in ((32, 64, 256, 512, 1024) if more else (16,))]
    for at in settings:
        for kind in (Kind("classifier", "joint"), Kind("all", "joint")):
            here = replace(kind, recorded=device.type == "cuda")
            yield {"part": "scaling", "case": str(here)}, timed, (here, at, device, seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--images", type=Path, help="an archive of CIFAR-10 as images; without it, digits")
    parser.add_argument("--minutes", type=float, default=9.0, help="the training ends by then")
    parser.add_argument("--parts", nargs="*", choices=["equal", "speed", "scaling", "training"])
    parser.add_argument("--miniature", action="store_true", help="small, for a CPU")
    parser.add_argument("--out", type=Path, required=True, help="a folder for gpu.csv")
    arguments = parser.parse_args()
    start, device, more = time.perf_counter(), torch.device(arguments.device), not arguments.miniature
    tiny = Setting("preact_resnet_tiny", 8, 32, 2)
    narrow, wide = Setting("preact_resnet32_narrow", 32, 128, 10), Setting("preact_resnet32", 32, 128, 10)
    settings = [narrow, wide, Setting("resnet50", 224, 32, 10)] if more else [tiny]
    seconds = 1.0 if more else 0.02
    images = read_images(arguments.images)
    rows: list[Row] = [about(device)]
    print(json.dumps(rows[0]), flush=True)

    def left() -> float:
        return 60 * arguments.minutes - (time.perf_counter() - start)

    def training() -> Iterator[Case]:
        network, most = ("preact_resnet32", 120) if more else ("preact_resnet_tiny", 2)
        for number, fast_weights in enumerate(("", "classifier")):
            case = "MLNT 1, classifier, sequential" if fast_weights else "CE-EMA"
            row = {"part": "training", "case": case, "network": network}
            yield row, trained, (network, images, fast_weights, device, left() / (2 - number) - 5, most)

    parts: dict[str, Callable[[], Iterator[Case]]] = {
        "equal": lambda: equal(
            replace(narrow, pixels=16, batch_size=24, num_synthetic=3) if more else tiny, images, device, more
        ),
        "speed": lambda: speed(settings, device, seconds, more),
        "scaling": lambda: scaling(settings[0], device, seconds / 2, more),
        "training": training,
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in arguments.parts or parts:
        begun = time.perf_counter()
        rows += (attempt(*case) for case in parts[name]())
        rows.append({"part": name, "case": "seconds", "result": round(time.perf_counter() - begun, 1)})
        columns = list(dict.fromkeys(key for row in rows for key in row))
        with (arguments.out / "gpu.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    bad = [row for row in rows if str(row.get("result")).startswith(("failed", "DIFFERENT"))]
    print(f"{len(rows)} rows, {len(bad)} of them failed or different")
    sys.exit(bool(bad))


def about(device: torch.device) -> Row:
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    return {"part": "machine", "case": name, "result": f"torch {torch.__version__}, CUDA {torch.version.cuda}"}


if __name__ == "__main__":
    main()
