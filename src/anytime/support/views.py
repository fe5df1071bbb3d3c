"""From a picture to what a network takes: one way for training sets, evaluation, prediction and frames of a camera."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

LONGEST = 8
"""An image whose longer side is more than this multiple of the shorter is cropped to it before it is resized."""


def to_channels(image: Image.Image, channels: int) -> Image.Image:
    """The image as grey (`channels=1`) or RGB (`channels=3`), 8 bits per channel; transparent parts show white.

    A channel value v of opacity a becomes `a v + (1 - a) 255`.

    Raises ValueError if the pixels have 32 bits, because their range is unknown.
    """
    if image.mode.startswith("I;16"):  # PIL would clip values above 255
        values, transparent = np.asarray(image), image.info.get("transparency")
        grey = ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
        if isinstance(transparent, int):
            grey[values == transparent] = 255
        image = Image.fromarray(grey)
    elif image.mode in ("I", "F"):
        raise ValueError(f"its pixels are 32-bit numbers (mode {image.mode}) of unknown range; save it with 8 or 16 bits")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    mode = "L" if channels == 1 else "RGB"
    return image if image.mode == mode else image.convert(mode)


def to_tensor(image: Image.Image) -> Tensor:
    """The image as uint8 `[C, H, W]`."""
    array = np.array(image)
    return torch.from_numpy(array[None] if array.ndim == 2 else array.transpose(2, 0, 1).copy())


def shorten(image: Image.Image) -> Image.Image:
    """The middle of an image that is longer than `LONGEST` times its shorter side: resized whole, it would need gigabytes."""
    width, height = image.size
    limit = LONGEST * min(image.size)
    left, upper = max(width - limit, 0) // 2, max(height - limit, 0) // 2
    return image.crop((left, upper, width - left, height - upper)) if left or upper else image


def middle_view(image: Image.Image, size: tuple[int, int], resize_ratio: float, stretched: bool = False) -> Image.Image:
    """The test view of an image, `size` = (height, width): resized with equal aspect, bilinear, then cropped to the centre.

    Its shorter side is resized to `resize_ratio` times the longer side of `size`; 1 just covers `size`. With `stretched`, the
    whole image is resized to `size`.
    """
    height, width = size
    if stretched:
        return image.resize((width, height), Image.Resampling.BILINEAR)
    if resize_ratio == 1:
        return ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)
    image = shorten(image)
    shorter = round(max(size) * resize_ratio)
    if image.width <= image.height:
        wanted = shorter, int(shorter * image.height / image.width)
    else:
        wanted = int(shorter * image.width / image.height), shorter
    image = image if image.size == wanted else image.resize(wanted, Image.Resampling.BILINEAR)
    left, upper = _offset(image.width, width), _offset(image.height, height)
    return image.crop((left, upper, left + width, upper + height))


def _offset(length: int, kept: int) -> int:
    """Where the middle `kept` of `length` pixels begins; negative if there are fewer, and black is added."""
    return round((length - kept) / 2) if length >= kept else -((kept - length) // 2)


def frame_picture(frame: Any, bgr: bool = False) -> Image.Image:
    """The picture that a frame `(H, W, 3)`, `(3, H, W)`, `(H, W)`, `(H, W, 1)` or `(1, H, W)` of uint8 shows.

    Args:
        frame: A numpy array or torch tensor.
        bgr: Colours come as blue, green, red.

    Raises:
        TypeError: It is no array or tensor of uint8.
        ValueError: It has another shape, or one that can be read in two ways.
    """
    if not isinstance(frame, (np.ndarray, Tensor)):
        raise TypeError(f"a frame must be a numpy array or torch tensor of uint8, got {type(frame).__name__}")
    if str(frame.dtype) not in ("uint8", "torch.uint8"):
        raise TypeError(f"a frame must be uint8, got {_described(frame)}; images in [0, 1] go to the predictor as they are")
    array = frame.detach().cpu().numpy() if isinstance(frame, Tensor) else frame
    shape = array.shape
    if 0 in shape or not (array.ndim == 2 or (array.ndim == 3 and {shape[0], shape[2]} & {1, 3})):
        raise ValueError(f"a frame must be (H, W, C) or (C, H, W) with 1 or 3 channels, or (H, W), got {_described(frame)}")
    if array.ndim == 2:
        return Image.fromarray(array)
    if {shape[0], shape[2]} <= {1, 3}:
        raise ValueError(f"a frame of shape {shape} can be read as (H, W, C) and as (C, H, W); give one of more pixels")
    if shape[2] == 1 or shape[0] == 1:
        return Image.fromarray(array[:, :, 0] if shape[2] == 1 else array[0])
    if shape[0] == 3:
        planes = [Image.fromarray(plane) for plane in array]
        return Image.merge("RGB", planes[::-1] if bgr else planes)
    return Image.frombytes("RGB", shape[1::-1], np.ascontiguousarray(array), "raw", "BGR") if bgr else Image.fromarray(array)


def _described(frame: Any) -> str:
    span = f" from {frame.min():g} to {frame.max():g}" if 0 not in frame.shape else ""
    return f"{frame.dtype} {tuple(frame.shape)}{span}"
