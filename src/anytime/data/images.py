"""Images given by users."""

import os

import torch
from PIL import Image, ImageOps

from anytime.data.decoding import open_image, to_tensor
from anytime.data.files import errors_naming
from anytime.data.stream import resize_and_crop


def read_image(path: str | os.PathLike[str], input_size: tuple[int, int, int], resize_ratio: float = 1.0) -> torch.Tensor:
    """Reads an image for a model.

    Grey and colour are converted into each other as the model requires. An image of another size is resized until it
    just covers the target size, and its centre is cropped. The EXIF orientation is respected, and transparent parts show
    white, as in training and evaluation.

    Args:
        path: An image file.
        input_size: (channels, height, width) that the model takes; 1 or 3 channels.
        resize_ratio: The shorter side is resized to this multiple of the longer target side, like the data set's test
            images (`model.info.resize_ratio`); 1 just covers.

    Returns:
        float32 `[C, H, W]` in [0, 1].

    Raises:
        FileNotFoundError: The file is missing.
        ValueError: It cannot be read as an image in one of `anytime.data.decoding.FORMATS`, or the number of channels is
            neither 1 nor 3.
    """
    channels, height, width = input_size
    if channels not in (1, 3):
        raise ValueError(f"input_size must have 1 (grey) or 3 (RGB) channels, got {input_size}")
    image = open_image(path, channels)
    with errors_naming(path):
        if resize_ratio == 1:
            view = ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)
        else:
            view = resize_and_crop(height, width, resize_ratio)(image)
    return to_tensor(view).float().div_(255)
