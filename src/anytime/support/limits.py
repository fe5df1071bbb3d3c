"""A limit on what building a network may allocate, because its arguments may come from an untrusted file."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_FACTORIES = {
    *(torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn, torch.randint, torch.randperm),
    *(torch.arange, torch.linspace, torch.eye, torch.empty_strided),
}


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
        if func in _FACTORIES:
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
