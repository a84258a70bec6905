"""A training step in a process of its own, timed when asked: what step.py and scaling.py share."""

from __future__ import annotations

import argparse
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
from rivals import PlainStep, ReleasedStep, Setting, Settings, by_hand, by_torchopt
from torch import nn

from mlnt.method.step import MLNTStep
from mlnt.networks import create_model
from mlnt.seeding import generator
from mlnt.training.state import Batch, Rates, TrainState
from pipeline.training.device import keep_freed_memory

RATES = Rates(lr=1e-3, meta_lr=1e-3, ema_decay=0.99, teacher_weight=0.0)  # small: the numbers stay tame for any count


def package_step(num_synthetic: int, update: Any, fast_weights: Any = "all") -> MLNTStep:
    return MLNTStep(num_synthetic, 0.5, 10, 0.2, 0.9, 1e-4, update=update, fast_weights=fast_weights)


@dataclass(frozen=True)
class Contender:
    """How to make a step for M, and how the network runs: the rivals in PyTorch's default layout and with the C
    library's default allocator, the package as its pipeline does."""

    make: Callable[[int], Callable[..., Any]]
    channels_last: bool = False
    keep_memory: bool = False
    amp: torch.dtype | None = None


STEPS = {
    "joint": Contender(lambda m: package_step(m, "joint"), True, True),
    "sequential": Contender(lambda m: package_step(m, "sequential"), True, True),
    "CE-EMA": Contender(lambda _: package_step(0, "joint"), True, True),
    "joint, classifier": Contender(lambda m: package_step(m, "joint", "classifier"), True, True),
    "sequential, classifier": Contender(lambda m: package_step(m, "sequential", "classifier"), True, True),
    "joint, bfloat16": Contender(lambda m: package_step(m, "joint"), True, True, torch.bfloat16),
    "plain, channels_last": Contender(lambda m: PlainStep(Settings(m), by_hand), True),
    "plain": Contender(lambda m: PlainStep(Settings(m), by_hand)),
    "torchopt": Contender(lambda m: PlainStep(Settings(m), by_torchopt)),
    "released, as last left": Contender(lambda m: ReleasedStep(Settings(m), "first")),
    "released, head": Contender(lambda m: ReleasedStep(Settings(m), "second")),
}


class Bench:
    """A network, a batch and a step, ready to run."""

    def __init__(self, name: str, setting: Setting, device: torch.device) -> None:
        contender = STEPS[name]
        self.format = torch.channels_last if contender.channels_last else torch.contiguous_format
        self.device = device
        self.setting = setting
        self.state = TrainState(self.network(), contender.amp)
        self.step = contender.make(setting.num_synthetic)
        draw = generator(0, "bench")
        self.images = self.image_batch(setting.batch_size)
        self.labels = torch.randint(setting.classes, (setting.batch_size,), generator=draw).to(device)
        self.features = torch.randn(setting.batch_size, 128, generator=draw).to(device)
        drawn = package_step(setting.num_synthetic, "joint").draw(setting.batch_size, draw)
        self.draws = {name: each.to(device) for name, each in drawn.items()}

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
        command = [sys.executable, __file__, name, json.dumps(asdict(setting)), device.type]
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
    if STEPS[name].keep_memory:
        keep_freed_memory()
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


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    parser.add_argument("setting")
    parser.add_argument("device")
    args = parser.parse_args()
    work(args.name, Setting(**json.loads(args.setting)), torch.device(args.device))
