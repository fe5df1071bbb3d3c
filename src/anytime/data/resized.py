"""The base of data sets whose images are resized while they are read."""

from __future__ import annotations

from typing import Any

from anytime.data.base import ImageData


class ResizedData(ImageData):
    """Base of data sets whose images are resized while they are read.

    Args:
        size: Height and width of the images in pixels.
        **kwargs: Arguments of `ImageData`.
    """

    input_size = (3, 48, 48)

    def __init__(self, size: int = 48, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.input_size = (3, size, size)
