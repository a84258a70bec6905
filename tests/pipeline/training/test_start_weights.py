"""What a network starts from: the weights of a file, made for it or for one with other classes or channels."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from layers import randomize_
from safetensors.torch import save_file
from torch import Tensor

from mlnt.networks import PreActResNet, create_model, preact_resnet32_narrow, preact_resnet_tiny, reset_
from pipeline.training.start_weights.matching import load_matching_


def started(
    path: Path | None, seed: int = 2, name: str = "preact_resnet_tiny", classes: int = 10, channels: int = 1
) -> Any:
    """A network with the weights of a file; None leaves it as it is initialised."""
    model = create_model(name, num_classes=classes, in_chans=channels, seed=seed)
    if path is not None:
        load_matching_(model, path)
    return model


def tiny(seed: int) -> Any:
    return started(None, seed)


def save(path: Path, tensors: dict[str, Tensor]) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return path


def test_weights_are_loaded_whole(tmp_path: Path) -> None:
    source = tiny(seed=1)
    randomize_(source)
    model = started(save(tmp_path / "w.safetensors", source.state_dict()))
    for name, tensor in source.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


def test_classifier_of_another_size_stays_fresh(tmp_path: Path) -> None:
    source = tiny(seed=1)
    path = save(tmp_path / "w.safetensors", source.state_dict())
    model, fresh = started(path, classes=4), started(None, classes=4)
    assert torch.equal(model.fc.weight, fresh.fc.weight)
    assert torch.equal(model.fc.bias, fresh.fc.bias)
    assert torch.equal(model.blocks[1].conv2.weight, source.blocks[1].conv2.weight)


def test_classifier_may_be_missing_and_other_tensors_are_ignored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tiny(seed=1)
    tensors = {name: tensor for name, tensor in source.state_dict().items() if not name.startswith("fc.")}
    others = {"decoder.0.weight": torch.ones(3), "ema.blocks.7.weight": torch.ones(2), "step": torch.tensor(5)}
    model = started(save(tmp_path / "w.safetensors", tensors | others))
    said = " ".join(capsys.readouterr().err.split())
    assert f"2 of its {len(tensors) + 3} tensors have no place" in said
    assert "(decoder.0.weight, ema.blocks.7.weight)" in said
    assert torch.equal(model.stem.weight, source.stem.weight)
    assert torch.equal(model.fc.weight, tiny(2).fc.weight)


@pytest.mark.parametrize("missing", ["blocks.0.conv1", "blocks.1.norm2", "stem"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_only_the_classifier_may_stay_fresh(tmp_path: Path, missing: str, prefix: str) -> None:
    tensors = {prefix + name: t for name, t in tiny(1).state_dict().items() if not name.startswith(missing)}
    with pytest.raises(ValueError, match=rf"does not fit: \d of \d+ tensors are missing \({re.escape(missing)}\."):
        started(save(tmp_path / "w.safetensors", tensors))


@pytest.mark.parametrize(
    ("tensors", "expected"),
    [
        (preact_resnet_tiny(in_chans=2).state_dict(), ["1 of 34 have another", "stem.weight is 16 × 2 × 3 × 3, expec"]),
        (
            preact_resnet32_narrow(in_chans=1).state_dict(),
            ["blocks.1.conv1.weight is 16 × 16 × 3 × 3, expected 32 × 16"],
        ),
        ({"something.weight": torch.zeros(3)}, ["tensors are missing (stem.weight, ", "begin with something.weight: "]),
        (
            preact_resnet_tiny().state_dict() | {"stem.weight": torch.zeros(16, 1, 3, 3, dtype=torch.int8)},
            ["stem.weight is 16 × 1 × 3 × 3 of int8, expected 16 × 1 × 3 × 3"],
        ),
        ({f"{n}.{k}": v for n in "qk" for k, v in preact_resnet_tiny().state_dict().items()}, ["several", "k., q."]),
    ],
    ids=["input channels", "another depth", "nothing in common", "whole numbers", "two networks"],
)
def test_weights_of_another_network_are_refused_with_the_reason(
    tmp_path: Path, tensors: dict[str, Tensor], expected: list[str]
) -> None:
    path = save(tmp_path / "w.safetensors", {name: tensor.clone() for name, tensor in tensors.items()})
    with pytest.raises(ValueError, match=rf"^{re.escape(str(path))}: ") as caught:
        started(path)
    assert all(text in str(caught.value) for text in expected), caught.value


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize(
    ("name", "deeper", "cut"),
    [
        ("preact_resnet_tiny", PreActResNet((16, 32), (1, 2), 7, 1), "blocks.2."),
        ("resnet18", "resnet34", "layer1.2."),
        ("efficientnet_b0", "efficientnet_b1", "blocks.0.1."),
    ],
)
def test_a_deeper_network_is_not_cut_off(name: str, deeper: Any, cut: str, prefix: str, tmp_path: Path) -> None:
    source = started(None, 1, deeper, classes=7) if isinstance(deeper, str) else deeper
    path = save(tmp_path / "w.safetensors", {prefix + key: tensor for key, tensor in source.state_dict().items()})
    with pytest.raises(ValueError, match=r"have no place .*of another network.*model.name") as caught:
        started(path, name=name)
    assert prefix + cut in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["blocks.1.conv1.weight", "norm.running_var"])
def test_values_that_are_not_finite_are_refused(value: float, name: str, tmp_path: Path) -> None:
    tensors = {key: tensor.clone() for key, tensor in tiny(1).state_dict().items()}
    tensors[name].view(-1)[3] = value
    path = save(tmp_path / "w.safetensors", {f"module.{key}": tensor for key, tensor in tensors.items()})
    with pytest.raises(ValueError, match=rf"^{re.escape(str(path))}: module.{re.escape(name)} holds .* finite"):
        started(path)


@pytest.mark.parametrize("prefix", ["module.", "model.", "state_dict.module.", "backbone.encoder."])
def test_a_prefix_of_all_names_is_taken_off(tmp_path: Path, prefix: str, capsys: pytest.CaptureFixture[str]) -> None:
    source = tiny(seed=1)
    tensors = {prefix + name: tensor for name, tensor in source.state_dict().items()}
    others = {"optimizer.stem.weight": torch.ones(3), "optimizer.blocks.0.weight": torch.ones(3)}
    model = started(save(tmp_path / "w.safetensors", tensors | others))
    assert capsys.readouterr().err == ""
    assert all(torch.equal(t, source.state_dict()[name]) for name, t in model.state_dict().items())


@pytest.mark.parametrize("wrap", [lambda state: state, lambda state: {"epoch": 3, "state_dict": state, "arch": "x"}])
@pytest.mark.parametrize("legacy", [False, True])
def test_a_file_of_pytorch_is_taken(tmp_path: Path, wrap: Callable[[Any], Any], legacy: bool) -> None:
    source = tiny(seed=1)
    path = tmp_path / "w.pth"
    torch.save(wrap(source.state_dict()), path, _use_new_zipfile_serialization=not legacy)
    assert torch.equal(started(path).stem.weight, source.stem.weight)


def test_a_pickled_network_is_refused_with_the_remedy(tmp_path: Path) -> None:
    torch.save(tiny(seed=1), tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"w\.pth: found a PyTorch file.*more than tensors.*save_file"):
        started(tmp_path / "w.pth")


def test_weights_for_another_number_of_channels_see_grey_images_alike(tmp_path: Path) -> None:
    grey = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    color = grey.expand(-1, 3, -1, -1)
    for have, want in ((3, 1), (1, 3)):
        source = started(None, seed=1, channels=have).eval()
        path = save(tmp_path / f"{have}.safetensors", source.state_dict())
        model = started(path, channels=want).eval()
        one, other = (color, grey) if have == 3 else (grey, color)
        torch.testing.assert_close(model(other), source(one), rtol=1e-5, atol=1e-5)


def test_channels_are_summed_as_timm_does_it(tmp_path: Path) -> None:
    from timm.models import adapt_input_conv

    source = started(None, seed=1, channels=3)
    model = started(save(tmp_path / "w.safetensors", source.state_dict()))
    assert torch.equal(model.stem.weight, adapt_input_conv(1, source.stem.weight.detach()))


@pytest.mark.parametrize(
    ("name", "heads"),
    [
        ("deit_tiny_distilled_patch16_224", ["head.", "head_dist."]),
        ("levit_128s", ["head.linear.", "head_dist.linear."]),
        ("test_efficientnet", ["classifier."]),
        ("test_convnext", ["head.fc."]),
    ],
)
@pytest.mark.parametrize("left_out", [False, True])
def test_every_classifier_stays_fresh_where_the_classes_are_others(
    tmp_path: Path, name: str, heads: list[str], left_out: bool
) -> None:
    source = started(None, 1, name, classes=7, channels=3).state_dict()
    kept = {key: tensor for key, tensor in source.items() if not (left_out and key.startswith(tuple(heads)))}
    path = save(tmp_path / "w.safetensors", kept)
    fresh = started(None, 2, name, classes=4).state_dict()
    state = started(path, 2, name, classes=4).state_dict()
    for key, tensor in state.items():
        if key.startswith(tuple(heads)):
            assert torch.equal(tensor, fresh[key]), key
        elif tensor.shape == source[key].shape:
            assert torch.equal(tensor, source[key]), key


def test_a_tensor_of_two_names_may_have_one_in_the_file(tmp_path: Path) -> None:
    """As safetensors' `save_model` writes them."""
    source = started(None, 1, "coat_lite_tiny", classes=4, channels=3)
    names = dict(source.named_parameters())
    kept = {name: t for name, t in source.state_dict().items() if name in names or name in dict(source.named_buffers())}
    assert len(kept) < len(source.state_dict())
    path = save(tmp_path / "w.safetensors", kept)
    model = started(path, 2, "coat_lite_tiny", classes=4, channels=3)
    assert all(torch.equal(tensor, source.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_a_classifier_that_stayed_fresh_is_named_and_initialised_as_pytorch_does(tmp_path: Path) -> None:
    """timm's own for an EfficientNet, U(±1/√C), is five times as wide here: fine-tuning begins from noise."""
    name = "test_efficientnet"
    path = save(tmp_path / "w.safetensors", create_model(name, num_classes=7, in_chans=3, seed=1).state_dict())
    model = create_model(name, num_classes=4, in_chans=3, seed=2)
    assert load_matching_(create_model(name, num_classes=7, in_chans=3, seed=2), path) == []
    fresh = load_matching_(model, path)
    assert fresh == ["classifier"]
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    reset_(model, fresh, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    weight = model.get_classifier().weight.detach()
    bound = weight.shape[1] ** -0.5
    assert weight.abs().max() <= bound < before["classifier.weight"].abs().max()
    assert weight.std() == pytest.approx(bound / 3**0.5, rel=0.1)
    assert all(torch.equal(t, before[key]) for key, t in model.state_dict().items() if "classifier" not in key)
    again = create_model(name, num_classes=4, in_chans=3, seed=2)
    reset_(again, fresh, seed=3)
    assert torch.equal(again.get_classifier().weight, weight)
