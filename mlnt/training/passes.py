"""The forward passes of a network: as it is, at other parameters, and with its classifier apart."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call


class Network:
    """A module together with lists of its parameters and norms, which every step needs.

    Attributes:
        module: the network.
        parameters: its trainable parameters, in the module's order; one that stands in several places counts once.
        names: their names, the first of each.
        amp_dtype: autocast to this type in the forward pass; None for full precision.
    """

    def __init__(self, module: nn.Module, amp_dtype: torch.dtype | None = None) -> None:
        named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
        self.module = module
        self.names = [name for name, _ in named]
        self.parameters: list[Tensor] = [parameter for _, parameter in named]
        self.amp_dtype = amp_dtype
        self._places = _places(module, {id(parameter): index for index, (_, parameter) in enumerate(named)})
        self._head_apart: Callable[[Tensor], tuple[Tensor, Tensor]] = self._classify_apart
        self._norms: list[Any] = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]

    def __call__(self, images: Tensor) -> Tensor:
        """Logits [B, C] in float32 or wider, with the module's own parameters."""
        with self.autocast(images):
            logits: Tensor = self.module(images)
        return wide(logits)

    def at(self, parameters: Sequence[Tensor], images: Tensor) -> Tensor:
        """Logits with `parameters` in the place of the module's own, which stay as they are."""
        given = {name: parameters[index] for name, index in self._places.items()}
        with self.autocast(images):
            # The places are all named, each once: with `tie_weights`, a module that is used under two names would be
            # filled twice, and afterwards hold what it was filled with first.
            logits: Tensor = functional_call(self.module, given, (images,), tie_weights=False)
        return wide(logits)

    def with_classifier_inputs(self, images: Tensor) -> tuple[Tensor, Tensor, bool]:
        """Logits [B, C] with what the classifier made them from, [B, D], both in float32 or wider, from one forward
        pass; and whether it has a bias.

        Raises:
            ValueError: the network does not end in one linear layer.
        """
        has_bias = self.classifier.bias is not None
        with self.autocast(images):
            logits, inputs = self._head_apart(images)
        logits = wide(logits)
        return logits, inputs.to(logits.dtype), has_bias

    def _classify_apart(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The forward pass of networks with timm's interface, in its two parts."""
        inputs: Tensor = self.module.forward_head(self.module.forward_features(images), pre_logits=True)  # type: ignore[operator]
        return self.classifier(inputs), inputs

    @property
    def classifier(self) -> nn.Linear:
        """The one linear layer that the network ends in.

        Raises:
            ValueError: there is none.
        """
        find = getattr(self.module, "get_classifier", None)
        classifier = find() if find is not None else None
        if not isinstance(classifier, nn.Linear):
            raise ValueError(f"its classifier is a {type(classifier).__name__}, expected one linear layer")
        return classifier

    def compile(self) -> None:
        """Compile the forward pass with `torch.compile`, as a whole and in its two parts."""
        self.module.compile()
        self._head_apart = torch.compile(self._classify_apart)

    def autocast(self, images: Tensor) -> torch.autocast:
        """The context that forward passes run in."""
        return torch.autocast(images.device.type, self.amp_dtype, enabled=self.amp_dtype is not None)

    @contextmanager
    def frozen_statistics(self) -> Iterator[None]:
        """BatchNorm in train mode normalises by the batch, as always, but its running statistics stay put.

        BatchNorm is all that this covers (1d, 2d, 3d, synchronised, timm's subclasses of them). Other buffers that
        move in a forward pass in train mode, those of InstanceNorm with `track_running_stats` and of spectral norm,
        move here as well.
        """
        tracked = [norm.track_running_stats for norm in self._norms]
        for norm in self._norms:
            norm.track_running_stats = False
        try:
            yield
        finally:
            for norm, was in zip(self._norms, tracked, strict=True):
                norm.track_running_stats = was


def _places(module: nn.Module, index: Mapping[int, int]) -> dict[str, int]:
    """Where the parameters of a network stand: attribute of a module, by its dotted name → index of the parameter.

    `index` gives it by the parameter's id; other parameters are left out. Modules may share a parameter (tied weights),
    which then has several places, and a module may have several names, of which one is enough.
    """
    return {
        f"{prefix}.{name}" if prefix else name: index[id(parameter)]
        for prefix, part in module.named_modules()
        for name, parameter in part._parameters.items()
        if id(parameter) in index
    }


def wide(logits: Tensor) -> Tensor:
    """In float32 or wider, whatever autocast has made of them."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
