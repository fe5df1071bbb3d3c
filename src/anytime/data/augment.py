"""Augmentation of whole uint8 batches on their device, driven by one integer key a sample (see `hashing`)."""

from collections.abc import Callable, Iterable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from anytime.data.hashing import randint

Augmentation = Callable[[Tensor, Tensor], Tensor]
"""`(images [B, C, H, W] uint8, keys [B] int64) -> images [B, C, H, W] uint8`."""

Padding = Literal["zeros", "reflect"]

_ROW, _COLUMN, _MIRROR = 1, 2, 3


def random_crop(images: Tensor, keys: Tensor, padding: int, padding_mode: Padding = "zeros") -> Tensor:
    """Pads every side with `padding` pixels and cuts out the original size at a random place.

    Args:
        images: `[B, C, H, W]`.
        keys: int64 `[B]`; the place is a function of the sample's key.
        padding: in pixels; each of the `(2 * padding + 1) ** 2` places is equally likely.
        padding_mode: `"zeros"` pads with black, `"reflect"` mirrors the image at its outermost pixels.

    Raises:
        ValueError: another padding mode, or more pixels to mirror than there are.
    """
    height, width = images.shape[-2:]
    places = 2 * padding + 1
    if padding_mode == "reflect":
        padded = images[:, :, _mirrored(height, padding, images.device)][..., _mirrored(width, padding, images.device)]
    elif padding_mode == "zeros":
        padded = functional.pad(images, [padding] * 4)
    else:
        raise ValueError(f"padding_mode must be 'zeros' or 'reflect', got {padding_mode!r}")
    # A view [B, C, places, places, H, W] of all crops; indexing copies only the chosen ones.
    crops = padded.unfold(2, height, 1).unfold(3, width, 1)
    samples = torch.arange(len(images), device=images.device)
    return crops.transpose(1, 3)[samples, randint(keys, places, _COLUMN), randint(keys, places, _ROW)]


def _mirrored(size: int, padding: int, device: torch.device) -> Tensor:
    """The pixels of a padded row, int64 `[size + 2 * padding]`; not every torch mirrors uint8 images itself."""
    if padding >= size:
        raise ValueError(f"padding must be below the image size, {size}, to be mirrored, got {padding}")
    return size - 1 - (size - 1 - torch.arange(-padding, size + padding, device=device).abs()).abs()


def random_flip(images: Tensor, keys: Tensor) -> Tensor:
    """Mirrors each image `[B, C, H, W]` left to right with probability 1/2, decided by its key `[B]`."""
    mirror = randint(keys, 2, _MIRROR).bool()
    return torch.where(mirror[:, None, None, None], images.flip(-1), images)


def crop_and_flip(padding: int, flip: bool, padding_mode: Padding = "zeros") -> Augmentation | None:
    """The augmentation made of `random_crop` (where `padding > 0`) and `random_flip`; `None` where it is neither."""
    if not padding and not flip:
        return None

    def augment(images: Tensor, keys: Tensor) -> Tensor:
        if padding:
            images = random_crop(images, keys, padding, padding_mode)
        return random_flip(images, keys) if flip else images

    return augment


def compose(parts: Iterable[Augmentation | None]) -> Augmentation | None:
    """One augmentation made of several, in this order; `None` stands for none."""
    wanted = [part for part in parts if part is not None]

    def augment(images: Tensor, keys: Tensor) -> Tensor:
        for part in wanted:
            images = part(images, keys)
        return images

    return augment if wanted else None
