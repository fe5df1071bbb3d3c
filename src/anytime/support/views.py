"""From a picture to what a network takes: one way for training sets, evaluation, prediction and frames of a camera."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from anytime.support.tensors import described, has_range, unusual_layout

LONGEST = 8
"""An image whose longer side is more than this multiple of the shorter is cropped to it before it is resized."""


_PACKED = {"L;2": 85, "L;4": 17}
"""What PIL multiplies grey values of 2 and 4 bits by, but not the transparent one among them."""


def load(image: Image.Image) -> None:
    """Decodes an opened image; the transparent value of a grey PNG then has the scale of the pixels, at any depth.

    Raises:
        ValueError: The transparent colour has 16 bits and the decoded pixels 8; or the image was decoded before, and the scale
            of its transparent value cannot be told from its pixels.
    """
    tile = getattr(image, "tile", None)
    stored = str(tile[0][3]) if tile and image.format == "PNG" else ""
    image.load()
    value = image.info.get("transparency")
    if stored == "RGB;16B" and value is not None:
        raise _unlike_pixels(value)
    if isinstance(value, int) and stored in _PACKED:
        image.info["transparency"] = value * _PACKED[stored]
    elif isinstance(value, int) and image.mode == "L" and not tile and 1 <= value <= 15:
        levels = [level for level, count in enumerate(image.histogram()) if count]
        for factor in _PACKED.values():
            if value * factor in levels and not any(level % factor for level in levels):
                raise ValueError(
                    f"the transparent value {value} may stand for pixels of {value * factor}, as in a PNG of few bits, and "
                    "they were decoded before: give the image as it was opened, or say the value in 8 bits: "
                    f"image.info['transparency'] = {value * factor}"
                )


def _unlike_pixels(value: Any) -> ValueError:
    return ValueError(
        f"the transparent colour {value} has 16 bits per channel, and the decoded pixels have 8; save it with an alpha channel"
    )


def to_channels(image: Image.Image, channels: int) -> Image.Image:
    """The image as grey (`channels=1`) or RGB (`channels=3`), 8 bits per channel; transparent parts show white.

    A channel value v of opacity a becomes `a v + (1 - a) 255`.

    Raises ValueError if the pixels have 32 bits, because their range is unknown, or the transparent value fits none of them.
    """
    if image.mode.startswith("I;16"):  # PIL would clip values above 255
        values, transparent = np.asarray(image), image.info.get("transparency")
        if not (transparent is None or isinstance(transparent, int)):
            raise ValueError(f"the transparent value {transparent!r} fits no pixels of mode {image.mode}")
        grey = np.empty(values.shape, np.uint8)
        for row, line in enumerate(values):  # by rows, because large images would need gigabytes
            grey[row] = (line.astype(np.uint32) + 128) // 257
            if transparent is not None:
                grey[row][line == transparent] = 255
        image = Image.fromarray(grey)
    elif image.mode in ("I", "F"):
        raise ValueError(f"its pixels are 32-bit numbers (mode {image.mode}) of unknown range; save it with 8 or 16 bits")
    elif image.mode in (only := {"La": "LA", "LAB": "RGB"}):  # what PIL converts them to, and to nothing else
        image = image.convert(only[image.mode])
    if image.has_transparency_data:
        image = _on_white(image)
    mode = "L" if channels == 1 else "RGB"
    return image if image.mode == mode else image.convert(mode)


def _on_white(image: Image.Image) -> Image.Image:
    """An image with transparent parts as opaque RGBA."""
    value = image.info.get("transparency")
    if image.mode == "RGB" and isinstance(value, tuple) and max(value, default=0) > 255:
        raise _unlike_pixels(value)  # PIL would take the last 8 bits
    try:
        image = image.convert("RGBA")
    except (TypeError, ValueError):
        raise ValueError(f"the transparent value {value!r} fits no pixels of mode {image.mode}") from None
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)


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
        frame: A numpy array or torch tensor; or a PIL image, which is turned upright by its EXIF orientation.
        bgr: Colours come as blue, green, red.

    Raises:
        TypeError: It is no array or tensor of uint8, and no PIL image.
        ValueError: It has another shape, or one that can be read in two ways; a PIL image has no pixels, or those of 32 bits,
            or a transparent value that can be read in two ways, or comes with `bgr`.
    """
    if isinstance(frame, Image.Image):
        return _upright(frame, bgr)
    if not isinstance(frame, (np.ndarray, Tensor)):
        kind = type(frame).__name__
        raise TypeError(f"a frame must be a numpy array or torch tensor of uint8, or a PIL image, got {kind}")
    if isinstance(frame, Tensor) and (layout := unusual_layout(frame)):
        raise TypeError(f"a frame must be a tensor with all of its values in memory, got a {layout} tensor")
    if str(frame.dtype) not in ("uint8", "torch.uint8"):
        raise TypeError(f"a frame must be uint8, got {described(frame, shape_first=False)}{_conversion(frame)}")
    array = frame.detach().cpu().numpy() if isinstance(frame, Tensor) else frame
    shape = array.shape
    if 0 in shape or not (array.ndim == 2 or (array.ndim == 3 and {shape[0], shape[2]} & {1, 3})):
        alpha = "[..., :3]" if array.ndim == 3 and shape[2] == 4 else "[:3]" if array.ndim == 3 and shape[0] == 4 else ""
        drop = f"; drop alpha: frame{alpha}" if alpha else ""
        given = f"{described(frame, shape_first=False)}{drop}"
        raise ValueError(f"a frame must be (H, W, C) or (C, H, W) with 1 or 3 channels, or (H, W), got {given}")
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


def _upright(image: Image.Image, bgr: bool) -> Image.Image:
    if bgr:
        raise ValueError(f"a PIL image of mode {image.mode} names the order of its colours: leave bgr out")
    if 0 in image.size:
        raise ValueError(f"a PIL image must have pixels, got size {image.size}")
    if image.mode in ("I", "F"):
        raise ValueError(f"a PIL image of mode {image.mode} has 32-bit pixels of unknown range; give one with 8 or 16 bits")
    load(image)
    return ImageOps.exif_transpose(image)


def _conversion(frame: np.ndarray | Tensor) -> str:
    """How to make uint8 of pixels of another type: the end of an error, empty if their range is unknown."""
    if not has_range(frame) or 0 in frame.shape:
        return ""
    in_torch = isinstance(frame, Tensor)
    kind = frame.dtype.name if isinstance(frame, np.ndarray) else str(frame.dtype)
    values = frame.detach().double().cpu().numpy() if isinstance(frame, Tensor) else frame
    low, high, cast = float(values.min()), float(values.max()), ".to(torch.uint8)" if in_torch else ".astype(np.uint8)"
    if "bool" in kind:
        return f"; convert it: frame{cast} * 255"
    if not (low >= 0 and high < np.inf):
        return ""
    if "float" in kind and high <= 1:
        direct = "; images in [0, 1] go to the predictor as they are" if in_torch else ""
        return f"{direct}; convert it: (frame * 255).round(){cast}"
    if "float" in kind and high <= 2:  # what interpolation makes of white 1; of white 255 it would be black
        return f"; convert it if its white is 1: (frame.clip(0, 1) * 255).round(){cast}"
    if high <= 255:
        return f"; convert it: frame{'.round()' if 'float' in kind else ''}{cast}"
    if "uint16" in kind:
        return f"; convert it if its white is 65535: (frame{'.float()' if in_torch else ''} / 257).round(){cast}"
    return f"; scale its white to 255 and convert it: frame.round(){cast}"
