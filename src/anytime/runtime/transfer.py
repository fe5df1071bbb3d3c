"""How an answer gets from the device to the host, and how one waits for it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

_POLL = 20e-6  # seconds between two looks at an event


class Arrival(Protocol):
    """An answer on its way; `value` may be read once `wait` has returned True."""

    value: Tensor

    def wait(self, clock: Callable[[], float], until: float | None) -> bool:
        """Waits until it is there, or until the clock says so; whether it is there."""


class Arrived:
    """An answer that is on the host already."""

    def __init__(self, value: Tensor) -> None:
        self.value = value

    def wait(self, clock: Callable[[], float], until: float | None) -> bool:
        return True


class Pinned:
    """An answer on its way to pinned memory; `event` comes after it in the device's queue."""

    def __init__(self, value: Tensor, event: torch.cuda.Event) -> None:
        self.value, self._event = value, event

    def wait(self, clock: Callable[[], float], until: float | None) -> bool:
        if until is None:
            self._event.synchronize()
            return True
        while not self._event.query():
            if clock() >= until:
                return False
            time.sleep(_POLL)
        return True


def mark(device: torch.device) -> Arrival:
    """Arrives when all that was started on the device so far is done."""
    if device.type != "cuda":
        return Arrived(torch.empty(0))
    with torch.cuda.device(device):
        event = torch.cuda.Event()
        event.record()
    return Pinned(torch.empty(0), event)


def send(value: Tensor) -> Arrival:
    """Starts the way of a tensor to the host: without waiting on CUDA, at once elsewhere."""
    if not value.is_cuda:
        return Arrived(value.cpu())
    buffer = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
    with torch.cuda.device(value.device):
        buffer.copy_(value, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
    return Pinned(buffer, event)
