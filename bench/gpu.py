"""Does every kind of step run on this GPU, is it right, how fast is it? One command, one table, at most nine minutes.

    PYTHONPATH=. python bench/gpu.py --images cifar10-jpeg.tar.xz --out docs/results/gpu

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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from gpu_training import Images, Row, files_beside_memory, now, read_images, trained
from rivals import PlainStep, ReleasedStep, Setting, Settings, by_hand

from mlnt.method.step import MLNTStep
from mlnt.networks import create_model
from mlnt.seeding import generator
from mlnt.training.cuda_graph import CUDAGraphs, RecordedStep
from mlnt.training.draws import StepInputs, below
from mlnt.training.state import Batch, Metrics, Rates, TrainState

RATES = Rates(lr=1e-2, meta_lr=1e-2, ema_decay=0.9, teacher_weight=0.0)


@dataclass(frozen=True)
class Kind:
    """A kind of step, and how it runs."""

    fast_weights: Any = "all"
    update: Any = "joint"
    order: Any = "first"
    num_synthetic: int | None = None
    dtype: torch.dtype = torch.float32
    amp: bool = False
    channels_last: bool = True
    recorded: bool = False
    compiled: bool = False
    rival: str = ""

    def __str__(self) -> str:
        if self.rival:
            return f"{self.rival}, channels_last" if self.channels_last else self.rival
        name = "CE-EMA" if self.num_synthetic == 0 else f"{self.fast_weights}, {self.update}, {self.order}"
        parts = {"recorded": self.recorded, "compiled": self.compiled, "bfloat16": self.amp}
        parts |= {"contiguous": not self.channels_last}
        return ", ".join([name, *(part for part, has in parts.items() if has)])


class Runner:
    """A network, batches, and a step of one kind."""

    def __init__(self, kind: Kind, setting: Setting, device: torch.device) -> None:
        self.kind, self.setting, self.device = kind, setting, device
        module = create_model(setting.network, num_classes=10, in_chans=3, seed=0).to(device, kind.dtype)
        self.format = torch.channels_last if kind.channels_last else torch.contiguous_format
        self.state = TrainState(module.to(memory_format=self.format), torch.bfloat16 if kind.amp else None)
        if kind.compiled:
            self.state.compile()
        m = setting.num_synthetic if kind.num_synthetic is None else kind.num_synthetic
        rivals = {"plain": PlainStep(Settings(m), by_hand), "released": ReleasedStep(Settings(m), "first")}
        ways = {"fast_weights": kind.fast_weights, "order": kind.order, "update": kind.update}
        self.own = MLNTStep(m, 0.5, min(10, setting.batch_size - 1), 0.2, 0.9, 1e-4, **ways)
        self.step: Any = rivals[kind.rival] if kind.rival else self.own
        self.inputs = self._batch(0)
        self._recorded = RecordedStep(self._on, self.state.tensors()) if kind.recorded else None

    def _batch(self, number: int) -> StepInputs:
        size, draw = self.setting.batch_size, generator(number, "gpu")
        shape = (size, 3, self.setting.pixels, self.setting.pixels)
        images = torch.randn(shape, generator=draw, dtype=torch.float64).to(self.device, self.kind.dtype)
        drawn = {f"draws/{name}": value.to(self.device) for name, value in self.own.draw(size, draw).items()}
        return {
            "images": images.contiguous(memory_format=self.format),
            "labels": torch.randint(10, (size,), generator=draw).to(self.device),
            "features": torch.randn(size, 128, generator=draw).to(self.device),
            **drawn,
        }

    def _on(self, inputs: StepInputs, rates: Rates, any_kept: bool) -> Metrics:
        del any_kept  # all are
        batch = Batch(inputs["images"], inputs["labels"], features=inputs["features"], draws=below(inputs, "draws/"))
        found: Metrics = self.step(self.state, batch, rates)
        return found

    def __call__(self, number: int | None = None) -> Metrics:
        inputs = self.inputs if number is None else self._batch(number)
        return (self._recorded or self._on)(inputs, RATES, True)

    def milliseconds(self, seconds: float) -> float:
        """Median of at least three steps, for about this long."""
        times: list[float] = []
        while len(times) < 3 or (sum(times) < seconds and len(times) < 100):
            start = now(self.device)
            self()
            times.append(now(self.device) - start)
        return 1000 * statistics.median(times)


def attempt(row: Row, work: Callable[..., Row], *arguments: Any) -> Row:
    """The row with what `work` found, or with why it failed."""
    try:
        row = row | work(*arguments)
    except Exception as error:
        row = row | {"result": f"failed: {type(error).__name__}: {' '.join(str(error).split())[:300]}"}
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    print(json.dumps(row), flush=True)
    return row


# equal


def largest_difference(one: Runner, other: Runner) -> float:
    """Over student, teacher and momentum, relative to the largest entry of each tensor."""
    pairs = zip(one.state.tensors(), other.state.tensors(), strict=True)
    found = []
    for mine, others in pairs:
        of = others.detach().cpu().double()
        found.append(float((mine.detach().cpu().double() - of).abs().max() / of.abs().max().clamp(min=1e-12)))
    return max(found)


def beside_the_cpu(kind: Kind, reference: Runner, setting: Setting, device: torch.device) -> Row:
    runner = Runner(kind, setting, device)
    for number in (1, 2):
        runner(number)
    difference = largest_difference(runner, reference)
    return {"difference": difference, "result": "equal" if difference < 1e-9 else "DIFFERENT"}


def beside_plain(kind: Kind, setting: Setting, device: torch.device) -> Row:
    """The second step of a compiled one, or one in bfloat16, beside the same in float32."""
    losses = []
    for each in (kind, replace(kind, compiled=False, amp=False, recorded=False)):
        runner = Runner(each, setting, device)
        runner(1)
        losses.append(float(runner(2)["class_loss"]))
        if not all(bool(tensor.isfinite().all()) for tensor in runner.state.tensors()):
            return {"result": f"DIFFERENT: {each} is not finite"}
    difference = abs(losses[0] - losses[1]) / losses[1]
    within = difference < (0.05 if kind.amp else 1e-3)
    return {"difference": difference, "result": "within rounding" if within else "DIFFERENT"}


def equal(setting: Setting, images: Images, device: torch.device, more: bool) -> Iterator[Row]:
    cuda = device.type == "cuda"
    kinds = [
        Kind(fast, update, order)
        for fast in ("classifier", "all")
        for update in ("joint", "sequential")
        for order in ("first", "second")
    ]
    for kind in [Kind(num_synthetic=0), *kinds]:
        reference = Runner(replace(kind, dtype=torch.float64, channels_last=False), setting, torch.device("cpu"))
        for number in (1, 2):
            reference(number)
        for recorded in (False, True) if cuda else (False,):
            here = replace(kind, dtype=torch.float64, recorded=recorded)
            yield attempt(
                {"part": "equal", "case": f"{here}, float64, to the CPU"},
                *(beside_the_cpu, here, reference, setting, device),
            )
    kinds = [replace(kind, amp=True, recorded=cuda) for kind in kinds]
    if more:
        kinds += [Kind(*of, compiled=True) for of in (("all", "sequential"), ("classifier", "joint"))]
    for kind in kinds:
        about = {"part": "equal", "case": f"{kind}, loss to float32"}
        yield attempt(about, beside_plain, kind, setting, device)
    yield attempt(
        {"part": "equal", "case": "images in files, to images in memory"}, files_beside_memory, images, device
    )


# speed and scaling


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
    return row | {"ms": round(runner.milliseconds(seconds), 3), "result": "ran"}


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
        runner.step, runner._recorded = (lambda *_, replay=replay: replay() or {}), None
        found.append(runner.milliseconds(seconds))
    return {"forward ms": round(found[0], 3), "backward ms": round(found[1] - found[0], 3), "result": "ran"}


def speed(settings: list[Setting], device: torch.device, seconds: float, more: bool) -> Iterator[Row]:
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
        yield attempt({**about, "case": "bound"}, bound, setting, device, seconds)
        for kind in kinds:
            yield attempt({**about, "case": str(kind)}, timed, kind, setting, device, seconds)


def scaling(setting: Setting, device: torch.device, seconds: float, more: bool) -> Iterator[Row]:
    settings = [replace(setting, num_synthetic=m) for m in ((1, 2, 5, 20, 50) if more else (1, 3))]
    settings += [replace(setting, batch_size=k) for k in ((32, 64, 256, 512, 1024) if more else (16,))]
    for at in settings:
        for kind in (Kind("classifier", "joint"), Kind("all", "joint")):
            here = replace(kind, recorded=device.type == "cuda")
            yield attempt({"part": "scaling", "case": str(here)}, timed, here, at, device, seconds)


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

    def training() -> Iterator[Row]:
        network, most = ("preact_resnet32", 120) if more else ("preact_resnet_tiny", 2)
        for number, fast_weights in enumerate(("", "classifier")):
            case = "MLNT 1, classifier, sequential" if fast_weights else "CE-EMA"
            row = {"part": "training", "case": case, "network": network}
            yield attempt(row, trained, network, images, fast_weights, device, left() / (2 - number) - 5, most)

    parts: dict[str, Callable[[], Iterator[Row]]] = {
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
        rows += parts[name]()
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
