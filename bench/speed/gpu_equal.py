"""Whether every kind of step computes on a GPU what it computes on the CPU: the part "equal" of gpu.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from gpu_training import Images, Row, files_beside_memory
from rivals import Setting
from steps import Kind, Runner

from mlnt.training.state import Rates

RATES = Rates(lr=1e-2, meta_lr=1e-2, ema_decay=0.9, teacher_weight=0.0)


def largest_difference(one: Runner, other: Runner) -> float:
    """Over student, teacher and momentum, relative to the largest entry of each tensor."""
    pairs = zip(one.state.tensors(), other.state.tensors(), strict=True)
    found = []
    for mine, others in pairs:
        of = others.detach().cpu().double()
        found.append(float((mine.detach().cpu().double() - of).abs().max() / of.abs().max().clamp(min=1e-12)))
    return max(found)


def beside_the_cpu(kind: Kind, reference: Runner, setting: Setting, device: torch.device) -> Row:
    runner = Runner(kind, setting, device, RATES)
    for number in (1, 2):
        runner(number)
    difference = largest_difference(runner, reference)
    return {"difference": difference, "result": "equal" if difference < 1e-9 else "DIFFERENT"}


def beside_plain(kind: Kind, setting: Setting, device: torch.device) -> Row:
    """The second step of a compiled one, or one in bfloat16, beside the same in float32."""
    losses = []
    for each in (kind, replace(kind, compiled=False, amp=False, recorded=False)):
        runner = Runner(each, setting, device, RATES)
        runner(1)
        losses.append(float(runner(2)["class_loss"]))
        if not all(bool(tensor.isfinite().all()) for tensor in runner.state.tensors()):
            return {"result": f"DIFFERENT: {each} is not finite"}
    difference = abs(losses[0] - losses[1]) / losses[1]
    within = difference < (0.05 if kind.amp else 1e-3)
    return {"difference": difference, "result": "within rounding" if within else "DIFFERENT"}


def equal(
    setting: Setting, images: Images, device: torch.device, more: bool
) -> Iterator[tuple[Row, Callable[..., Row], tuple[Any, ...]]]:
    cuda = device.type == "cuda"
    kinds = [
        Kind(fast, update, order)
        for fast in ("classifier", "all")
        for update in ("joint", "sequential")
        for order in ("first", "second")
    ]
    for kind in [Kind(num_synthetic=0), *kinds]:
        reference = Runner(replace(kind, dtype=torch.float64, channels_last=False), setting, torch.device("cpu"), RATES)
        for number in (1, 2):
            reference(number)
        for recorded in (False, True) if cuda else (False,):
            here = replace(kind, dtype=torch.float64, recorded=recorded)
            about = {"part": "equal", "case": f"{here}, float64, to the CPU"}
            yield about, beside_the_cpu, (here, reference, setting, device)
    kinds = [replace(kind, amp=True, recorded=cuda) for kind in kinds]
    if more:
        kinds += [Kind(*of, compiled=True) for of in (("all", "sequential"), ("classifier", "joint"))]
    for kind in kinds:
        about = {"part": "equal", "case": f"{kind}, loss to float32"}
        yield about, beside_plain, (kind, setting, device)
    yield {"part": "equal", "case": "images in files, to images in memory"}, files_beside_memory, (images, device)
