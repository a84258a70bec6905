from __future__ import annotations

import copy
import re

import pytest
import torch
from layers import randomize_
from torch import nn

from mlnt.networks import (
    BUILT_IN,
    PreActResNet,
    create_model,
    freeze_statistics_,
    pre_logit_features,
    preact_resnet32,
    preact_resnet32_narrow,
    register_in_timm,
)


def tiny(seed: int = 0) -> nn.Module:
    return create_model("preact_resnet_tiny", num_classes=10, in_chans=1, seed=seed)


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


# BatchNorm's statistics


def test_frozen_statistics_are_those_of_eval_mode_whatever_the_mode() -> None:
    network, images = tiny(), torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    randomize_(network)
    with torch.no_grad():
        expected = network.eval()(images)
        assert not torch.allclose(copy.deepcopy(network).train()(images), expected)
    freeze_statistics_(network)
    copied = copy.deepcopy(network)
    for each in (network, copied):
        before = {name: value.clone() for name, value in each.named_buffers()}
        logits = each.train()(images)
        torch.testing.assert_close(logits, expected)
        assert all(torch.equal(value, before[name]) for name, value in each.named_buffers())
    logits.sum().backward()  # of the copy's weights and biases, BatchNorm's too
    assert all(parameter.grad is not None for parameter in copied.parameters())
    assert all(parameter.grad is None for parameter in network.parameters())
