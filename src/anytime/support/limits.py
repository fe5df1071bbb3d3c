"""Limits on what building and running a network may take, because its arguments may come from an untrusted file."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_FACTORIES = {
    *(torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn, torch.randint, torch.randperm),
    *(torch.arange, torch.linspace, torch.eye, torch.empty_strided),
}

_IMAGINED: ContextVar[bool] = ContextVar("tensors have no memory", default=False)

UNFIT = (ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RuntimeError)
"""What a class raises that is given arguments of unknown origin."""

MOST_STEPS = 1_000  # answers of one network
MOST_MACS = 10**12  # of one image; ViT-B has 6e10 at 384 x 384, a Wide-ResNet-101 9.5e11 at 1024 x 2048
MOST_VALUES = 3 * 2048 * 4096  # of one image; street scenes have 3 x 1024 x 2048
_SMALL = 10_000  # numbers up to here need no reason


class BeyondLimit(ValueError):
    """An untrusted file asks for more work than a network like its own needs."""

    def __init__(self, what: str, most: int) -> None:
        self.what, self.most = what, most
        super().__init__(f"{what}, more than {most:,}; if you trust this file, use trust=True, or --trust on the command line")


def check_numbers(arguments: Mapping[str, Any], tensors: Iterable[torch.Tensor]) -> None:
    """Raises BeyondLimit if an argument holds a number that the weights of its network do not explain.

    Numbers up to 10,000 (steps, layers, pixels) are always allowed. Larger ones must be numbers of classes or channels, so a
    tensor has that many rows or columns.

    Args:
        arguments: Arguments of a network, which may hold those of others.
        tensors: Its weights.
    """
    most = max([_SMALL, *(size for tensor in tensors if tensor.numel() for size in tensor.shape)])
    pending: list[tuple[str, Any]] = [*arguments.items()]
    while pending:
        name, value = pending.pop()
        if name == "input_size" and isinstance(value, list | tuple):
            check_image(value)
        if isinstance(value, Mapping):
            pending += [(str(key), item) for key, item in value.items()]
        elif isinstance(value, list | tuple):
            pending += [(name, item) for item in value]
        elif isinstance(value, int | float) and abs(value) > most:
            raise BeyondLimit(f"{name} is {value:.4g}" if abs(value) < 1e300 else f"{name} is huge", most)


def check_image(size: Sequence[Any], resize_ratio: float = 1.0) -> None:
    """Raises BeyondLimit if an image of `size` = (channels, height, width) has more than `MOST_VALUES` values.

    So has one that is resized to `resize_ratio` times that size before it is cropped, if that is more.
    """
    numbers = [number for number in size if isinstance(number, int)]
    values = math.prod(numbers)
    if resize_ratio > 1 and values <= MOST_VALUES:
        values = int(values * resize_ratio**2)
    if values > MOST_VALUES:
        margin = f" and the margin {resize_ratio:g}" if resize_ratio > 1 else ""
        raise BeyondLimit(f"input_size {numbers}{margin} asks for images of {values:,} values", MOST_VALUES)


def check_steps(steps: int) -> None:
    """Raises BeyondLimit if a network has more than `MOST_STEPS` steps."""
    if steps > MOST_STEPS:
        raise BeyondLimit(f"the network has {steps:,} steps", MOST_STEPS)


@contextmanager
def imagined() -> Iterator[None]:
    """Inside this block torch's factories make tensors that have a shape but no memory, which no `AllocationLimit` counts."""
    token = _IMAGINED.set(True)
    try:
        yield
    finally:
        _IMAGINED.reset(token)


class AllocationLimit(TorchFunctionMode):
    """Inside this block, torch's factories raise ValueError beyond a number of elements or of calls.

    The shape is asked on the meta device first, so nothing is allocated beyond the limit. Results of operations do not count.

    Args:
        elements: Elements of all tensors together.
        calls: Tensors that may be made.
        source: What asks for so much, for the message.
    """

    def __init__(self, elements: int, calls: int, source: str) -> None:
        super().__init__()
        self._elements: float = elements
        self._calls, self._source = calls, source
        self._limit = f"more than the {elements:,} values or {calls:,} tensors"

    def __torch_function__(self, func: Any, types: Iterable[type], args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _FACTORIES and not _IMAGINED.get():
            self._calls -= 1
            self._elements -= self._count(func, args, kwargs)
            if self._elements < 0 or self._calls < 0:
                raise ValueError(f"{self._source} asks for {self._limit} that fit its weights")
        return func(*args, **kwargs)

    @staticmethod
    def _count(func: Any, args: Any, kwargs: dict[str, Any]) -> float:
        plain = {key: value for key, value in kwargs.items() if key not in ("generator", "out", "pin_memory")}
        try:
            with torch._C.DisableTorchFunction():
                return func(*args, **{**plain, "device": "meta"}).numel()
        except RuntimeError:  # the size overflows, or the call itself is wrong and fails again
            return math.inf if any(isinstance(size, int) and size > 2**31 for size in _sizes(args)) else 0


def _sizes(args: Iterable[Any]) -> Iterable[Any]:
    for argument in args:
        if isinstance(argument, list | tuple):
            yield from argument
        else:
            yield argument
