"""Reads images, in one way for training, evaluation and prediction."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from math import ceil, floor
from os import PathLike
from pathlib import Path

import torch
from PIL import Image, ImageOps
from torch import Tensor

from anytime.data.files import errors_naming
from anytime.support.views import load, to_channels, to_tensor

Box = tuple[float, float, float, float]
"""Left, upper, right and lower edge in pixels; right and lower are the first pixels outside the box."""

_SUPPORTED = "AVIF BMP DIB GIF ICO JPEG JPEG2000 PCX PNG PPM QOI SGI TIFF WEBP".split()  # noqa: SIM905
_HEAD = 16  # bytes at the beginning of a file that tell its format

Image.init()
FORMATS = tuple(name for name in _SUPPORTED if name in Image.OPEN)
"""The formats that are read, whatever a file's suffix: raster images that this build of PIL decodes by itself."""
_SUFFIXES = frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in FORMATS)


def is_image(path: str) -> bool:
    """Whether a file is an image in one of `FORMATS`, judging by its first bytes, or its header if its suffix is unusual."""
    try:
        with open(path, "rb") as file:
            head = file.read(_HEAD).ljust(_HEAD, b"\0")
        if not any(accept is None or accept(head) is True for _, accept in map(Image.OPEN.__getitem__, FORMATS)):
            return False
        if Path(path).suffix.lower() not in _SUFFIXES:
            Image.open(path, formats=FORMATS).close()
    except PermissionError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return False
    return True


def open_image(source: str | PathLike[str] | bytes, channels: int = 3, turn: bool = True, name: str = "") -> Image.Image:
    """Reads an image, see `to_channels`.

    Args:
        source: A file, or its content.
        channels: 1 (grey) or 3 (RGB).
        turn: Whether to turn the image upright by its EXIF orientation.
        name: The name in error messages; default: the file.

    Raises:
        FileNotFoundError: The file is missing.
        ValueError: It is damaged, not in one of `FORMATS`, or not an ordinary file.
    """
    content, path = (io.BytesIO(source), name) if isinstance(source, bytes) else (source, name or source)
    with errors_naming(path), Image.open(content, formats=FORMATS) as image:
        load(image)  # before the file is closed
        if turn:
            ImageOps.exif_transpose(image, in_place=True)  # without a copy, which takes 700 MB for the largest images
        return to_channels(image, channels)


def crop_and_resize(image: Image.Image, box: Box | None, size: tuple[int, int]) -> Image.Image:
    """Crops `image` to `box` (`None`: the whole image) and resizes it to `size` = (height, width), bilinear.

    Pixels entirely outside the box have no influence. Raises ValueError if the box contains no pixel of the image.
    """
    if box:
        left, upper, right, lower = max(box[0], 0), max(box[1], 0), min(box[2], image.width), min(box[3], image.height)
        if not (left < right and upper < lower):
            raise ValueError(f"box {box} contains no pixel of the image of size {image.size}")
        x, y = floor(left), floor(upper)
        image = image.crop((x, y, ceil(right), ceil(lower)))
        box = left - x, upper - y, right - x, lower - y
    return image.resize(size[::-1], Image.Resampling.BILINEAR, box=box)


def read_images(paths: Sequence[Path], input_size: tuple[int, int, int], boxes: Sequence[Box] | None = None) -> Tensor:
    """Reads image files, crops each to its box and resizes it, into one uint8 tensor `[N, C, H, W]`.

    Boxes are in pixels of the stored image, so images with boxes are not turned. Errors are those of `errors_naming`, also
    for a box outside its image.
    """

    def read(index: int) -> Image.Image:
        return open_image(paths[index], input_size[0], turn=boxes is None)

    return resize_images(read, paths, input_size, boxes)


def resize_images(
    read: Callable[[int], Image.Image], sources: Sequence[Path], input_size: tuple[int, int, int], boxes: Sequence[Box] | None
) -> Tensor:
    """Like `read_images`, for images that `read` returns by index; errors name their `sources`."""
    images = torch.empty((len(sources), *input_size), dtype=torch.uint8)

    def resize(index: int) -> None:
        image = read(index)
        with errors_naming(sources[index]):
            images[index] = to_tensor(crop_and_resize(image, boxes[index] if boxes else None, input_size[1:]))

    with ThreadPoolExecutor() as pool:  # image decoders release the GIL
        for _ in pool.map(resize, range(len(sources))):
            pass
    return images
