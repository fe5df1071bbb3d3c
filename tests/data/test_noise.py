"""Noise against its definitions, sample by sample and pixel by pixel."""

import math
from functools import partial
from itertools import pairwise
from typing import get_args

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from anytime.data import hashing, noise
from anytime.data.augment import random_crop
from anytime.data.base import ImageData, Split
from anytime.data.noise import create_noise, focus, frames, occlusion, perlin, resolution, rotation, translation

FILL = (0.4914, 0.4822, 0.4465)  # the mean of CIFAR-10
NAMES = get_args(noise.Noise)


def images(number: int, height: int = 32, width: int = 32) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(number, 3, height, width, generator=generator, dtype=torch.float64)


def keys(number: int, seed: int = 0) -> Tensor:
    return hashing.keys(torch.arange(number), seed)


def changed(before: Tensor, after: Tensor) -> Tensor:
    """Mask of the pixels that differ in every channel, `[B, H, W]`; none may differ in only some."""
    differ = before != after
    assert torch.equal(differ.any(1), differ.all(1))
    return differ.any(1)


def windows(where: Tensor, size: int) -> list[tuple[int, int]]:
    """The positions of the windows that make up `where` `[B, H, W]`."""
    places = []
    for mask in where:
        rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
        assert len(rows) == len(columns) == size
        assert mask[rows[0] : rows[0] + size, columns[0] : columns[0] + size].all()
        assert mask.sum() == size * size
        places.append((int(rows[0]), int(columns[0])))
    return places


def assert_uniform(counts: Tensor) -> None:
    """Asserts that chi-square is below the value exceeded in one of 10,000 experiments (Wilson and Hilferty)."""
    counts = counts.double()
    chi_square = float(((counts - counts.mean()) ** 2 / counts.mean()).sum())
    degrees = len(counts) - 1
    assert chi_square < degrees * (1 - 2 / (9 * degrees) + 3.72 * math.sqrt(2 / (9 * degrees))) ** 3


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(32, 32), (21, 30)])
def test_a_sample_is_a_function_of_its_key_only(name, size):
    batch, k, apply = images(12, *size), keys(12), create_noise(name, FILL)
    state, before = torch.get_rng_state(), batch.clone()
    noisy = apply(batch, k)
    assert torch.equal(batch, before)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(apply(batch, k), noisy)
    torch.testing.assert_close(apply(batch[3:5], k[3:5]), noisy[3:5], rtol=1e-12, atol=1e-14)
    assert not torch.equal(apply(batch, keys(12, seed=1)), noisy)
    assert noisy.shape == batch.shape
    assert noisy.min() >= 0
    assert noisy.max() <= 1


@pytest.mark.parametrize("name", NAMES)
def test_types_of_images(name):
    batch, k, apply = (255 * images(8)).round().to(torch.uint8), keys(8), create_noise(name, FILL)
    noisy = apply(batch, k)
    assert noisy.dtype == torch.uint8
    exact = apply(batch.double() / 255, k)
    assert exact.dtype == torch.float64
    assert (noisy.double() / 255 - exact).abs().max() <= 0.5 / 255 + 1e-6  # rounding only
    assert apply(batch.float() / 255, k).dtype == torch.float32
    half = apply((batch.float() / 255).bfloat16(), k)
    assert half.dtype == torch.bfloat16
    assert (half.double() - exact).abs().max() < 0.01
    grey = create_noise(name, FILL[:1])(batch[:, :1], k)
    assert torch.equal(grey, noisy[:, :1])


def test_occlusion():
    batch = images(1500, 20, 18)
    noisy = occlusion(batch, keys(1500), FILL)
    where = changed(batch, noisy)
    assert torch.equal(
        noisy.transpose(0, 1)[:, where], torch.tensor(FILL, dtype=torch.float64)[:, None].expand(3, int(where.sum()))
    )
    places = torch.tensor(windows(where, 16))
    assert_uniform(torch.bincount(places[:, 0] * 3 + places[:, 1], minlength=5 * 3))
    one_pixel = occlusion(torch.zeros(1, 3, 1, 1, dtype=torch.uint8), keys(1), FILL, size=1)
    assert one_pixel.flatten().tolist() == [125, 123, 114]


def test_focus():
    batch = images(300)
    noisy = focus(batch, keys(300))
    weights = np.array([0.1577, 1 - 2 * 0.1577, 0.1577])  # mirrored at the border without repeating it
    blurred = batch.numpy()
    for axis in (2, 3):
        blurred = ndimage.correlate1d(blurred, weights, axis, mode="mirror")
    where = changed(batch, noisy)
    places = windows(~where, 16)
    assert {row for row, _ in places} == {column for _, column in places} == set(range(17))
    torch.testing.assert_close(noisy, torch.where(where[:, None], torch.from_numpy(blurred), batch), rtol=1e-12, atol=0)
    flat = torch.full((2, 3, 20, 20), 77, dtype=torch.uint8)
    assert torch.equal(focus(flat, keys(2)), flat)


def plain_gradient_noise(gradients: list[list[tuple[int, int]]], height: int, width: int, cells: int) -> Tensor:
    """Perlin noise in its usual form: dot products at four corners, blended twice. Gradients are (x, y)."""

    def fade(t: float) -> float:
        return 6 * t**5 - 15 * t**4 + 10 * t**3

    def value(x: float, y: float) -> float:
        i, j = min(int(y), cells - 1), min(int(x), cells - 1)
        dots = [
            [gradients[i + down][j + right][0] * (x - j - right) + gradients[i + down][j + right][1] * (y - i - down)
             for right in (0, 1)] for down in (0, 1)
        ]  # fmt: skip
        above, below = (left + fade(x - j) * (right - left) for left, right in dots)
        return above + fade(y - i) * (below - above)

    xs, ys = np.linspace(0, cells, width), np.linspace(0, cells, height)
    return torch.tensor([[value(x, y) for x in xs] for y in ys])


@pytest.mark.parametrize(("height", "width", "cells"), [(32, 32, 5), (9, 14, 3)])
def test_gradient_noise(height, width, cells):
    k = keys(3)
    found = noise._gradient_noise(k, height, width, cells)
    axes = [(1, 0), (-1, 0), (0, 1), (0, -1)]
    for key, one in zip(k, found, strict=True):
        numbers = range((cells + 1) ** 2)
        chosen = [axes[int(hashing.randint(key ^ number, 4, noise._GRADIENT))] for number in numbers]
        gradients = [chosen[row * (cells + 1) : (row + 1) * (cells + 1)] for row in range(cells + 1)]
        expected = plain_gradient_noise(gradients, height, width, cells)
        torch.testing.assert_close(one, expected.float(), rtol=0, atol=1e-5)
    many = noise._gradient_noise(keys(4000), height, width, cells)
    assert many.abs().max() <= 1
    assert many.mean((1, 2)).mean().abs() < 0.01


def test_perlin():
    batch, k = images(50), keys(50)
    noisy = perlin(batch, k, FILL)
    where = changed(batch, noisy)
    assert (where.flatten(1).sum(1) == 410).all()  # the number of values above numpy's 60th percentile of 1,024
    values = noise._gradient_noise(k, 32, 32, 5)
    for value, lost in zip(values, where, strict=True):
        assert value[lost].min() >= value[~lost].max()
    assert torch.equal(noisy[:, 2][where], torch.full_like(noisy[:, 2][where], FILL[2]))
    replaced = perlin(batch, k, FILL, replace=True)
    assert torch.equal(changed(batch, replaced), where)
    torch.testing.assert_close(replaced[:, 1][where], (1 + values[where].double()) / 2, rtol=0, atol=1e-7)
    assert torch.equal(perlin(batch, k, FILL, share=0), batch)
    assert changed(batch, perlin(batch, k, FILL, share=1)).all()
    assert (changed(batch, perlin(batch, k, FILL, share=0.25, cells=2)).flatten(1).sum(1) == 256).all()


def test_resolution():
    batch = images(900, 8, 12)
    expected = {f: functional.avg_pool2d(batch, f).repeat_interleave(f, 2).repeat_interleave(f, 3) for f in (1, 2, 4)}
    for factors in [(2, 4), (1, 2, 4)]:
        noisy = resolution(batch, keys(900), factors)
        equal = {f: (noisy - expected[f]).abs().flatten(1).amax(1) < 1e-12 for f in (1, 2, 4)}
        assert (equal[1].int() + equal[2].int() + equal[4].int() == 1).all()
        assert_uniform(torch.stack([equal[f].sum() for f in factors]))
        assert bool(equal[1].any()) == (1 in factors)
    assert torch.equal(resolution(batch, keys(900)), resolution(batch, keys(900), (2, 4)))


def test_resolution_where_the_factor_does_not_divide_the_size():
    noisy = resolution(images(1, 5, 7), keys(1), (4,))[0]
    assert noisy.shape == (3, 5, 7)
    torch.testing.assert_close(noisy[0, 4, 4:], images(1, 5, 7)[0, 0, 4, 4:].mean().expand(3), rtol=1e-12, atol=0)


def shifts(batch: Tensor, noisy: Tensor, reach: int) -> list[tuple[int, int]]:
    """The shift of each image, whose border is repeated."""
    places = []
    for image, shifted in zip(batch.numpy(), noisy.numpy(), strict=True):
        padded = np.pad(image, [(0, 0), (reach, reach), (reach, reach)], "edge")
        height, width = image.shape[1:]
        here = [
            (y, x)
            for y in range(-reach, reach + 1)
            for x in range(-reach, reach + 1)
            if np.array_equal(padded[:, reach - y : reach - y + height, reach - x : reach - x + width], shifted)
        ]
        assert len(here) == 1
        places += here
    return places


def test_translation_is_a_random_walk():
    batch, k = images(100, 7, 9), keys(100)
    path = [shifts(batch, translation(batch, k, time), 4) for time in range(5)]
    assert set(path[0]) == {(0, 0)}
    for before, after in pairwise(path):
        moves = {(b[0] - a[0], b[1] - a[1]) for a, b in zip(before, after, strict=True)}
        assert moves == {(-1, -1), (-1, 1), (1, -1), (1, 1)}
    somewhere = shifts(batch, translation(batch, k), 4)
    times = [[time for time in range(5) if path[time][i] == place] for i, place in enumerate(somewhere)]
    assert all(times)
    assert {(0, 0), (4, 4)} <= {(min(found), max(found)) for found in times}
    assert torch.equal(translation(batch, k, length=1), batch)


def test_a_walk_is_clamped_to_its_limit():
    batch, k = images(20, 5, 5), keys(20)
    path = np.array([shifts(batch, translation(batch, k, time, limit=2), 3) for time in range(15)])
    assert np.abs(path).max() == 2
    moved = np.abs(np.diff(path, axis=0))
    assert ((moved == 1) | ((moved == 0) & (np.abs(path[1:]) == 2))).all()


def test_rotation():
    y, x = torch.meshgrid(torch.arange(32.0).double(), torch.arange(32.0).double(), indexing="ij")
    smooth = torch.stack([0.5 + 0.3 * (x / 5).sin(), 0.5 + 0.3 * (y / 6).cos(), (x + 2 * y) / 100])[None]
    k = keys(6)
    turned = rotation(smooth.expand(6, -1, -1, -1), k)
    padded = np.pad(smooth[0].numpy(), [(0, 0), (48, 48), (48, 48)], "edge")
    for angle, found in zip(noise._angles(k, 60).tolist(), turned, strict=True):
        expected = ndimage.rotate(padded, angle, axes=(1, 2), reshape=False)[:, 48:-48, 48:-48]
        assert np.abs(found.numpy() - expected).max() < 0.01
        assert np.abs(found.numpy() - smooth[0].numpy()).max() > 0.02
    batch = (255 * images(4)).to(torch.uint8)
    assert torch.equal(rotation(batch, keys(4), degrees=0), batch)


def test_angles_are_uniform():
    angles = noise._angles(keys(20_000), 60)
    assert_uniform(torch.histc(angles, 40, -60, 60))
    assert angles.abs().max() <= 60
    assert angles.abs().max() > 59


@pytest.mark.parametrize("name", NAMES)
def test_frames_have_fresh_noise_at_every_step(name):
    batch, k, apply = images(6, 20, 20), keys(6), create_noise(name, FILL)
    stream = frames(apply, batch, k, 8)
    assert stream.shape == (8, 6, 3, 20, 20)
    assert torch.equal(frames(apply, batch, k, 3), stream[:3])
    assert len({frame.numpy().tobytes() for frame in stream}) == 8
    torch.testing.assert_close(frames(apply, batch[2:], k[2:], 8), stream[:, 2:], rtol=1e-12, atol=1e-14)
    assert not torch.equal(stream[0], apply(batch, k))  # training images use another draw


def test_noise_is_independent_of_the_crop():
    k = keys(9000)
    numbers = torch.arange(1.0, 290.0).view(1, 1, 17, 17).expand(len(k), -1, -1, -1)
    crops = random_crop(numbers[..., :2, :2], k, 1).flatten(1).unique(dim=0, return_inverse=True)[1]
    places = (occlusion(numbers, k, [0.0], 16).flatten(1) == 0).int().argmax(1).unique(return_inverse=True)[1]
    assert_uniform(torch.bincount(crops * 4 + places, minlength=9 * 4))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (partial(focus, size=33), r"size must lie in 1\.\.32 for images of 32x32 pixels, got 33"),
        (partial(occlusion, fill=FILL, size=0), r"size must lie in 1\.\.32 .*, got 0"),
        (partial(occlusion, fill=FILL[:2]), r"fill must be 3 values in \[0, 1\], one per channel, got \(0.4914, 0.4822\)"),
        (partial(occlusion, fill=(125, 123, 114)), r"fill must be 3 values in \[0, 1\], .*, got \(125, 123, 114\)"),
        (partial(perlin, fill=FILL, share=40), r"share must lie in \[0, 1\], got 40"),
        (partial(resolution, factors=(0, 2)), r"factors must be one or more numbers of at least 1, got \(0, 2\)"),
        (partial(resolution, factors=()), r"factors must be one or more numbers of at least 1, got \(\)"),
        (partial(translation, length=0), "length and limit must be at least 1, time at least 0, got 0, 8, None"),
        (partial(translation, time=-1), "got 5, 8, -1"),
        (partial(frames, create_noise("focus", FILL), steps=0), "steps must be at least 1, got 0"),
    ],
)
def test_wrong_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call(images(2), keys=keys(2))


def test_unknown_noise():
    with pytest.raises(ValueError, match=r"unknown noise 'oclusion'; did you mean 'occlusion'\?"):
        create_noise("oclusion", FILL)


class Random32(ImageData):
    """Random images of 32x32 pixels."""

    def read_names(self) -> list[list[str]]:
        return [["even", "odd"]]

    def read(self, split: str) -> Split | None:
        generator = torch.Generator().manual_seed(len(split))
        images = torch.randint(1, 256, (40, 3, 32, 32), dtype=torch.uint8, generator=generator)
        return None if split == "validation" else Split(images, torch.arange(40) % 2, split)


def test_data_sets_apply_noise_only_to_training_images() -> None:
    data = Random32(noise="occlusion", augment="none", crop_padding="reflect", validation=10, batch_size=30)
    data.setup()
    ((images, _),) = list(data.train_dataloader())
    colour = (torch.tensor(data.mean) * 255).round()[:, None, None] / 255
    hidden = torch.isclose(images, colour.expand_as(images)).all(1).sum((1, 2))
    assert (hidden >= 256).all()
    assert (hidden < 256 + 32).all()
    for loader in (data.val_dataloader(), data.test_dataloader()):
        ((images, _),) = list(loader)
        assert (torch.isclose(images, colour.expand_as(images)).all(1).sum((1, 2)) < 32).all()


def test_data_sets_reject_unknown_noise() -> None:
    with pytest.raises(ValueError, match=r"unknown noise 'fog'; did you mean 'focus'\?"):
        Random32(noise="fog")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"unknown crop_padding 'wrap'; valid: zeros, reflect"):
        Random32(crop_padding="wrap")  # type: ignore[arg-type]
