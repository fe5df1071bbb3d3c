"""Convolutions on small maps as matrix products, for training on CPUs: torch's own take several times as long there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LARGEST_MAP = 7  # height and width of the output map up to which products for the weight gradient are faster
LEAST_WORK = 2**22  # MACs of one tap's product, over the batch, that are worth its fixed cost;
LEAST_CHANNELS = 2**16  # so are so many pairs of input and output channels, at any batch
LEAST_BATCH = 16  # images for which it is worth arranging the kernel for a map of 2x2


class Window(NamedTuple):
    """How a convolution moves over its input, in pixels down and to the right."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]

    def outputs(self, x: Tensor) -> list[int]:
        """Height and width of the output map."""
        sides = zip(x.shape[2:], *self, strict=True)
        return [(size + 2 * pad - step * (taps - 1) - 1) // stride + 1 for size, taps, stride, pad, step in sides]


SAME = Window((3, 3), (1, 1), (1, 1), (1, 1))


def overlap(size: int, out: int, offset: int, stride: int) -> range:
    """The outputs p in 0..out-1 whose input at `stride * p + offset` lies in 0..size-1."""
    first = max(0, -(offset // stride))
    return range(first, max(first, min(out, (size - 1 - offset) // stride + 1)))


def weight_gradient(x: Tensor, gradient: Tensor, window: Window) -> Tensor:
    """dL/dW[o, c, i, j] = sum over n, p, q of gradient[n, o, p, q] x[n, c, s p + d i - pad, s q + d j - pad].

    For each tap (i, j) that is one matrix product over those positions whose input lies in the map; the others are zero. The
    sums of a product are kept in float32 by the CPU's bfloat16 instructions.

    Args:
        x: Input, [N, C, H, W]; fastest in channels-last format.
        gradient: Gradient of the output, [N, O, H', W'].
        window: The window of an ungrouped convolution.

    Returns:
        [O, C, kh, kw], of the type of x.
    """
    kernel, (down, right), (top, left), (rows, columns) = window
    images, gradients = x.permute(0, 2, 3, 1), gradient.permute(0, 2, 3, 1)
    (_, height, width, channels), (_, out_height, out_width, outputs) = images.shape, gradients.shape
    taps = x.new_zeros(outputs, *kernel, channels)
    for i in range(kernel[0]):
        p = overlap(height, out_height, y := i * rows - top, down)
        for j in range(kernel[1]):
            q = overlap(width, out_width, z := j * columns - left, right)
            if not p or not q:
                continue
            seen = images[
                :, p.start * down + y : p[-1] * down + y + 1 : down, q.start * right + z : q[-1] * right + z + 1 : right
            ]
            given = gradients[:, p.start : p.stop, q.start : q.stop]
            torch.mm(given.reshape(-1, outputs).T, seen.reshape(-1, channels), out=taps[:, i, j])
    return taps.permute(0, 3, 1, 2)


def arranged(weight: Tensor, size: int) -> Tensor:
    """The 3x3 convolution of a map of 1x1 or 2x2 pixels as one matrix, [size size O, size size C].

    Each output pixel sees the whole map: row (p, q, o), column (i, j, c) is weight[o, c, i - p + 1, j - q + 1].
    """
    pixels = weight.permute(0, 2, 3, 1)
    places = [(p, q) for p in range(size) for q in range(size)]
    parts = [pixels[:, 1 - p : 1 - p + size, 1 - q : 1 - q + size].flatten(1) for p, q in places]
    return torch.cat(parts)


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


@torch.library.custom_op("anytime::convolution", mutates_args=())
def _convolution(x: Tensor, weight: Tensor, stride: list[int], padding: list[int], dilation: list[int]) -> Tensor:
    """conv2d without bias, in channels-last format; `torch.compile` takes it as it is."""
    size = x.shape[2]
    if not sees_all(x, _window_of(weight, stride, padding, dilation)):
        return _channels_last(F.conv2d(x, weight, None, stride, padding, dilation))
    rows = x.permute(0, 2, 3, 1).flatten(1) @ arranged(weight, size).T
    return rows.view(len(x), size, size, -1).permute(0, 3, 1, 2)


@_convolution.register_fake
def _(x: Tensor, weight: Tensor, stride: list[int], padding: list[int], dilation: list[int]) -> Tensor:
    size = _window_of(weight, stride, padding, dilation).outputs(x)
    return x.new_empty(len(x), *size, len(weight)).permute(0, 3, 1, 2)


@torch.library.custom_op("anytime::convolution_backward", mutates_args=())
def _convolution_backward(
    gradient: Tensor, x: Tensor, weight: Tensor, stride: list[int], padding: list[int], dilation: list[int], needed: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of `_convolution` with respect to x, empty unless it is needed, and weight."""
    window, size, image = _window_of(weight, stride, padding, dilation), x.shape[2], x.new_empty(0)
    if needed and sees_all(x, window):
        rows = gradient.permute(0, 2, 3, 1).flatten(1) @ arranged(weight, size)
        image = rows.view(len(x), size, size, -1).permute(0, 3, 1, 2)
    elif needed:
        how = (stride, padding, dilation, False, [0, 0], 1, [True, False, False])
        image = _channels_last(torch.ops.aten.convolution_backward(gradient, x, weight, None, *how)[0])
    return image, weight_gradient(x, gradient, window)


@_convolution_backward.register_fake
def _(
    gradient: Tensor, x: Tensor, weight: Tensor, stride: list[int], padding: list[int], dilation: list[int], needed: bool
) -> tuple[Tensor, Tensor]:
    like = [tensor.new_empty([tensor.shape[i] for i in (0, 2, 3, 1)]).permute(0, 3, 1, 2) for tensor in (x, weight)]
    return like[0] if needed else x.new_empty(0), like[1]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, *ctx.how = inputs
    ctx.save_for_backward(x, weight)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, None, None, None]:
    needed, (x, weight) = ctx.needs_input_grad[0], ctx.saved_tensors
    if torch.is_grad_enabled():  # gradients of gradients: only torch's own are differentiable
        how = (*ctx.how, False, [0, 0], 1, [needed, True, False])
        image, kernel, _ = torch.ops.aten.convolution_backward(gradient, x, weight, None, *how)
    else:
        image, kernel = _convolution_backward(gradient, x, weight, *ctx.how, needed)
    return image if needed else None, kernel, None, None, None


_convolution.register_autograd(_backward, setup_context=_keep)


def _window_of(weight: Tensor, stride: list[int], padding: list[int], dilation: list[int]) -> Window:
    kernel = (weight.shape[2], weight.shape[3])
    return Window(kernel, (stride[0], stride[1]), (padding[0], padding[1]), (dilation[0], dilation[1]))


def sees_all(x: Tensor, window: Window) -> bool:
    """Whether this is a 3x3 convolution of a map of 1x1 or 2x2, and the batch is large enough for `arranged` to pay."""
    return window == SAME and tuple(x.shape[2:]) in ((1, 1), (2, 2)) and len(x) >= LEAST_BATCH


def pays(x: Tensor, weight: Tensor, window: Window) -> bool:
    """Whether `weight_gradient` is faster than torch's, in bfloat16: on maps up to 7x7 with enough work for each tap.

    The rule depends only on types and shapes, so equal trainings stay bit-identical. On a core with AVX-512 bf16 torch is
    as fast from 8x8 on, and in float32 it is faster everywhere; `benchmarks/training.py` measures whole steps.
    """
    height, width = window.outputs(x)
    channels = len(weight) * weight.shape[1]
    return max(height, width) <= LARGEST_MAP and (
        channels >= LEAST_CHANNELS or len(x) * height * width * channels >= LEAST_WORK
    )


def _forward(window: Window, plain: Callable[..., Tensor], x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """In place of `plain`, the method `_conv_forward` of a convolution."""
    mixed = torch.is_autocast_enabled("cpu")
    dtype = torch.get_autocast_dtype("cpu") if mixed else x.dtype
    if (
        not (torch.is_grad_enabled() and weight.requires_grad)
        or (x.device.type, x.dim(), dtype) != ("cpu", 4, torch.bfloat16)
        or not pays(x, weight, window)
    ):
        return plain(x, weight, bias)
    with torch.autocast("cpu", enabled=False):
        y: Tensor = _convolution(x.to(dtype), weight.to(dtype), *map(list, window[1:]))
        return y if bias is None else y + bias.to(dtype).view(1, -1, 1, 1)


def _window(module: nn.Module) -> Window | None:
    """The window of a plain ungrouped convolution that is padded with zeros; None for all other modules."""
    if type(module) is not nn.Conv2d or module.groups != 1 or module.padding_mode != "zeros":
        return None
    if isinstance(module.padding, str):
        return None
    return Window(*(pair for pair in (module.kernel_size, module.stride, module.padding, module.dilation)))  # type: ignore[arg-type]


@contextmanager
def small_maps(model: nn.Module) -> Iterator[None]:
    """Within it the convolutions of `model` are matrix products on a CPU in bfloat16 where this pays, see `pays`.

    Answers and gradients equal torch's within bfloat16's rounding.
    """
    changed: list[Any] = []
    for module in model.modules():
        if (window := _window(module)) is not None:
            conv: Any = module
            conv._conv_forward = partial(_forward, window, conv._conv_forward)
            changed.append(conv)
    try:
        yield
    finally:
        for conv in changed:
            del conv._conv_forward
