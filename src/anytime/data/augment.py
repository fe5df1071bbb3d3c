"""Augmentation of whole uint8 batches on their device, driven by one integer key per sample (see `hashing`)."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from anytime.data.hashing import randint

Augmentation = Callable[[Tensor, Tensor], Tensor]
"""`(images [B, C, H, W] uint8, keys [B] int64) -> images [B, C, H, W] uint8`."""

Padding = Literal["zeros", "reflect"]

Flip = Literal["random", "alternating"]

_ROW, _COLUMN, _MIRROR = 1, 2, 3  # salts of a key


def random_crop(images: Tensor, keys: Tensor, padding: int, padding_mode: Padding = "zeros") -> Tensor:
    """Pads every side by `padding` pixels and crops a random window of the original size.

    Args:
        images: `[B, C, H, W]`.
        keys: int64 `[B]`; the position is a function of the sample's key.
        padding: Pixels; each of the `(2 * padding + 1) ** 2` positions is equally likely.
        padding_mode: `"zeros"` pads with black, `"reflect"` mirrors the image at its outermost pixels.

    Raises:
        ValueError: The padding mode is unknown, or the image has too few pixels to mirror.
    """
    height, width = images.shape[-2:]
    positions = 2 * padding + 1
    if padding_mode == "reflect":
        padded = images[:, :, _mirrored(height, padding, images.device)][..., _mirrored(width, padding, images.device)]
    elif padding_mode == "zeros":
        padded = functional.pad(images, [padding] * 4)
    else:
        raise ValueError(f"padding_mode must be 'zeros' or 'reflect', got {padding_mode!r}")
    # A view [B, C, positions, positions, H, W] of all crops; indexing copies only the chosen ones.
    crops = padded.unfold(2, height, 1).unfold(3, width, 1)
    samples = torch.arange(len(images), device=images.device)
    return crops.transpose(1, 3)[samples, randint(keys, positions, _COLUMN), randint(keys, positions, _ROW)]


def _mirrored(size: int, padding: int, device: torch.device) -> Tensor:
    """Pixel indices of a padded row, int64 `[size + 2 * padding]`; some versions of torch cannot mirror uint8 images."""
    if padding >= size:
        raise ValueError(f"to mirror the image, padding must be below its size, {size}, got {padding}")
    return size - 1 - (size - 1 - torch.arange(-padding, size + padding, device=device).abs()).abs()


def random_flip(images: Tensor, keys: Tensor) -> Tensor:
    """Mirrors each image `[B, C, H, W]` left to right with probability 1/2, decided by its key `[B]`."""
    return mirrored(images, randint(keys, 2, _MIRROR))


def mirrored(images: Tensor, chosen: Tensor) -> Tensor:
    """The images `[B, C, H, W]`, those with a 1 in `chosen` `[B]` (int64, 0 or 1) mirrored left to right."""
    return torch.where(chosen.bool()[:, None, None, None], images.flip(-1), images)


def compose(augmentations: Iterable[Augmentation | None]) -> Augmentation | None:
    """Applies several augmentations in this order; `None` stands for no augmentation."""
    steps = [augmentation for augmentation in augmentations if augmentation is not None]

    def augment(images: Tensor, keys: Tensor) -> Tensor:
        for step in steps:
            images = step(images, keys)
        return images

    return augment if steps else None


def crop_and_flip(padding: int, flip: bool, padding_mode: Padding = "zeros") -> Augmentation | None:
    """Composes `random_crop` (if `padding > 0`) and `random_flip` (if `flip`); `None` if neither is wanted."""
    crop = partial(random_crop, padding=padding, padding_mode=padding_mode) if padding else None
    return compose([crop, random_flip if flip else None])
