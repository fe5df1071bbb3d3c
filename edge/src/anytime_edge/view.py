"""A camera's frame as a network takes it: what PIL's bilinear resize and crop make of it, in numpy."""

from __future__ import annotations

import math

import numpy as np

# the bits of PIL's fixed-point weights; the ratio to which longer images are cropped before they are resized by a margin
_BITS, _LONGEST = 22, 8


def channels_last(frame: np.ndarray, channels: int, bgr: bool) -> np.ndarray:
    """A uint8 frame `(H, W, C)`, `(C, H, W)` or `(H, W)` as `[H, W, channels]`, RGB or grey."""
    first, last = (frame.ndim == 3 and size in (1, 3) for size in (frame.shape[0], frame.shape[-1]))
    if 0 in frame.shape or not (frame.ndim == 2 or first != last):
        raise ValueError(f"a frame must be (H, W, C) or (C, H, W) with 1 or 3 channels, or (H, W), got {frame.shape}")
    frame = frame[:, :, None] if frame.ndim == 2 else frame.transpose(1, 2, 0) if first else frame
    frame = frame[:, :, ::-1] if bgr and frame.shape[2] == 3 else frame
    if channels == 1 and frame.shape[2] == 3:
        return (frame @ np.array([[19595], [38470], [7471]], np.uint32) + 0x8000 >> 16).astype(np.uint8)
    return np.repeat(frame, 3, 2) if channels == 3 and frame.shape[2] == 1 else frame


def middle(frame: np.ndarray, size: tuple[int, int], margin: float, stretched: bool) -> np.ndarray:
    """The view `[height, width, C]` of a frame `[H, W, C]`, as `anytime` takes it for tests (see its `model.prepare`)."""
    (height, width), (h, w) = frame.shape[:2], size
    if stretched:
        return resized(frame, (0, height), (0, width), size)
    if margin == 1:
        own, ratio = width / height, w / h
        kept_w, kept_h = (ratio * height if own > ratio else width), (width / ratio if own < ratio else height)
        left, top = (width - kept_w) * 0.5, (height - kept_h) * 0.5
        return resized(frame, (top, top + kept_h), (left, left + kept_w), size)
    limit = _LONGEST * min(height, width)
    top, left = max(height - limit, 0) // 2, max(width - limit, 0) // 2
    frame = frame[top : height - top, left : width - left]
    (height, width), shorter = frame.shape[:2], round(max(size) * margin)
    whole = (int(shorter * height / width), shorter) if width <= height else (shorter, int(shorter * width / height))
    frame = resized(frame, (0, height), (0, width), whole)
    black = [((kept - length) // 2, kept - length - (kept - length) // 2) for length, kept in zip(whole, size, strict=True)]
    frame = np.pad(frame, [(max(before, 0), max(after, 0)) for before, after in black] + [(0, 0)])
    top, left = (max(round((length - kept) / 2), 0) for length, kept in zip(whole, size, strict=True))
    return frame[top : top + h, left : left + w]


def resized(frame: np.ndarray, rows: tuple[float, float], columns: tuple[float, float], size: tuple[int, int]) -> np.ndarray:
    """The part of a frame between rows and columns, resized to `size` by the bilinear filter of PIL, from version 13 on.

    Across first and then down, or the other way round where the height shrinks by more than twice what the width does.
    """
    less = [own - wanted for own, wanted in zip(frame.shape, size, strict=False)]
    passes = [(1, columns, size[1]), (0, rows, size[0])]
    for axis, part, length in passes[::-1] if less[0] > max(2 * less[1], 0) else passes:
        if length != frame.shape[axis] or part != (0, length):
            frame = _along(frame, axis, part, length)
    return frame


def _along(frame: np.ndarray, axis: int, part: tuple[float, float], length: int) -> np.ndarray:
    start, stop = map(np.float32, part)
    support = max(scale := float(stop - start) / length, 1.0)
    centres = float(start) + (np.arange(length) + 0.5) * scale
    first = np.maximum((centres - support + 0.5).astype(int), 0)
    last = np.minimum((centres + support + 0.5).astype(int), frame.shape[axis])
    taps = first[:, None] + np.arange(math.ceil(support) * 2 + 1)
    weights = np.maximum(1 - np.abs((taps - centres[:, None] + 0.5) / support), 0) * (taps < last[:, None])
    weights = (0.5 + weights / weights.sum(1, keepdims=True) * (1 << _BITS)).astype(np.int32)
    taps = np.minimum(taps, frame.shape[axis] - 1)
    lines = np.ascontiguousarray(np.moveaxis(frame, axis, 0))  # whole lines are taken, which is fast
    total = np.full((length, lines[0].size), 1 << _BITS - 1, np.int32)
    lines, product = lines.reshape(len(lines), -1), np.empty_like(total)
    for tap, weight in zip(taps.T, weights.T, strict=True):
        total += np.multiply(lines[tap], weight[:, None], out=product)
    made = (total >> _BITS).clip(0, 255).astype(np.uint8)
    return np.moveaxis(made.reshape(length, *(n for i, n in enumerate(frame.shape) if i != axis)), 0, axis)
