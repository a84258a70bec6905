from __future__ import annotations

import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from mlnt.images.batches import Augmentation, augment, draw_augmentation


@given(st.integers(1, 6), st.integers(1, 5), st.integers(1, 5), st.integers(0, 6), st.booleans(), st.integers(0, 2**31))
def test_every_image_is_a_window_of_its_padded_self(
    count: int, height: int, width: int, pad: int, flip: bool, seed: int
) -> None:
    # Pixels are numbered from 1 through all images, so that none can be taken for another or for the border.
    images = torch.arange(1.0, 1 + count * 2 * height * width).view(count, 2, height, width)
    augmentation = Augmentation(pad, flip)
    draws = draw_augmentation(augmentation, count, torch.Generator().manual_seed(seed))
    augmented = augment(images, augmentation, draws)
    assert augmented.shape == images.shape
    for image, result in zip(images, augmented, strict=True):
        windows = F.pad(image, (pad,) * 4).unfold(1, height, 1).unfold(2, width, 1)
        views = windows.permute(1, 2, 0, 3, 4).flatten(0, 1)
        if flip:
            views = torch.cat([views, views.flip(3)])
        assert (views == result).flatten(1).all(dim=1).any()
