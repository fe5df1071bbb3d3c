"""Image noise that destroys information in one glance but not in many (Iuzzolino et al., NeurIPS 2021, Fig. 6).

Like an augmentation, every noise is a function of `images` `[B, C, H, W]` and `keys`, int64 `[B]`: a sample's key (see
`hashing`) determines its random choices. It takes uint8 images, as in training, or floating-point images in [0, 1], and
returns the same type on the same device. Sizes are the paper's, for images of 32x32 pixels. The published code adds noise
after normalisation, where 0 is the data set's mean colour: here that colour is `fill`, one value per channel in [0, 1].
"""

from collections.abc import Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from anytime.data import hashing
from anytime.data.augment import Augmentation
from anytime.data.hashing import randint
from anytime.support.names import nearest

__all__ = ["create_noise", "focus", "frames", "occlusion", "perlin", "resolution", "rotation", "translation"]

Noise = Literal["focus", "occlusion", "perlin", "resolution", "translation", "rotation"]

# Salts of a key (see `randint`) that no augmentation uses; the last two hold a number in their low bits.
_FOCUS, _OCCLUSION, _FACTOR, _ANGLE, _TIME, _GRADIENT, _WALK = 16, 18, 20, 21, 22, 1 << 32, 2 << 32
_FRAME = 3
_SIDE = 0.1577  # weight of each neighbour in the published blur


def focus(images: Tensor, keys: Tensor, size: int = 16) -> Tensor:
    """Blurs each image except in a window of `size` x `size` pixels; each position within the image is equally likely.

    The blur is the published code's: weights (0.1577, 0.6845, 0.1577) along rows and columns (a standard deviation of 0.56
    pixels), with images mirrored at the border.
    """
    sharp = _window(images, keys, size, _FOCUS)
    padded = functional.pad(_floating(images), [1, 1, 1, 1], mode="reflect")
    rows = _SIDE * (padded[:, :, :-2] + padded[:, :, 2:]) + (1 - 2 * _SIDE) * padded[:, :, 1:-1]
    blurred = _SIDE * (rows[..., :-2] + rows[..., 2:]) + (1 - 2 * _SIDE) * rows[..., 1:-1]
    return torch.where(sharp, images, _like(images, blurred))


def occlusion(images: Tensor, keys: Tensor, fill: Sequence[float], size: int = 16) -> Tensor:
    """Covers a window of `size` x `size` pixels with the colour `fill`; each position within the image is equally likely."""
    return torch.where(_window(images, keys, size, _OCCLUSION), _colour(fill, images), images)


def perlin(
    images: Tensor, keys: Tensor, fill: Sequence[float], share: float = 0.4, cells: int = 5, replace: bool = False
) -> Tensor:
    """Replaces the `share` of the pixels where gradient noise is largest.

    The noise (Perlin 2002) has `cells` x `cells` cells, a gradient along an axis at each corner, and quintic blending. The
    paper says "gradient noise randomly applied to 40 % of image pixels"; its code removes these pixels, all channels alike.

    Args:
        fill: Colour of removed pixels.
        share: Share of removed pixels, in [0, 1].
        cells: Number of cells along each side of the image.
        replace: Whether removed pixels show the noise n itself, as grey (1 + n) / 2, instead of `fill`.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share must lie in [0, 1], got {share!r}")
    height, width = images.shape[-2:]
    pixels = height * width
    noise = _gradient_noise(keys, height, width, cells)
    largest = noise.flatten(1).sort(dim=1, descending=True, stable=True).indices[:, : round(share * pixels)]
    removed = torch.zeros(len(images), pixels, dtype=torch.bool, device=images.device).scatter_(1, largest, True)
    replacement = _like(images, (1 + noise[:, None]) * (_white(images) / 2)) if replace else _colour(fill, images)
    return torch.where(removed.view(-1, 1, height, width), replacement, images)


def resolution(images: Tensor, keys: Tensor, factors: Sequence[int] = (2, 4)) -> Tensor:
    """Average-pools by one of `factors`, each equally likely, then repeats pixels up to the original size.

    The published code leaves a third of the images unchanged: `factors=(1, 2, 4)`.

    Args:
        factors: Window sizes in pixels, 1 for unchanged. If a factor does not divide the image size, the last windows
            average the pixels that remain.
    """
    if not factors or min(factors) < 1:
        raise ValueError(f"factors must be one or more numbers of at least 1, got {factors!r}")
    height, width = images.shape[-2:]
    values, chosen = _floating(images), randint(keys, len(factors), _FACTOR)
    coarse = images
    for number, factor in enumerate(factors):
        small = functional.avg_pool2d(values, factor, ceil_mode=True)
        large = small.repeat_interleave(factor, 2).repeat_interleave(factor, 3)[:, :, :height, :width]
        coarse = torch.where((chosen == number)[:, None, None, None], _like(images, large), coarse)
    return coarse


def translation(images: Tensor, keys: Tensor, time: int | None = None, length: int = 5, limit: int = 8) -> Tensor:
    """Shifts by the position of a random walk: starting at (0, 0), each axis moves by +-1 pixel at each step.

    Pixels that come into view repeat the border. The times of one walk are the frames of a shaking camera, e.g.
    `torch.stack([translation(x, keys, t) for t in range(9)])`.

    Args:
        time: Number of steps taken; by default random in 0..length-1 for each sample.
        length: Length of the walk if the time is random; 5 as in the published code, so at most 4 pixels.
        limit: The walk is clamped to this many pixels from the start.
    """
    if min(length, limit) < 1 or (time is not None and time < 0):
        raise ValueError(f"length and limit must be at least 1, time at least 0, got {length!r}, {limit!r}, {time!r}")
    last = length - 1 if time is None else time
    moves = 2 * randint(keys[:, None] ^ torch.arange(2 * last, device=keys.device), 2, _WALK).view(len(keys), last, 2) - 1
    taken = randint(keys, length, _TIME) if time is None else torch.full_like(keys, time)
    position = torch.zeros_like(keys)[:, None].repeat(1, 2)
    for step in range(last):
        position = torch.where((step < taken)[:, None], (position + moves[:, step]).clamp(-limit, limit), position)
    height, width = images.shape[-2:]
    rows = (torch.arange(height, device=keys.device) - position[:, :1]).clamp(0, height - 1)
    columns = (torch.arange(width, device=keys.device) - position[:, 1:]).clamp(0, width - 1)
    shifted = images.take_along_dim(rows[:, None, :, None], 2)
    return shifted.take_along_dim(columns[:, None, None, :], 3)


def rotation(images: Tensor, keys: Tensor, degrees: float = 60.0) -> Tensor:
    """Rotates each image about its centre by a random angle, uniform in +-`degrees`; the border is repeated outwards.

    Interpolates by cubic convolution (the published code uses cubic splines).
    """
    values = _floating(images)
    height, width = images.shape[-2:]
    angle = torch.deg2rad(_angles(keys, degrees)).to(values.dtype)[:, None, None]
    y = torch.arange(height, dtype=values.dtype, device=keys.device)[:, None] - (height - 1) / 2
    x = torch.arange(width, dtype=values.dtype, device=keys.device) - (width - 1) / 2
    cos, sin = angle.cos(), angle.sin()
    grid = torch.stack([(cos * x - sin * y) * (2 / width), (sin * x + cos * y) * (2 / height)], -1)
    rotated = functional.grid_sample(values, grid, mode="bicubic", padding_mode="border", align_corners=False)
    return _like(images, rotated.clamp(0, _white(images)))


def create_noise(name: Noise, fill: Sequence[float]) -> Augmentation:
    """The noise called `name` at its default strength; raises ValueError if there is none."""
    noises: dict[str, Augmentation] = {
        "focus": focus,
        "occlusion": partial(occlusion, fill=fill),
        "perlin": partial(perlin, fill=fill),
        "resolution": resolution,
        "translation": translation,
        "rotation": rotation,
    }
    if name not in noises:
        raise ValueError(f"unknown noise {name!r}{nearest(str(name), noises)}")
    return noises[name]


def frames(noise: Augmentation, images: Tensor, keys: Tensor, steps: int) -> Tensor:
    """A stream of the same images with fresh `noise` (see `create_noise`) at each of T = `steps` steps: `[T, B, C, H, W]`.

    Frame t is a function of the keys and t only, so a longer stream begins like a shorter one.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps!r}")
    return torch.stack([noise(images, hashing.keys(keys, _FRAME, step)) for step in range(steps)])


def _floating(images: Tensor) -> Tensor:
    """The images in at least float32, in their own units."""
    return images.to(torch.promote_types(images.dtype, torch.float32))


def _like(images: Tensor, values: Tensor) -> Tensor:
    """The values in the dtype of `images`, rounded if that is uint8."""
    return values.to(images.dtype) if images.is_floating_point() else values.round().to(images.dtype)


def _white(images: Tensor) -> float:
    """The largest pixel value."""
    return 1.0 if images.is_floating_point() else 255.0


def _colour(fill: Sequence[float], images: Tensor) -> Tensor:
    """A colour in [0, 1] as a pixel of `images`, `[C, 1, 1]`."""
    if len(fill) != images.shape[1] or not all(0 <= value <= 1 for value in fill):
        raise ValueError(f"fill must be {images.shape[1]} values in [0, 1], one per channel, got {fill!r}")
    colour = torch.tensor(fill, dtype=torch.float64)[:, None, None]
    return _like(images, colour * _white(images)).to(images.device)


def _window(images: Tensor, keys: Tensor, size: int, salt: int) -> Tensor:
    """The mask of a randomly placed window within each image, bool `[B, 1, H, W]`."""
    height, width = images.shape[-2:]
    if not 1 <= size <= min(height, width):
        raise ValueError(f"size must lie in 1..{min(height, width)} for images of {height}x{width} pixels, got {size!r}")
    top, left = randint(keys, height - size + 1, salt), randint(keys, width - size + 1, salt + 1)
    rows = torch.arange(height, device=keys.device)[:, None] - top[:, None, None, None]
    columns = torch.arange(width, device=keys.device) - left[:, None, None, None]
    return (rows >= 0) & (rows < size) & (columns >= 0) & (columns < size)


def _angles(keys: Tensor, degrees: float) -> Tensor:
    """Random angles, uniform in +-`degrees`, float32 `[B]`."""
    return (randint(keys, 2**24, _ANGLE).float() * 2**-23 - 1) * degrees


def _gradient_noise(keys: Tensor, height: int, width: int, cells: int) -> Tensor:
    """Perlin noise in [-1, 1], float32 `[B, H, W]`: sum over corners (i, j) of s(y - i) s(x - j) g_ij . (x - j, y - i).

    s(d) = 1 - (6 |d|^5 - 15 d^4 + 10 |d|^3) for |d| < 1, else 0, and g is (+-1, 0) or (0, +-1). Opposite borders of the image
    lie at coordinates 0 and `cells`. The sum is linear in g and its terms are products over the axes, so two small matrix
    products per image compute it.
    """
    corners = cells + 1
    numbers = torch.arange(corners * corners, device=keys.device)
    axes = randint(keys[:, None] ^ numbers, 4, _GRADIENT).view(-1, corners, corners)
    sign = 1.0 - 2.0 * (axes % 2)
    along_x, along_y = sign * (axes < 2), sign * (axes >= 2)

    def blend(pixels: int) -> tuple[Tensor, Tensor]:
        position = torch.linspace(0, cells, pixels, device=keys.device)
        distance = position - torch.arange(corners, device=keys.device)[:, None]
        d = distance.abs().clamp(max=1)
        weight = 1 - d**3 * (d * (6 * d - 15) + 10)
        return weight, distance * weight

    (weight_y, slope_y), (weight_x, slope_x) = blend(height), blend(width)
    with torch.autocast(keys.device.type, enabled=False):
        return weight_y.T @ along_x @ slope_x + slope_y.T @ along_y @ weight_x
