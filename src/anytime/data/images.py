"""Images given by users."""

import os

import torch

from anytime.data.decoding import open_image
from anytime.data.files import errors_naming
from anytime.support.units import ImageSize, image_size
from anytime.support.views import middle_view, to_tensor


def read_image(
    path: str | os.PathLike[str], input_size: ImageSize, resize_ratio: float = 1.0, stretched: bool = False
) -> torch.Tensor:
    """Reads an image for a model.

    Grey and colour are converted into each other as the model requires. An image of another size is resized until it
    just covers the target size, and its centre is cropped. The EXIF orientation is respected, and transparent parts show
    white, as in training and evaluation.

    Args:
        path: An image file.
        input_size: (channels, height, width) that the model takes, 1 or 3 channels; or the side of square colour images.
        resize_ratio: The shorter side is resized to this multiple of the longer target side, like the data set's test
            images (`model.info.resize_ratio`); 1 just covers.
        stretched: The whole image is resized to the target size instead (`model.info.stretched`).

    Returns:
        float32 `[C, H, W]` in [0, 1].

    Raises:
        FileNotFoundError: The file is missing.
        ValueError: It cannot be read as an image in one of `anytime.data.decoding.FORMATS`, or the number of channels is
            neither 1 nor 3.
    """
    channels, height, width = image_size(input_size)
    if channels not in (1, 3):
        raise ValueError(f"input_size must have 1 (grey) or 3 (RGB) channels, got {input_size}")
    image = open_image(path, channels)
    with errors_naming(path):
        return to_tensor(middle_view(image, (height, width), resize_ratio, stretched)).float().div_(255)
