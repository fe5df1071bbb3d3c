"""Images given by users."""

import os

import torch
from PIL import Image, ImageOps

from anytime.data.files import reading, to_channels, to_tensor


def read_image(path: str | os.PathLike[str], input_size: tuple[int, int, int]) -> torch.Tensor:
    """Reads an image for a model.

    Grey and colour are converted into each other as the model needs it; an image of another size is resized until it
    just covers the wanted one, and its centre cut out. The orientation that a camera noted down is respected.

    Args:
        path: an image file.
        input_size: (channels, height, width) that the model takes; 1 or 3 channels.

    Returns:
        float32 `[C, H, W]` in [0, 1].

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it cannot be read as an image, or the number of channels is neither 1 nor 3.
    """
    channels, height, width = input_size
    if channels not in (1, 3):
        raise ValueError(f"input_size must have 1 (grey) or 3 (RGB) channels, got {input_size}")
    with reading(path), Image.open(path) as file:
        image = to_channels(ImageOps.exif_transpose(file), channels)
        fitted = ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)
    return to_tensor(fitted).float().div_(255)
