"""Augmentation of whole uint8 batches on their device, driven by one integer key a sample (see `hashing`)."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from anytime.data.hashing import below

Augmentation = Callable[[Tensor, Tensor], Tensor]
"""`(images [B, C, H, W] uint8, keys [B] int64) -> images [B, C, H, W] uint8`."""

_ROW, _COLUMN, _MIRROR = 1, 2, 3


def random_crop(images: Tensor, keys: Tensor, padding: int) -> Tensor:
    """Pads every side with `padding` black pixels and cuts out the original size at a random place.

    Args:
        images: `[B, C, H, W]`.
        keys: int64 `[B]`; the place is a function of the sample's key.
        padding: in pixels; each of the `(2 * padding + 1) ** 2` places is equally likely.
    """
    height, width = images.shape[-2:]
    places = 2 * padding + 1
    # A view [B, C, places, places, H, W] of all crops; indexing copies only the chosen ones.
    crops = functional.pad(images, [padding] * 4).unfold(2, height, 1).unfold(3, width, 1)
    samples = torch.arange(len(images), device=images.device)
    return crops.transpose(1, 3)[samples, below(keys, places, _COLUMN), below(keys, places, _ROW)]


def random_flip(images: Tensor, keys: Tensor) -> Tensor:
    """Mirrors each image `[B, C, H, W]` left to right with probability 1/2, decided by its key `[B]`."""
    mirror = below(keys, 2, _MIRROR).bool()
    return torch.where(mirror[:, None, None, None], images.flip(-1), images)


def crop_and_flip(padding: int, flip: bool) -> Augmentation | None:
    """The augmentation made of `random_crop` (where `padding > 0`) and `random_flip`; `None` where it is neither."""
    if not padding and not flip:
        return None

    def augment(images: Tensor, keys: Tensor) -> Tensor:
        if padding:
            images = random_crop(images, keys, padding)
        return random_flip(images, keys) if flip else images

    return augment
