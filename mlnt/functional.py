"""A network as a function of parameters that are not its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call


class Network:
    """A module together with the lists that a step needs of it again and again.

    Attributes:
        module: the network.
        parameters: its trainable parameters, in the module's order.
        names: their names.
        amp_dtype: autocast to this type in the forward pass; None for full precision.
    """

    def __init__(self, module: nn.Module, amp_dtype: torch.dtype | None = None) -> None:
        named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
        self.module = module
        self.names = [name for name, _ in named]
        self.parameters: list[Tensor] = [parameter for _, parameter in named]
        self.amp_dtype = amp_dtype
        self._norms: list[Any] = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]

    def __call__(self, images: Tensor) -> Tensor:
        """Logits [B, C] in float32 or wider, with the module's own parameters."""
        with self.autocast(images):
            logits: Tensor = self.module(images)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def at(self, parameters: Sequence[Tensor], images: Tensor) -> Tensor:
        """Logits with `parameters` in the place of the module's own, which stay as they are."""
        with self.autocast(images):
            logits: Tensor = functional_call(self.module, dict(zip(self.names, parameters, strict=True)), (images,))
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def autocast(self, images: Tensor) -> torch.autocast:
        """The context that forward passes run in."""
        return torch.autocast(images.device.type, self.amp_dtype, enabled=self.amp_dtype is not None)

    @contextmanager
    def frozen_statistics(self) -> Iterator[None]:
        """BatchNorm in train mode normalises by the batch, as always, but its running statistics stay put."""
        tracked = [norm.track_running_stats for norm in self._norms]
        for norm in self._norms:
            norm.track_running_stats = False
        try:
            yield
        finally:
            for norm, was in zip(self._norms, tracked, strict=True):
                norm.track_running_stats = was
