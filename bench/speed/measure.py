"""A training step in a process of its own, timed when asked: what step.py and scaling.py share."""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rivals import Setting
from steps import Kind, Runner

from pipeline.training.device import keep_freed_memory

STEPS = {
    "joint": Kind(),
    "sequential": Kind(update="sequential"),
    "CE-EMA": Kind(num_synthetic=0),
    "joint, classifier": Kind("classifier"),
    "sequential, classifier": Kind("classifier", "sequential"),
    "joint, bfloat16": Kind(amp=True),
    "plain, channels_last": Kind(rival="plain"),
    "plain": Kind(rival="plain", channels_last=False),
    "torchopt": Kind(rival="torchopt", channels_last=False),
    "released, as last left": Kind(rival="released", channels_last=False),
    "released, head": Kind(rival="released, head", channels_last=False),
}
"""The rivals run in PyTorch's default layout, the package as its pipeline does."""


def passes(runner: Runner, repeats: int) -> tuple[float, float, int]:
    """Seconds per image of a forward and of a backward pass, at the batch size where their sum is smallest."""
    net, best = runner.state.student, (float("inf"), float("inf"), 0)
    for size in (
        runner.setting.batch_size // 4,
        runner.setting.batch_size // 2,
        runner.setting.batch_size,
        2 * runner.setting.batch_size,
    ):
        if size < 2:
            continue
        images = runner.images(size)
        labels = torch.zeros(size, dtype=torch.int64, device=runner.device)

        def forward(images: torch.Tensor = images) -> None:
            with torch.no_grad():
                net.module(images)

        def both(images: torch.Tensor = images, labels: torch.Tensor = labels) -> None:
            torch.autograd.grad(F.cross_entropy(net.module(images), labels), net.parameters)

        both()
        f = statistics.median(runner.timed(forward) for _ in range(repeats)) / size
        fb = statistics.median(runner.timed(both) for _ in range(repeats)) / size
        if fb < sum(best[:2]):
            best = (f, fb - f, size)
    return best


def bound(runner: Runner, repeats: int) -> tuple[float, int]:
    """Seconds of the passes that `joint` needs, and the batch size they were measured at."""
    forward, backward, size = passes(runner, repeats)
    m = runner.setting.num_synthetic
    return runner.setting.batch_size * ((2 + m) * forward + (1 + 2 * m) * backward), size


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
    if not STEPS[name].rival:
        keep_freed_memory()  # as the pipeline does; rivals have the C library's default allocator
    runner = Runner(STEPS[name], setting, device)
    with torch.no_grad():
        runner.state.student.module(runner.inputs["images"])
    before = torch.cuda.memory_allocated(device) if device.type == "cuda" else resident_peak()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    runner()
    after = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else resident_peak()
    print(json.dumps({"peak_mib": (after - before) / 2**20}), flush=True)
    for question in sys.stdin:
        if question.strip() == "bound":
            seconds, size = bound(runner, repeats=2)
            print(json.dumps({"seconds": seconds, "size": size}), flush=True)
        else:
            print(json.dumps({"seconds": runner.timed()}), flush=True)


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
    step, of, on = sys.argv[1:]
    work(step, Setting(**json.loads(of)), torch.device(on))
