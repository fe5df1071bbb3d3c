"""Image noise that destroys information in one glance but not in many (Iuzzolino et al., NeurIPS 2021, Fig. 6).

Every noise is a function of a batch and of one integer key a sample (see `hashing`), like the augmentations. uint8 images, as
in training, or floating-point ones in [0, 1] go in, and the same kind comes out, on their device. Sizes are the paper's, for
images of 32x32 pixels. The published code adds noise after normalisation, where 0 is the mean colour of the data set: here
that colour is given as `fill`, in [0, 1].
"""

import functools
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from anytime.data import hashing
from anytime.data.augment import Augmentation
from anytime.data.hashing import randint
from anytime.support.names import nearest

Name = Literal["focus", "occlusion", "perlin", "resolution", "translation", "rotation"]

# Choices of one key (see `below`), none of which the augmentations make; the last two have a number in their low bits.
_FOCUS, _OCCLUSION, _FACTOR, _ANGLE, _TIME, _GRADIENT, _WALK = 16, 18, 20, 21, 22, 1 << 32, 2 << 32
_FRAME = 3
_SIDE = 0.1577  # weight of each neighbour in the published blur


def focus(images: Tensor, keys: Tensor, size: int = 16) -> Tensor:
    """Sharp in a window of `size` pixels at a random place, blurred elsewhere.

    The blur is the published code's: weights (0.1577, 0.6845, 0.1577) along rows and columns (a standard deviation of 0.56
    pixels), images mirrored at the border.

    Args:
        images: `[B, C, H, W]`.
        keys: int64 `[B]`; the place is a function of the sample's key, each place within the image equally likely.
        size: of the window, in pixels.
    """
    sharp = _window(images, keys, size, _FOCUS)
    padded = functional.pad(_floating(images), [1, 1, 1, 1], mode="reflect")
    rows = _SIDE * (padded[:, :, :-2] + padded[:, :, 2:]) + (1 - 2 * _SIDE) * padded[:, :, 1:-1]
    blurred = _SIDE * (rows[..., :-2] + rows[..., 2:]) + (1 - 2 * _SIDE) * rows[..., 1:-1]
    return torch.where(sharp, images, _like(images, blurred))


def occlusion(images: Tensor, keys: Tensor, fill: Sequence[float], size: int = 16) -> Tensor:
    """A window of `size` pixels at a random place shows nothing but the colour `fill`.

    Args:
        images: `[B, C, H, W]`.
        keys: int64 `[B]`; each place within the image is equally likely.
        fill: one value per channel in [0, 1], the mean of the data set.
        size: of the window, in pixels.
    """
    return torch.where(_window(images, keys, size, _OCCLUSION), _colour(fill, images), images)


def perlin(
    images: Tensor, keys: Tensor, fill: Sequence[float], share: float = 0.4, cells: int = 5, replace: bool = False
) -> Tensor:
    """Gradient noise decides which `share` of the pixels is lost: those where it is largest.

    The noise (Perlin 2002) has `cells` x `cells` cells, a gradient along an axis at each corner, and quintic blending. The
    paper says "gradient noise randomly applied to 40 % of image pixels"; its code removes these pixels, all channels alike.

    Args:
        images: `[B, C, H, W]`.
        keys: int64 `[B]`; decides the gradients.
        fill: what lost pixels show, one value per channel in [0, 1].
        share: of pixels that are lost, in [0, 1].
        cells: along each side of the image.
        replace: lost pixels show the noise n itself, as grey (1 + n) / 2, in place of `fill`.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share must lie in [0, 1], got {share!r}")
    height, width = images.shape[-2:]
    pixels = height * width
    noise = _gradient_noise(keys, height, width, cells)
    largest = noise.flatten(1).sort(dim=1, descending=True, stable=True).indices[:, : round(share * pixels)]
    lost = torch.zeros(len(images), pixels, dtype=torch.bool, device=images.device).scatter_(1, largest, True)
    shown = _like(images, (1 + noise[:, None]) * (_white(images) / 2)) if replace else _colour(fill, images)
    return torch.where(lost.view(-1, 1, height, width), shown, images)


def resolution(images: Tensor, keys: Tensor, factors: Sequence[int] = (2, 4)) -> Tensor:
    """Average pooling by one of `factors`, each equally likely, and back to the old size by repeating pixels.

    The published code leaves a third of the images as they are: `factors=(1, 2, 4)`.

    Args:
        images: `[B, C, H, W]`; where a factor does not divide the size, the last pixels are averages over what there is.
        keys: int64 `[B]`; decides the factor.
        factors: in pixels, 1 for untouched.
    """
    if not factors or min(factors) < 1:
        raise ValueError(f"factors must be one or more numbers from 1 on, got {factors!r}")
    height, width = images.shape[-2:]
    values, chosen = _floating(images), randint(keys, len(factors), _FACTOR)
    coarse = images
    for number, factor in enumerate(factors):
        small = functional.avg_pool2d(values, factor, ceil_mode=True)
        large = small.repeat_interleave(factor, 2).repeat_interleave(factor, 3)[:, :, :height, :width]
        coarse = torch.where((chosen == number)[:, None, None, None], _like(images, large), coarse)
    return coarse


def translation(images: Tensor, keys: Tensor, time: int | None = None, length: int = 5, limit: int = 8) -> Tensor:
    """Shifts by the position of a random walk: from (0, 0), each axis goes one pixel up or down at each step.

    Pixels that come into view repeat the border. The times of one walk are frames of a trembling camera, e.g.
    `torch.stack([translation(x, keys, t) for t in range(9)])`.

    Args:
        images: `[B, C, H, W]`.
        keys: int64 `[B]`; decides the walk.
        time: number of steps done; by default a random one of 0..length-1 for each sample.
        length: of the walk where the time is random; 5 as in the published code, so at most 4 pixels.
        limit: the walk is held within that many pixels of the start.
    """
    if min(length, limit) < 1 or (time is not None and time < 0):
        raise ValueError(f"length and limit must be at least 1, time at least 0, got {length!r}, {limit!r}, {time!r}")
    last = length - 1 if time is None else time
    moves = 2 * randint(keys[:, None] ^ torch.arange(2 * last, device=keys.device), 2, _WALK).view(len(keys), last, 2) - 1
    done = randint(keys, length, _TIME) if time is None else torch.full_like(keys, time)
    place = torch.zeros_like(keys)[:, None].repeat(1, 2)
    for step in range(last):
        place = torch.where((step < done)[:, None], (place + moves[:, step]).clamp(-limit, limit), place)
    height, width = images.shape[-2:]
    rows = (torch.arange(height, device=keys.device) - place[:, :1]).clamp(0, height - 1)
    columns = (torch.arange(width, device=keys.device) - place[:, 1:]).clamp(0, width - 1)
    shifted = images.take_along_dim(rows[:, None, :, None], 2)
    return shifted.take_along_dim(columns[:, None, None, :], 3)


def rotation(images: Tensor, keys: Tensor, degrees: float = 60.0) -> Tensor:
    """Turns each image about its centre by a random angle, uniform in +-`degrees`; the border is repeated outwards.

    Cubic convolution between pixels (the published code: cubic splines).

    Args:
        images: `[B, C, H, W]`.
        keys: int64 `[B]`; decides the angle.
        degrees: the largest angle.
    """
    values = _floating(images)
    height, width = images.shape[-2:]
    angle = torch.deg2rad(_angles(keys, degrees)).to(values.dtype)[:, None, None]
    y = torch.arange(height, dtype=values.dtype, device=keys.device)[:, None] - (height - 1) / 2
    x = torch.arange(width, dtype=values.dtype, device=keys.device) - (width - 1) / 2
    cos, sin = angle.cos(), angle.sin()
    grid = torch.stack([(cos * x - sin * y) * (2 / width), (sin * x + cos * y) * (2 / height)], -1)
    turned = functional.grid_sample(values, grid, mode="bicubic", padding_mode="border", align_corners=False)
    return _like(images, turned.clamp(0, _white(images)))


def create_noise(name: Name, fill: Sequence[float]) -> Augmentation:
    """The noise called `name` at its default strength; what it removes shows the colour `fill`, one value per channel.

    Raises:
        ValueError: unknown name.
    """
    if name not in get_args(Name):
        raise ValueError(f"unknown noise {name!r}{nearest(str(name), get_args(Name))}")
    if name == "occlusion":
        return functools.partial(occlusion, fill=fill)
    if name == "perlin":
        return functools.partial(perlin, fill=fill)
    others: dict[str, Augmentation] = {
        "focus": focus,
        "resolution": resolution,
        "translation": translation,
        "rotation": rotation,
    }
    return others[name]


def frames(noise: Augmentation, images: Tensor, keys: Tensor, steps: int) -> Tensor:
    """A stream of the same images under noise that is drawn anew at every step: `[T, B, C, H, W]`.

    Frame t is a function of the keys and t only, so that a longer stream begins like a shorter one.

    Args:
        noise: e.g. from `create_noise`.
        images: `[B, C, H, W]`.
        keys: int64 `[B]`.
        steps: T.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps!r}")
    return torch.stack([noise(images, hashing.keys(keys, _FRAME, step)) for step in range(steps)])


def _floating(images: Tensor) -> Tensor:
    """Images to calculate with, in at least float32, in their own units."""
    return images.to(torch.promote_types(images.dtype, torch.float32))


def _like(images: Tensor, values: Tensor) -> Tensor:
    """Values of the type of `images`, rounded if that is uint8."""
    return values.to(images.dtype) if images.is_floating_point() else values.round().to(images.dtype)


def _white(images: Tensor) -> float:
    """The largest value of a pixel."""
    return 1.0 if images.is_floating_point() else 255.0


def _colour(fill: Sequence[float], images: Tensor) -> Tensor:
    """A colour in [0, 1] as a pixel of `images`, `[C, 1, 1]`."""
    if len(fill) != images.shape[1] or not all(0 <= value <= 1 for value in fill):
        raise ValueError(f"fill must be {images.shape[1]} values in [0, 1], one per channel, got {fill!r}")
    colour = torch.tensor(fill, dtype=torch.float64)[:, None, None]
    return _like(images, colour * _white(images)).to(images.device)


def _window(images: Tensor, keys: Tensor, size: int, choice: int) -> Tensor:
    """Where a window lies that is somewhere within each image, bool `[B, 1, H, W]`."""
    height, width = images.shape[-2:]
    if not 1 <= size <= min(height, width):
        raise ValueError(f"size must lie in 1..{min(height, width)} for images of {height}x{width} pixels, got {size!r}")
    top, left = randint(keys, height - size + 1, choice), randint(keys, width - size + 1, choice + 1)
    rows = torch.arange(height, device=keys.device)[:, None] - top[:, None, None, None]
    columns = torch.arange(width, device=keys.device) - left[:, None, None, None]
    return (rows >= 0) & (rows < size) & (columns >= 0) & (columns < size)


def _angles(keys: Tensor, degrees: float) -> Tensor:
    """Uniform in +-`degrees`, float32 `[B]`."""
    return (randint(keys, 2**24, _ANGLE).float() * 2**-23 - 1) * degrees


def _gradient_noise(keys: Tensor, height: int, width: int, cells: int) -> Tensor:
    """Perlin noise in [-1, 1], float32 `[B, H, W]`: sum over corners (i, j) of s(y - i) s(x - j) g_ij . (x - j, y - i).

    s(d) = 1 - (6 |d|^5 - 15 d^4 + 10 |d|^3) for |d| < 1, else 0, and g is (+-1, 0) or (0, +-1). Opposite borders of the image
    are at coordinates 0 and `cells`. The sum is linear in g and its terms are products over the axes, so it is two small
    matrix products an image.
    """
    corners = cells + 1
    number = torch.arange(corners * corners, device=keys.device)
    chosen = randint(keys[:, None] ^ number, 4, _GRADIENT).view(-1, corners, corners)
    sign = 1.0 - 2.0 * (chosen % 2)
    along_x, along_y = sign * (chosen < 2), sign * (chosen >= 2)

    def blend(pixels: int) -> tuple[Tensor, Tensor]:
        place = torch.linspace(0, cells, pixels, device=keys.device)
        distance = place - torch.arange(corners, device=keys.device)[:, None]
        d = distance.abs().clamp(max=1)
        weight = 1 - d**3 * (d * (6 * d - 15) + 10)
        return weight, distance * weight

    (weight_y, slope_y), (weight_x, slope_x) = blend(height), blend(width)
    with torch.autocast(keys.device.type, enabled=False):
        return weight_y.T @ along_x @ slope_x + slope_y.T @ along_y @ weight_x
