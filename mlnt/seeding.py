"""Named random generators: one seed, one independent stream for every use.

A stream is addressed by name, as in `generator(seed, "order", iteration, epoch)`. No stream depends on how
much another one was used, so resuming, the number of workers or a change in one stage moves nothing else.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def derive(seed: int, *names: str | int) -> int:
    """A 63-bit seed for the stream `names`: the head of SHA-256 over the seed and the names."""
    address = "\x1f".join([str(seed), *(str(name) for name in names)])
    return int.from_bytes(hashlib.sha256(address.encode()).digest()[:8], "big") >> 1


def numpy_generator(seed: int, *names: str | int) -> np.random.Generator:
    """A NumPy generator (Philox, counter-based) for the stream `names`."""
    return np.random.Generator(np.random.Philox(key=derive(seed, *names)))


def generator(seed: int, *names: str | int) -> torch.Generator:
    """A PyTorch CPU generator for the stream `names`. It takes 32 of the seed's bits, all that torch uses."""
    import torch  # here, so that the stages without a network start without paying for the import

    return torch.Generator().manual_seed(derive(seed, *names))
