"""A step that is recorded and replayed as CUDA graphs do, without a GPU: a list of operators and tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from trainings import make_data, make_network, make_training

from mlnt.training.loop import Training
from mlnt.training.state import Metrics, StepFunction


class Tape(TorchDispatchMode):
    """The operators of a step, to run again on the same tensors: like a CUDA graph, it knows nothing of Python."""

    def __init__(self) -> None:
        super().__init__()
        self._calls: list[tuple[Any, Any, dict[str, Any], Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        self._calls.append((func, args, kwargs or {}, output))
        return output

    @torch.no_grad()
    def replay(self) -> None:
        for func, args, kwargs, output in self._calls:
            pairs = zip(tree_leaves(output), tree_leaves(func(*args, **kwargs)), strict=True)
            for tensor, value in pairs:
                if isinstance(tensor, Tensor) and tensor.data_ptr() != value.data_ptr():  # else a view, or in place
                    tensor.copy_(value)


class Recorder:
    """In place of CUDA graphs; counts recordings."""

    def __init__(self) -> None:
        self.recordings = 0

    def __call__(self, step: Callable[[], Metrics], changed: Sequence[Tensor]) -> tuple[Callable[[], None], Metrics]:
        self.recordings += 1
        before = [tensor.detach().clone() for tensor in changed]
        with Tape() as tape:
            metrics = step()
        with torch.no_grad():
            for tensor, value in zip(changed, before, strict=True):
                tensor.copy_(value)
        return tape.replay, metrics


def training_in_float64(step: StepFunction, kept: Tensor | None = None, network: nn.Module | None = None) -> Training:
    data = replace(make_data(), kept=kept)
    network = (make_network() if network is None else network).double()
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # dropout would draw again in the recording
    training = make_training(step, data, network)
    batch = data.images.batch
    data.images.batch = lambda indices: batch(indices).double()  # type: ignore[method-assign]
    return training


def assert_replayed_as_step_by_step(make: Callable[[], Training]) -> None:
    plain, replayed = make(), make()
    replayed.record()
    list(plain.epochs()), list(replayed.epochs())
    expected, actual = plain.state_dict()[0], replayed.state_dict()[0]
    for name, tensor in expected.items():
        torch.testing.assert_close(actual[name], tensor, rtol=1e-9, atol=1e-12, msg=lambda m, name=name: f"{name}: {m}")
    for row, other in zip(plain.history, replayed.history, strict=True):
        assert row["class_loss"] == pytest.approx(other["class_loss"], rel=1e-9)
        assert row["student_train_accuracy"] == other["student_train_accuracy"]


READS = ("_local_scalar_dense", "nonzero", "item", "is_nonzero", "unique", "masked_select", "equal")


class NothingIsRead(TorchDispatchMode):
    """Refuses operators that wait for the device, or whose shapes depend on values; both break a recording."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert not name.startswith(READS), name
        if name == "index":  # by a boolean mask
            assert all(i is None or i.dtype != torch.bool for i in args[1])
        return func(*args, **(kwargs or {}))
