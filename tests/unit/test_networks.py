from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mlnt.networks import (
    BUILT_IN,
    PreActResNet,
    create_model,
    load_matching_,
    pre_logit_features,
    preact_resnet32,
    preact_resnet32_narrow,
    preact_resnet_tiny,
    register_in_timm,
    reset_,
)


def tiny(seed: int = 0, num_classes: int = 10, weights: Path | None = None) -> nn.Module:
    return create_model("preact_resnet_tiny", num_classes=num_classes, in_chans=1, seed=seed, weights=weights)


def randomize_(module: nn.Module) -> None:
    """Random affine parameters and statistics, so that no BatchNorm is the identity and no bias 0."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in [*module.parameters(), *module.buffers()]:
            if tensor.is_floating_point() and tensor.ndim == 1:
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype))


# The architecture


@pytest.mark.parametrize(("name", "millions"), [("preact_resnet32", 1.86), ("preact_resnet32_narrow", 0.46)])
def test_number_of_parameters(name: str, millions: float) -> None:
    count = sum(p.numel() for p in BUILT_IN[name]().parameters())
    assert count / 1e6 == pytest.approx(millions, abs=0.01)


@pytest.mark.parametrize(
    ("name", "in_shape", "map_shape"),
    [
        ("preact_resnet32", (3, 32, 32), (128, 8, 8)),
        ("preact_resnet32_narrow", (3, 32, 32), (64, 8, 8)),
        ("preact_resnet_tiny", (1, 8, 8), (32, 2, 2)),
    ],
)
def test_shapes(name: str, in_shape: tuple[int, ...], map_shape: tuple[int, ...]) -> None:
    model = create_model(name, num_classes=7, in_chans=in_shape[0], seed=0)
    images = torch.randn(2, *in_shape, generator=torch.Generator().manual_seed(0))
    assert model.forward_features(images).shape == (2, *map_shape)
    assert pre_logit_features(model, images).shape == (2, map_shape[0]) == (2, model.num_features)
    assert model(images).shape == (2, 7)


def timm_twin(model: PreActResNet, channels: tuple[int, ...]) -> nn.Module:
    """timm's ResNetV2 of the same architecture with the same weights."""
    from timm.layers import BatchNormAct2d, create_conv2d
    from timm.models.resnetv2 import DownsampleConv, ResNetV2

    twin = ResNetV2(
        layers=(5, 5, 5),
        channels=channels,
        stem_chs=channels[0],
        preact=True,
        basic=True,
        bottle_ratio=1.0,
        norm_layer=BatchNormAct2d,
        conv_layer=create_conv2d,
        num_classes=10,
    )
    twin.stem = create_conv2d(3, channels[0], 3)  # timm's own is 7×7 with stride 2 and a pool
    twin.stages[0].blocks[0].downsample = DownsampleConv(  # timm projects where the shape changes only
        channels[0], channels[0], conv_layer=create_conv2d, norm_layer=BatchNormAct2d
    )

    def timm_name(name: str) -> str:
        if match := re.fullmatch(r"blocks\.(\d+)\.(.*)", name):
            block, rest = int(match[1]), match[2].replace("project.", "downsample.conv.")
            return f"stages.{block // 5}.blocks.{block % 5}.{rest}"
        return name.replace("fc.", "head.fc.")

    shapes = {name: tensor.shape for name, tensor in twin.state_dict().items()}
    weights = {timm_name(name): tensor.clone() for name, tensor in model.state_dict().items()}
    twin.double().load_state_dict({name: tensor.reshape(shapes[name]) for name, tensor in weights.items()})
    return twin


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize(
    ("build", "channels"), [(preact_resnet32, (32, 64, 128)), (preact_resnet32_narrow, (16, 32, 64))]
)
def test_preact_resnet_is_timms_resnet_v2(build: type[PreActResNet], channels: tuple[int, ...], training: bool) -> None:
    model = build().double()
    randomize_(model)
    twin = timm_twin(model, channels)
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    model.train(training)
    twin.train(training)
    ours, theirs = model(images), twin(images)
    assert ours.std() > 0.1
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    features = pre_logit_features(model, images), pre_logit_features(twin, images)
    torch.testing.assert_close(*features, rtol=0, atol=1e-12)


def test_convolutions_are_he_normal_and_have_no_bias() -> None:
    model = create_model("preact_resnet32", num_classes=10, in_chans=3, seed=0)
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == 1 + 2 * 15 + 3
    for convolution in convolutions:
        weight = convolution.weight.detach()
        assert convolution.bias is None
        # Four standard errors of a standard deviation.
        assert weight.std().item() == pytest.approx((2 / weight[0].numel()) ** 0.5, rel=4 / (2 * weight.numel()) ** 0.5)


def test_pre_logit_features_are_the_input_of_the_classifier() -> None:
    model = tiny().eval()
    images = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model.fc(pre_logit_features(model, images)), model(images), rtol=0, atol=0)


# timm


def test_timm_creates_the_registered_networks() -> None:
    import timm

    register_in_timm()
    register_in_timm()  # a second time changes nothing
    assert set(BUILT_IN) <= set(timm.list_models("preact_resnet*"))
    model = timm.create_model("preact_resnet32", num_classes=5, in_chans=1)
    assert isinstance(model, PreActResNet)
    assert model(torch.zeros(2, 1, 16, 16)).shape == (2, 5)


def test_networks_of_timm_are_created_by_name_and_seed() -> None:
    one, two, other = (create_model("resnet10t", num_classes=3, in_chans=1, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(one.fc.weight, two.fc.weight)
    assert not torch.equal(one.fc.weight, other.fc.weight)
    images = torch.zeros(2, 1, 32, 32)
    assert one(images).shape == (2, 3)
    assert pre_logit_features(one, images).shape == (2, one.num_features)


@pytest.mark.parametrize(
    ("name", "near"),
    [("preact_resnet320", "near it: preact_resnet32, preact_resnet32_narrow"), ("no_such_thing", "near it: nothing")],
)
def test_unknown_names_are_answered_with_near_ones(name: str, near: str) -> None:
    with pytest.raises(ValueError, match=f"no network is called '{name}'; {near}.*built in: preact_resnet32, "):
        create_model(name, num_classes=10, in_chans=3, seed=0)


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_networks_have_no_pretrained_weights(name: str) -> None:
    with pytest.raises(ValueError, match=f"there are no pretrained weights of {name}"):
        create_model(name, num_classes=10, in_chans=3, seed=0, pretrained=True)


# Initialisation


def test_initialisation_depends_on_the_seed_alone() -> None:
    states = []
    for global_seed, seed in ((1, 5), (2, 5), (1, 6)):
        with torch.random.fork_rng():
            torch.manual_seed(global_seed)
            states.append(tiny(seed).state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["stem.weight"], states[2]["stem.weight"])


@pytest.mark.parametrize("name", ["preact_resnet_tiny", "resnet10t"])
def test_global_generator_is_left_alone(name: str) -> None:
    before = torch.get_rng_state()
    create_model(name, num_classes=3, in_chans=1, seed=0)
    assert torch.equal(torch.get_rng_state(), before)


# Weights from a file


def save(path: Path, tensors: dict[str, Tensor]) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return path


def test_weights_are_loaded_whole(tmp_path: Path) -> None:
    source = tiny(seed=1)
    randomize_(source)
    model = tiny(seed=2, weights=save(tmp_path / "w.safetensors", source.state_dict()))
    for name, tensor in source.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


def test_classifier_of_another_size_stays_fresh(tmp_path: Path) -> None:
    source = tiny(seed=1, num_classes=10)
    path = save(tmp_path / "w.safetensors", source.state_dict())
    model, fresh = tiny(2, num_classes=4, weights=path), tiny(2, num_classes=4)
    assert torch.equal(model.fc.weight, fresh.fc.weight)
    assert torch.equal(model.fc.bias, fresh.fc.bias)
    assert torch.equal(model.blocks[1].conv2.weight, source.blocks[1].conv2.weight)


def test_classifier_may_be_missing_and_other_tensors_are_ignored(tmp_path: Path) -> None:
    source = tiny(seed=1)
    tensors = {name: tensor for name, tensor in source.state_dict().items() if not name.startswith("fc.")}
    model = tiny(2, weights=save(tmp_path / "w.safetensors", tensors | {"decoder.weight": torch.ones(3)}))
    assert torch.equal(model.stem.weight, source.stem.weight)
    assert torch.equal(model.fc.weight, tiny(2).fc.weight)


@pytest.mark.parametrize("missing", ["blocks.0.conv1", "blocks.1.norm2", "stem"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_only_the_classifier_may_stay_fresh(tmp_path: Path, missing: str, prefix: str) -> None:
    tensors = {prefix + name: t for name, t in tiny(1).state_dict().items() if not name.startswith(missing)}
    with pytest.raises(ValueError, match=rf"does not fit: \d of \d+ tensors are missing \({re.escape(missing)}\."):
        tiny(2, weights=save(tmp_path / "w.safetensors", tensors))


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
        tiny(weights=path)
    assert all(text in str(caught.value) for text in expected), caught.value


@pytest.mark.parametrize("prefix", ["module.", "model.", "state_dict.module.", "backbone.encoder."])
def test_a_prefix_of_all_names_is_taken_off(tmp_path: Path, prefix: str) -> None:
    source = tiny(seed=1)
    tensors = {prefix + name: tensor for name, tensor in source.state_dict().items()}
    model = tiny(2, weights=save(tmp_path / "w.safetensors", tensors | {"optimizer.stem.weight": torch.ones(3)}))
    assert all(torch.equal(t, source.state_dict()[name]) for name, t in model.state_dict().items())


@pytest.mark.parametrize("wrap", [lambda state: state, lambda state: {"epoch": 3, "state_dict": state, "arch": "x"}])
@pytest.mark.parametrize("legacy", [False, True])
def test_a_file_of_pytorch_is_taken(tmp_path: Path, wrap: Callable[[Any], Any], legacy: bool) -> None:
    source = tiny(seed=1)
    path = tmp_path / "w.pth"
    torch.save(wrap(source.state_dict()), path, _use_new_zipfile_serialization=not legacy)
    assert torch.equal(tiny(2, weights=path).stem.weight, source.stem.weight)


def test_a_pickled_network_is_refused_with_the_remedy(tmp_path: Path) -> None:
    torch.save(tiny(seed=1), tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"w\.pth: found a PyTorch file.*more than tensors.*save_file"):
        tiny(2, weights=tmp_path / "w.pth")


def test_weights_for_another_number_of_channels_see_grey_images_alike(tmp_path: Path) -> None:
    grey = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    color = grey.expand(-1, 3, -1, -1)
    for have, want in ((3, 1), (1, 3)):
        source = create_model("preact_resnet_tiny", num_classes=10, in_chans=have, seed=1).eval()
        path = save(tmp_path / f"{have}.safetensors", source.state_dict())
        model = create_model("preact_resnet_tiny", num_classes=10, in_chans=want, seed=2, weights=path).eval()
        one, other = (color, grey) if have == 3 else (grey, color)
        torch.testing.assert_close(model(other), source(one), rtol=1e-5, atol=1e-5)


def test_channels_are_summed_as_timm_does_it(tmp_path: Path) -> None:
    from timm.models import adapt_input_conv

    source = create_model("preact_resnet_tiny", num_classes=10, in_chans=3, seed=1)
    model = tiny(2, weights=save(tmp_path / "w.safetensors", source.state_dict()))
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
    source = create_model(name, num_classes=7, in_chans=3, seed=1).state_dict()
    kept = {key: tensor for key, tensor in source.items() if not (left_out and key.startswith(tuple(heads)))}
    path = save(tmp_path / "w.safetensors", kept)
    fresh = create_model(name, num_classes=4, in_chans=1, seed=2).state_dict()
    state = create_model(name, num_classes=4, in_chans=1, seed=2, weights=path).state_dict()
    for key, tensor in state.items():
        if key.startswith(tuple(heads)):
            assert torch.equal(tensor, fresh[key]), key
        elif tensor.shape == source[key].shape:
            assert torch.equal(tensor, source[key]), key


def test_a_tensor_of_two_names_may_have_one_in_the_file(tmp_path: Path) -> None:
    """As safetensors' `save_model` writes them."""
    source = create_model("coat_lite_tiny", num_classes=4, in_chans=3, seed=1)
    names = dict(source.named_parameters())
    kept = {name: t for name, t in source.state_dict().items() if name in names or name in dict(source.named_buffers())}
    assert len(kept) < len(source.state_dict())
    path = save(tmp_path / "w.safetensors", kept)
    model = create_model("coat_lite_tiny", num_classes=4, in_chans=3, seed=2, weights=path)
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
