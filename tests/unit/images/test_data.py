from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mlnt.images.batches import (
    Augmentation,
    MemoryImages,
    augment,
    draw_augmentation,
)
from mlnt.images.statistics import InputStatistics, Normalize, input_statistics

CPU = torch.device("cpu")


def uint8_images(count: int, channels: int = 3, size: int = 6) -> Tensor:
    shape = (count, channels, size, size + 2)  # not square: rows and columns cannot be confused
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def float_images(count: int = 40, channels: int = 3) -> Tensor:
    return uint8_images(count, channels).float() - 128.0


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# Statistics


def test_mean_image_equals_numpy() -> None:
    images = uint8_images(50)
    statistics = input_statistics(images, "mean_image")
    expected = (images.double().numpy() / 255).mean(axis=0)
    assert statistics.mean.numpy() == pytest.approx(expected, rel=1e-6)
    assert statistics.std == 1


def test_channel_statistics_equal_numpy() -> None:
    images = uint8_images(50)
    images[:, 1] //= 4  # another mean and deviation for each channel
    statistics = input_statistics(images, "channel")
    scaled = images.double().numpy() / 255
    assert statistics.mean.shape == statistics.std.shape == (3, 1, 1)
    assert statistics.mean.flatten().numpy() == pytest.approx(scaled.mean(axis=(0, 2, 3)), rel=1e-6)
    assert statistics.std.flatten().numpy() == pytest.approx(scaled.std(axis=(0, 2, 3)), rel=1e-6)


@pytest.mark.parametrize("normalize", ["mean_image", "channel"])
def test_statistics_of_more_images_than_a_chunk_holds(normalize: Normalize) -> None:
    images = uint8_images(5000, channels=1, size=2)
    scaled = images.double().numpy() / 255
    statistics = input_statistics(images, normalize)
    expected = scaled.mean(axis=0) if normalize == "mean_image" else scaled.mean()
    assert statistics.mean.numpy() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("normalize", ["mean_image", "channel"])
def test_constant_images_become_zero(normalize: Normalize) -> None:
    images = torch.full((4, 1, 3, 3), 255, dtype=torch.uint8)
    store = MemoryImages(images, input_statistics(images, normalize), CPU)
    assert torch.equal(store.batch(torch.arange(4)), torch.zeros(4, 1, 3, 3))


# Images in memory


@pytest.mark.parametrize("channels_last", [False, True])
def test_batches_are_the_normalised_rows_asked_for(channels_last: bool) -> None:
    images = uint8_images(20)
    before = images.clone()
    mean, std = torch.rand(3, 6, 8, generator=generator()), torch.tensor([0.5, 1.0, 2.0]).view(3, 1, 1)
    store = MemoryImages(images, InputStatistics(mean, std), CPU, channels_last)
    indices = torch.tensor([7, 3, 3, 19])
    batch = store.batch(indices)
    assert len(store) == 20
    assert store.device == CPU
    torch.testing.assert_close(batch, (images[indices].float() / 255 - mean) / std)
    assert batch.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    batch.zero_()
    assert torch.equal(images, before)


def test_normalised_training_images_have_mean_0_and_deviation_1() -> None:
    images = uint8_images(50)
    batch = MemoryImages(images, input_statistics(images, "channel"), CPU).batch(torch.arange(50))
    assert batch.mean(dim=(0, 2, 3)).numpy() == pytest.approx(np.zeros(3), abs=1e-5)
    assert batch.std(dim=(0, 2, 3), correction=0).numpy() == pytest.approx(np.ones(3), rel=1e-5)


# Augmentation


def augmented_by(images: Tensor, augmentation: Augmentation, drawn: torch.Generator) -> Tensor:
    return augment(images, augmentation, draw_augmentation(augmentation, len(images), drawn))


def augment_slowly(images: Tensor, augmentation: Augmentation, generator: torch.Generator) -> Tensor:
    """One image after the other, from the same draws."""
    count, channels, height, width = images.shape
    pad = augmentation.crop_padding
    shift = torch.randint(2 * pad + 1, (2, count, 1), generator=generator) if pad else torch.zeros(2, count, 1).long()
    flip = torch.rand(count, generator=generator) < 0.5 if augmentation.horizontal_flip else torch.zeros(count).bool()
    out = torch.zeros_like(images)
    for i, image in enumerate(images):
        canvas = torch.zeros(channels, height + 2 * pad, width + 2 * pad)
        canvas[:, pad : pad + height, pad : pad + width] = image
        top, left = int(shift[0, i]), int(shift[1, i])
        crop = canvas[:, top : top + height, left : left + width]
        out[i] = crop.flip(2) if flip[i] else crop
    return out


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("pad", [0, 1, 4])
def test_augmentation_equals_a_loop_over_images(
    pad: int, flip: bool, memory_format: torch.memory_format, channels: int
) -> None:
    images = float_images(channels=channels).contiguous(memory_format=memory_format)
    before = images.clone()
    augmentation = Augmentation(crop_padding=pad, horizontal_flip=flip)
    augmented = augmented_by(images, augmentation, generator())
    assert torch.equal(augmented, augment_slowly(images, augmentation, generator()))
    assert augmented.is_contiguous(memory_format=memory_format)
    assert torch.equal(images, before)


def test_no_augmentation_is_the_identity_and_draws_nothing() -> None:
    drawn = generator()
    assert torch.equal(augmented_by(float_images(), Augmentation(), drawn), float_images())
    assert torch.equal(drawn.get_state(), generator().get_state())


def test_border_is_zero_after_normalisation() -> None:
    # On images of ones a crop holds ones and the padding.
    augmented = augmented_by(torch.ones(500, 1, 6, 6), Augmentation(crop_padding=2), generator())
    assert set(augmented.unique().tolist()) == {0.0, 1.0}
    kept_rows, kept_columns = augmented.amax(dim=(1, 3)).sum(1), augmented.amax(dim=(1, 2)).sum(1)
    assert set(kept_rows.tolist()) == set(kept_columns.tolist()) == {4.0, 5.0, 6.0}


def test_all_shifts_and_both_orientations_occur_equally_often() -> None:
    count, pad = 9000, 1
    image = torch.arange(1.0, 17.0).view(1, 1, 4, 4)
    views = [
        torch.where(torch.tensor(flipped), F.pad(image, (pad,) * 4)[0, 0, y : y + 4, x : x + 4].flip(1), view)
        for y in range(3)
        for x in range(3)
        for view in [F.pad(image, (pad,) * 4)[0, 0, y : y + 4, x : x + 4]]
        for flipped in (False, True)
    ]
    augmented = augmented_by(image.expand(count, 1, 4, 4), Augmentation(pad, True), generator())[:, 0]
    counts = torch.stack([(augmented == view).all(dim=(1, 2)).sum() for view in views])
    assert counts.sum() == count
    assert counts.double().numpy() == pytest.approx(np.full(18, count / 18), rel=0.25)  # five standard deviations


def test_augmentation_follows_its_generator_alone() -> None:
    augmentation, before = Augmentation(2, True), torch.get_rng_state()
    one, two, other = (augmented_by(float_images(), augmentation, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), before)
