"""Networks: the paper's PreAct ResNets, and every timm model by its name.

The PreAct ResNets are written out here, not built from timm's parts, because importing timm costs more
time than a whole stage of the default pipeline; a test holds them equal to timm's `ResNetV2`. They keep timm's
interface (`forward_features`, `forward_head`, `num_features`), and `register_in_timm` makes
`timm.create_model` find them.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Sequence
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PreActBlock(nn.Module):
    """Pre-activation basic block (He et al. 2016): x + conv(relu(bn(conv(relu(bn(x)))))).

    With `project`, the shortcut is a 1×1 convolution of relu(bn1(x)).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, project: bool) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.project = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False) if project else None

    def forward(self, x: Tensor) -> Tensor:
        # In place: no backward pass needs what ReLU overwrites.
        activated = F.relu(self.norm1(x), inplace=True)
        shortcut = x if self.project is None else self.project(activated)
        residual = self.conv2(F.relu(self.norm2(self.conv1(activated)), inplace=True))
        return shortcut + residual  # type: ignore[no-any-return]


class PreActResNet(nn.Module):
    """The CIFAR ResNet of Joint Optimization: 3×3 stem without norm, stages of basic blocks, BN → ReLU → mean.

    The first block of every stage projects its shortcut, the other stages than the first halve the size.
    Convolutions are He-normal.

    Args:
        mean_shape: [C, H, W] of a buffer `mean_image` that is subtracted from the images first; None for none. What is
            trained here gets images that are normalised; a network that is given away may do it by itself.
    """

    mean_image: Tensor | None

    def __init__(
        self,
        channels: tuple[int, ...],
        depths: tuple[int, ...],
        num_classes: int = 10,
        in_chans: int = 3,
        stem_stride: int = 1,
        mean_shape: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.num_features = channels[-1]
        self.register_buffer("mean_image", None if mean_shape is None else torch.zeros(*mean_shape))
        self.stem = nn.Conv2d(in_chans, channels[0], 3, stem_stride, padding=1, bias=False)
        blocks: list[nn.Module] = []
        width = channels[0]
        for stage, (out_width, depth) in enumerate(zip(channels, depths, strict=True)):
            for block in range(depth):
                stride = 2 if stage > 0 and block == 0 else 1
                blocks.append(PreActBlock(width, out_width, stride, project=block == 0))
                width = out_width
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.BatchNorm2d(width)
        self.fc = nn.Linear(width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward_features(self, x: Tensor) -> Tensor:
        """[B, in_chans, H, W] → the last feature map [B, num_features, h, w]."""
        if self.mean_image is not None:
            x = x - self.mean_image
        return F.relu(self.norm(self.blocks(self.stem(x))), inplace=True)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Feature map → logits [B, C], or the pre-logit features [B, num_features]."""
        pooled = x.mean(dim=(2, 3))
        return pooled if pre_logits else self.fc(pooled)

    def get_classifier(self) -> nn.Module:
        """The layer after the pre-logit features."""
        return self.fc

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


class LinearHead(nn.Linear):
    """A classifier on embeddings [B, D], with timm's interface; of zeros at first, as there is no symmetry to break."""

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def forward_features(self, x: Tensor) -> Tensor:
        """The embeddings themselves."""
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Embeddings → logits [B, C], or the embeddings."""
        return x if pre_logits else self(x)

    def get_classifier(self) -> nn.Module:
        """The whole of it."""
        return self


def preact_resnet32(num_classes: int = 10, in_chans: int = 3, **options: Any) -> PreActResNet:
    """The paper's CIFAR-10 network: 32/64/128 channels, five blocks a stage, 1.86 M parameters."""
    return PreActResNet((32, 64, 128), (5, 5, 5), num_classes, in_chans, **options)


def preact_resnet32_narrow(num_classes: int = 10, in_chans: int = 3, **options: Any) -> PreActResNet:
    """The same depth at 16/32/64 channels, 0.46 M parameters; not the network of the paper."""
    return PreActResNet((16, 32, 64), (5, 5, 5), num_classes, in_chans, **options)


def preact_resnet_tiny(num_classes: int = 10, in_chans: int = 1, **options: Any) -> PreActResNet:
    """For 8×8 images: stem of stride 2, one block each of 16 and 32 channels, 20 k parameters."""
    return PreActResNet((16, 32), (1, 1), num_classes, in_chans, stem_stride=2, **options)


BUILT_IN: dict[str, Callable[..., PreActResNet]] = {
    "preact_resnet32": preact_resnet32,
    "preact_resnet32_narrow": preact_resnet32_narrow,
    "preact_resnet_tiny": preact_resnet_tiny,
}


def register_in_timm() -> None:
    """Make `timm.create_model` and `timm.list_models` know the networks of this module."""
    import timm
    from timm.models import register_model

    for name, build in BUILT_IN.items():
        if not timm.is_model(name):
            register_model(_timm_entry_point(name, build))


def _timm_entry_point(name: str, build: Callable[..., PreActResNet]) -> Callable[..., PreActResNet]:
    def entry_point(pretrained: bool = False, pretrained_cfg: Any = None, **kwargs: Any) -> PreActResNet:
        from timm.models import build_model_with_cfg

        if pretrained and not pretrained_cfg:
            raise ValueError(f"there are no pretrained weights of {name}")
        channels = inspect.signature(build).parameters["in_chans"].default
        about = {"architecture": name, "num_classes": 10, "input_size": (channels, 32, 32), "classifier": "fc"}
        model: PreActResNet = build_model_with_cfg(build, name, pretrained, pretrained_cfg or about, **kwargs)
        return model

    entry_point.__name__ = name
    entry_point.__module__ = __name__  # timm looks the module up and lists the model under its name
    return entry_point


def check_name(name: str) -> None:
    """
    Raises:
        ValueError: no network is called so; names the nearest ones.
    """
    import timm

    register_in_timm()
    if not timm.is_model(name.split(".", maxsplit=1)[0]) and ":" not in name:
        near = difflib.get_close_matches(name, timm.list_models(), n=5)
        raise ValueError(
            f"no network is called {name!r}; near it: {', '.join(near) or 'nothing'}; "
            f"built in: {', '.join(BUILT_IN)}; `timm.list_models()` lists the others"
        )


def create_model(
    name: str,
    *,
    num_classes: int,
    in_chans: int,
    seed: int,
    pretrained: bool = False,
) -> nn.Module:
    """Build a network with an initialisation that depends on `seed` alone; the global generator is left alone.

    Args:
        name: one of `BUILT_IN`, or any name that `timm.create_model` knows.
        pretrained: load timm's ImageNet weights (needs a network or timm's cache); the head stays fresh.

    Raises:
        ValueError: unknown name (with the nearest ones).
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # not torch.manual_seed, which reaches the GPUs as well
        if name in BUILT_IN and not pretrained:
            model: nn.Module = BUILT_IN[name](num_classes=num_classes, in_chans=in_chans)
        else:
            import timm

            check_name(name)
            model = timm.create_model(name, pretrained=pretrained, num_classes=num_classes, in_chans=in_chans)
    return model


def reset_(model: nn.Module, names: Sequence[str], seed: int) -> None:
    """Initialise classifiers anew as PyTorch does, for a linear one of D inputs W, b ~ U(±1/√D); mutates `model`.

    timm initialises some for training from nothing, an EfficientNet's W ~ U(±1/√C). On features of trained weights, D =
    1280 and C = 10, that makes logits of which the first steps have to undo the noise. The values depend on `seed`
    alone; the global generator is left alone.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        for name in names:
            for module in model.get_submodule(name).modules():
                if isinstance(module, nn.Linear | nn.Conv2d):
                    module.reset_parameters()


def freeze_statistics_(model: nn.Module) -> None:
    """From now on BatchNorm normalises by its running mean and variance in train mode too, and they stay as they are;
    mutates `model`, whose weights and biases of BatchNorm are trained on. Copies of it are frozen as well.

    Trained weights give other features by the statistics of small batches than by those they were trained with: worse
    ones, of which the first steps of fine-tuning are then lost.
    """
    for norm in model.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            norm.train = MethodType(_in_eval_mode, norm)  # type: ignore[method-assign]
            norm.eval()


def _in_eval_mode(norm: nn.Module, mode: bool = True) -> nn.Module:  # noqa: ARG001 (as `train` has it)
    return nn.Module.train(norm, False)


def classifier_names(model: Any) -> list[str]:
    """Where the classifier stands, or the classifiers: a distilled network has two."""
    classifier = model.get_classifier()
    parts = classifier if isinstance(classifier, tuple | list | nn.ModuleList) else (classifier,)
    return [name for name, module in model.named_modules() if name and any(module is part for part in parts)]


def linear_classifier(model: Any) -> str:
    """The name of the classifier, if it is one linear layer, with a bias, on the pre-logit features.

    Raises:
        ValueError: it is something else.
    """
    names = classifier_names(model)
    layer = model.get_submodule(names[0]) if len(names) == 1 else None
    if not isinstance(layer, nn.Linear) or layer.bias is None:
        raise ValueError("its classifier is not one linear layer with a bias")
    return names[0]


def pre_logit_features(model: Any, images: Tensor) -> Tensor:
    """What the classifier layer sees, [B, D]: the "pre-softmax layer activations" of the paper's section 3.2."""
    features: Tensor = model.forward_head(model.forward_features(images), pre_logits=True)
    return features
