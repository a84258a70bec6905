"""Time and memory of one training step, beside rivals and beside the bound that its passes set.

    python bench/step.py                       # all settings that fit this machine; a table for each, and a CSV
    python bench/step.py --setting narrow --rounds 5

Each step has a process of its own; they take turns, after a warm-up each. "ratio to joint" is the median over rounds of
this step's time divided by that of the package's `joint` step in the same round. Peak memory is what a step takes
beyond the network, the batch and one forward pass without gradient.

The bound: the forward and backward passes that a step needs, one after the other, at the batch size at which this
machine does most images a second. `joint` needs 2 + M forward passes (teacher, student, M at the fast weights) and
1 + 2M backward passes (one for the class loss, for each m one at θ and one at θ′).
"""

from __future__ import annotations

import argparse
import csv
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from rivals import PlainStep, ReleasedStep, Settings, by_hand, by_torchopt
from torch import nn

from mlnt.allocator import keep_freed_memory
from mlnt.neighbors import Draws
from mlnt.networks import create_model
from mlnt.schedules import Rates
from mlnt.seeding import generator
from mlnt.step import Batch, MLNTStep, TrainState

RATES = Rates(lr=1e-3, meta_lr=1e-3, ema_decay=0.99, teacher_weight=0.0)  # small: the numbers stay tame for any count
BASELINE = "joint"


@dataclass(frozen=True)
class Setting:
    network: str
    pixels: int
    batch_size: int
    num_synthetic: int
    classes: int = 10


SETTINGS = {
    "cpu": {
        "wide": Setting("preact_resnet32", 32, 128, 10),
        "narrow": Setting("preact_resnet32_narrow", 32, 128, 10),
        "resnet50": Setting("resnet50", 224, 12, 2),
    },
    "cuda": {
        "wide": Setting("preact_resnet32", 32, 128, 10),
        "narrow": Setting("preact_resnet32_narrow", 32, 128, 10),
        "resnet50": Setting("resnet50", 224, 32, 10),
    },
}


def package_step(num_synthetic: int, update: Any) -> MLNTStep:
    return MLNTStep(num_synthetic, 0.5, 10, 0.2, 0.9, 1e-4, update=update)


# name → how to make the step, and whether it runs in channels_last, as the package does by default. The rivals run in
# the default layout and with the default allocator, on the package's network.
STEPS: dict[str, tuple[Callable[[int], Callable[..., Any]], bool]] = {
    "joint": (lambda m: package_step(m, "joint"), True),
    "sequential": (lambda m: package_step(m, "sequential"), True),
    "plain, channels_last": (lambda m: PlainStep(Settings(m), by_hand), True),
    "plain": (lambda m: PlainStep(Settings(m), by_hand), False),
    "torchopt": (lambda m: PlainStep(Settings(m), by_torchopt), False),
    "released, as last left": (lambda m: ReleasedStep(Settings(m), "first"), False),
    "released, head": (lambda m: ReleasedStep(Settings(m), "second"), False),
}
PACKAGE = ("joint", "sequential")


class Bench:
    """A network, a batch and a step, ready to run."""

    def __init__(self, name: str, setting: Setting, device: torch.device) -> None:
        make, channels_last = STEPS[name]
        self.format = torch.channels_last if channels_last else torch.contiguous_format
        self.device = device
        self.setting = setting
        self.state = TrainState(self.network())
        self.step = make(setting.num_synthetic)
        draw = generator(0, "bench")
        self.images = self.image_batch(setting.batch_size)
        self.labels = torch.randint(setting.classes, (setting.batch_size,), generator=draw).to(device)
        self.features = torch.randn(setting.batch_size, 128, generator=draw).to(device)
        drawn = package_step(setting.num_synthetic, "joint").draw(setting.batch_size, draw)
        self.draws = None if drawn is None else Draws(*(each.to(device) for each in drawn))

    def network(self) -> nn.Module:
        module = create_model(self.setting.network, num_classes=self.setting.classes, in_chans=3, seed=0)
        return module.to(self.device).to(memory_format=self.format)

    def image_batch(self, size: int) -> torch.Tensor:
        shape = (size, 3, self.setting.pixels, self.setting.pixels)
        return (
            torch.randn(shape, generator=generator(0, "images")).to(self.device).contiguous(memory_format=self.format)
        )

    def __call__(self) -> float:
        """Seconds of one step."""
        batch = Batch(self.images, self.labels, features=self.features, draws=self.draws)
        return self.timed(lambda: self.step(self.state, batch, RATES))

    def timed(self, work: Callable[[], Any]) -> float:
        synchronize(self.device)
        start = time.perf_counter()
        work()
        synchronize(self.device)
        return time.perf_counter() - start


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def passes(bench: Bench, repeats: int) -> tuple[float, float, int]:
    """Seconds per image of a forward and of a backward pass, at the batch size where their sum is smallest."""
    net, best = bench.state.student, (float("inf"), float("inf"), 0)
    for size in (
        bench.setting.batch_size // 4,
        bench.setting.batch_size // 2,
        bench.setting.batch_size,
        2 * bench.setting.batch_size,
    ):
        if size < 2:
            continue
        images = bench.image_batch(size)
        labels = torch.zeros(size, dtype=torch.int64, device=bench.device)

        def forward(images: torch.Tensor = images) -> None:
            with torch.no_grad():
                net.module(images)

        def both(images: torch.Tensor = images, labels: torch.Tensor = labels) -> None:
            torch.autograd.grad(F.cross_entropy(net.module(images), labels), net.parameters)

        both()
        f = statistics.median(bench.timed(forward) for _ in range(repeats)) / size
        fb = statistics.median(bench.timed(both) for _ in range(repeats)) / size
        if fb < sum(best[:2]):
            best = (f, fb - f, size)
    return best


def bound(bench: Bench, repeats: int) -> tuple[float, int]:
    """Seconds of the passes that `joint` needs, and the batch size they were measured at."""
    forward, backward, size = passes(bench, repeats)
    m = bench.setting.num_synthetic
    return bench.setting.batch_size * ((2 + m) * forward + (1 + 2 * m) * backward), size


class Worker:
    """A step in a process of its own, idle until asked."""

    def __init__(self, name: str, setting: Setting, device: torch.device) -> None:
        self._name = name
        command = [sys.executable, __file__, "--device", device.type, "--worker", name, json.dumps(asdict(setting))]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # noqa: S603
        self.peak_mib = self._answer()["peak_mib"]

    def ask(self, question: str) -> dict[str, float]:
        assert self._process.stdin is not None
        print(question, file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> dict[str, float]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(
                f"error: {self._name}: its process ended with status {self._process.wait()}; out of memory?"
            )
        answer: dict[str, float] = json.loads(line)
        return answer

    def end(self) -> None:
        self._process.communicate()


def work(name: str, setting: Setting, device: torch.device) -> None:
    """The other side of `Worker`: warm up, tell the peak of memory, then answer questions."""
    if name in PACKAGE:
        keep_freed_memory()  # as the pipeline does
    bench = Bench(name, setting, device)
    with torch.no_grad():
        bench.state.student.module(bench.images)
    before = torch.cuda.memory_allocated(device) if device.type == "cuda" else resident_peak()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    bench()
    after = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else resident_peak()
    print(json.dumps({"peak_mib": (after - before) / 2**20}), flush=True)
    for question in sys.stdin:
        if question.strip() == "bound":
            seconds, size = bound(bench, repeats=2)
            print(json.dumps({"seconds": seconds, "size": size}), flush=True)
        else:
            print(json.dumps({"seconds": bench()}), flush=True)


def resident_peak() -> int:
    """Bytes of this process at most so far; not `getrusage`, whose figure begins with that of the parent process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024


def compare(setting_name: str, setting: Setting, device: torch.device, rounds: int) -> list[dict[str, Any]]:
    workers: dict[str, Worker] = {}
    for name in STEPS:
        workers[name] = Worker(name, setting, device)
        print(f"{setting_name}: {name} is warm", file=sys.stderr)
    seconds: dict[str, list[float]] = {name: [] for name in [*STEPS, "bound"]}
    size = 0
    for number in range(rounds):
        for name, worker in workers.items():
            seconds[name].append(worker.ask("step")["seconds"])
        answer = workers[BASELINE].ask("bound")
        seconds["bound"].append(answer["seconds"])
        size = int(answer["size"])
        print(f"{setting_name}: round {number + 1} of {rounds}", file=sys.stderr)
    for worker in workers.values():
        worker.end()
    rows = []
    for name, times in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(times, seconds[BASELINE], strict=True))
        rows.append(
            {
                "setting": setting_name,
                "network": setting.network,
                "k": setting.batch_size,
                "M": setting.num_synthetic,
                "step": f"bound (batches of {size})" if name == "bound" else name,
                "ms": round(1000 * statistics.median(times), 1),
                "ratio to joint": round(ratio, 3),
                "joint / this": round(1 / ratio, 3),
                "peak MiB": None if name == "bound" else round(workers[name].peak_mib),
                "rounds": rounds,
            }
        )
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    table = Table(title=f"{rows[0]['network']}, k = {rows[0]['k']}, M = {rows[0]['M']}")
    for column in ("step", "ms", "ratio to joint", "joint / this", "peak MiB"):
        table.add_column(column, justify="left" if column == "step" else "right")
    for row in rows:
        memory = "" if row["peak MiB"] is None else f"{row['peak MiB']:.0f}"
        table.add_row(
            row["step"],
            f"{row['ms']:.0f}" if row["ms"] > 100 else f"{row['ms']:.1f}",
            f"{row['ratio to joint']:.2f}",
            f"{row['joint / this']:.2f}",
            memory,
        )
    Console().print(table)


def hardware(device: torch.device) -> dict[str, Any]:
    if device.type == "cuda":
        return {"device": torch.cuda.get_device_name(device), "torch": torch.__version__}
    model = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    return {
        "device": f"{model}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}",
        "torch": torch.__version__,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--setting", choices=list(SETTINGS["cpu"]), help="one alone; all otherwise")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="a CSV for the tables")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    device = torch.device(args.device)
    settings = {n: s for n, s in SETTINGS[args.device].items() if args.setting in (None, n)}
    if args.worker:
        name, setting = args.worker
        work(name, Setting(**json.loads(setting)), device)
        return
    print(json.dumps(hardware(device)))
    table: list[dict[str, Any]] = []
    for name, setting in settings.items():
        rows = compare(name, setting, device, args.rounds)
        show(rows)
        table += rows
        if args.out:
            with args.out.open("w", newline="") as file:
                writer = csv.DictWriter(file, list(table[0]), lineterminator="\n")
                writer.writeheader()
                writer.writerows(table)


if __name__ == "__main__":
    main()
