"""A network is tried before it is trained, and what passes the trial trains in every stage."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from projects import make_params, run_stage
from safetensors.torch import load_file
from torch import Tensor, nn

from mlnt import networks
from mlnt.training import loop
from mlnt.training.state import TrainState
from pipeline.base.errors import UserError
from pipeline.before_training import trial
from pipeline.before_training.trial import Asked, try_network

ASKED = Asked((1, 8, 8), classes=3, meta=True, compiled=True)
CPU = torch.device("cpu")


class Small(nn.Module):
    """A network in timm's manner whose one hidden layer stands under two names, and has a weight of the other's."""

    def __init__(self, num_classes: int = 3, in_chans: int = 1, **_: Any) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_chans, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.hidden = nn.Linear(4, 4)
        self.again = nn.Sequential(nn.ReLU(), self.hidden)
        self.tied = nn.Linear(4, 4)
        self.tied.weight = self.hidden.weight
        self.unused = nn.Linear(2, 2)
        self.fc = nn.Linear(4, num_classes)

    def forward_features(self, x: Tensor) -> Tensor:
        return self.norm(self.stem(x))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        features = self.tied(self.again(self.hidden(x.mean(dim=(2, 3)))))
        return features if pre_logits else self.fc(features)

    def forward(self, x: Tensor) -> Any:
        return self.forward_head(self.forward_features(x))

    def get_classifier(self) -> nn.Module:
        return self.fc


def small(seed: int = 0) -> Small:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Small()


class Pair(Small):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x), None


class Wide(Small):
    def forward(self, x: Tensor) -> Any:
        return torch.cat([super().forward(x)] * 2, dim=1)


class NoFeatures(Small):
    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        return x if pre_logits else super().forward_head(x)


class Once(Small):
    """With a kernel that has no second derivative, whatever PyTorch is told to choose."""

    def forward(self, x: Tensor) -> Any:
        logits = super().forward(x)
        rows = logits.unsqueeze(1).unsqueeze(1)
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(rows, rows, rows)[0].flatten(1)


class Remembers(Small):
    """Holds on to its parameters elsewhere than in its modules."""

    def forward(self, x: Tensor) -> Any:
        if not hasattr(self, "held"):
            self.held = [self.fc.weight]
        features = self.forward_head(self.forward_features(x), pre_logits=True)
        return nn.functional.linear(features, self.held[0], self.fc.bias)


class Scaled(Small):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x) / 4


class TwoClassifiers(Small):
    def get_classifier(self) -> Any:
        return self.fc, self.fc


class FullPrecision(Small):
    def forward(self, x: Tensor) -> Any:
        logits = super().forward(x)
        if self.training and logits.dtype != torch.float32:
            raise RuntimeError("only float32")
        return logits


class OtherState(Small):
    def get_extra_state(self) -> Any:
        return {"a": 1}


class Uncopied(Small):
    def __deepcopy__(self, _: Any) -> Any:
        raise RuntimeError("no copies")


class NoGradient(Small):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x).detach() if self.training else super().forward(x)


class Uncompiled(Small):
    def compile(self, *_: Any, **__: Any) -> None:
        raise RuntimeError("backend raised:\nSyntaxError: no such loop")


def attempt(network: nn.Module, **changes: Any) -> None:
    try_network(network, network, make_params(model__name="small", **changes), ASKED, CPU)


@pytest.mark.parametrize("order", ["first", "second"])
@pytest.mark.parametrize("update", ["sequential", "joint"])
@pytest.mark.parametrize("fast_weights", ["all", "classifier"])
@pytest.mark.parametrize("amp", ["none", "bfloat16"])
def test_a_network_that_passes_is_left_as_it_was(order: str, update: str, amp: str, fast_weights: str) -> None:
    network = small()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    random = torch.get_rng_state()
    changes = {"mlnt__order": order, "mlnt__update": update, "mlnt__fast_weights": fast_weights, "compute__amp": amp}
    attempt(network, **changes)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(part.training for part in network.modules())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())


@pytest.mark.parametrize(
    ("build", "changes", "expected"),
    [
        (Pair, {}, ["model.name: small gives no logits", "a tuple"]),
        (Wide, {}, ["model.name: small gives no logits", "2 × 6", "2 × 3"]),
        (NoFeatures, {}, ["model.name: small gives no features", "2 × 4 × 8 × 8"]),
        (NoGradient, {}, ["model.name: small fails in a step"]),
        (NoGradient, {"mlnt__M": 0}, ["model.name: small fails in a step"]),
        (Remembers, {}, ["model.name: small fails in a step", "mlnt.M: 0", "fast weights do not reach fc.weight"]),
        (
            Scaled,
            {"mlnt__fast_weights": "classifier"},
            ["mlnt.fast_weights: found classifier", "are not its logits", "all"],
        ),
        (
            TwoClassifiers,
            {"mlnt__fast_weights": "classifier"},
            ["mlnt.fast_weights: found classifier", "a tuple", "another network"],
        ),
        (Once, {"mlnt__order": "second"}, ["mlnt.order: found second", "not implemented", "first"]),
        (FullPrecision, {"compute__amp": "bfloat16"}, ["compute.amp: found bfloat16", "only float32", "none"]),
        (Uncompiled, {"compute__compile": True}, ["compute.compile: found true", "no such loop", "false"]),
        (OtherState, {}, ["model.name: small cannot be saved"]),
        (Uncopied, {}, ["model.name: small cannot be copied", "no copies"]),
    ],
)
def test_what_a_network_cannot_do_is_refused_by_name(
    build: Callable[[], nn.Module], changes: dict[str, Any], expected: list[str]
) -> None:
    with pytest.raises(UserError) as caught:
        attempt(build(), **changes)
    message = str(caught.value)
    assert message.startswith(expected[0])
    assert all(text in message for text in expected)
    assert "\n" not in message


@pytest.mark.parametrize(
    ("build", "changes"),
    [(Once, {}), (Remembers, {"mlnt__M": 0}), (Once, {"mlnt__order": "second", "mlnt__M": 0}), (FullPrecision, {})],
)
def test_what_the_run_does_not_ask_is_not_tried(build: Callable[[], nn.Module], changes: dict[str, Any]) -> None:
    attempt(build(), **changes)


def test_fast_weights_stand_in_every_place_and_are_taken_away() -> None:
    state = TrainState(small())
    student = state.student
    own = dict(student.module.named_parameters(remove_duplicate=False))
    images = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    other = small(seed=1)
    for _ in range(2):
        with student.frozen_statistics():
            found = student.at([dict(other.named_parameters())[name] for name in student.names], images)
        assert torch.equal(found, other(images))
        assert all(own[name] is p for name, p in student.module.named_parameters(remove_duplicate=False))


def test_compiled_code_lets_several_backward_passes_follow_one_forward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen with the attention of `test_vit`, whose compiling takes a minute: "donated buffers" belong to one pass."""
    import torch._functorch.config

    monkeypatch.setattr(torch._functorch.config, "donated_buffer", True)
    TrainState(small()).compile()
    assert torch._functorch.config.donated_buffer is False


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`small` among timm's names."""
    import timm
    from timm.models import register_model

    if not timm.is_model("small_of_tests"):

        def small_of_tests(pretrained: bool = False, **kwargs: Any) -> Small:
            return Small(kwargs["num_classes"], kwargs["in_chans"])

        register_model(small_of_tests)
    yield
    assert "small_of_tests" not in networks.BUILT_IN


STAGES = ("download", "noise", "pretrain", "features", "meta1", "meta2")


@pytest.mark.parametrize("order", ["first", "second"])
def test_shared_layers_go_through_all_stages_and_a_checkpoint(
    order: str, registered: None, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = make_params(model__name="small_of_tests", mlnt__order=order)
    for stage in STAGES:
        run_stage(stage, params)
    tensors = load_file("models/meta2/student_last.safetensors")
    assert torch.equal(tensors["hidden.weight"], tensors["again.1.weight"])
    assert torch.equal(tensors["hidden.weight"], tensors["tied.weight"])
    whole = Path("models/meta1/student_last.safetensors").read_bytes()

    def stop(_: Any, number: int) -> None:
        if number == 6:
            raise SystemExit(143)

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.base.console.Lines.at", stop)
        with pytest.raises(SystemExit):
            run_stage("meta1", params)
    run_stage("meta1", params)
    assert Path("models/meta1/student_last.safetensors").read_bytes() == whole


def test_attention_trains_by_second_order(project: Path) -> None:
    images = {"data__limit": 30, "data__limit_test": 10, "train__batch_size": 12, "mlnt__neighbors": 3}
    params = make_params(
        model__name="test_vit", mlnt__order="second", mlnt__M=1, **images, **enlarged(project, "images")
    )
    for stage in STAGES[:5]:
        run_stage(stage, params)


def enlarged(project: Path, folder: str) -> dict[str, Any]:
    """Digits as image files, read at 160 pixels: parameters."""
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    for number in range(40):
        path = project / folder / str(digits.target[number] % 3) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((digits.images[number] * 15).astype("uint8")).save(path)
    return {"data__source": "imagefolder", "data__root": folder, "data__resize": 160}


def test_no_stage_begins_with_a_network_that_a_later_one_refuses(
    registered: None, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise UserError("mlnt.order: refused")

    params = make_params(model__name="small_of_tests")
    for stage in STAGES[:2]:
        run_stage(stage, params)
    monkeypatch.setattr(trial, "try_network", refuse)
    monkeypatch.setattr(loop.Training, "epochs", lambda *_, **__: pytest.fail("it has begun"))
    with pytest.raises(UserError, match="refused"):
        run_stage("pretrain", params)
