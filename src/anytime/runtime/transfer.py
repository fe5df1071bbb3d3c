"""How an answer is transferred from the device to the host, and how to wait for it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

_POLL = 20e-6  # seconds between two queries of an event


class Arrival(Protocol):
    """A tensor on its way to the host; read `value` only after `wait` has returned True."""

    value: Tensor

    def wait(self, clock: Callable[[], float], until: float | None) -> bool:
        """Waits for the tensor, at most until the clock reaches `until`; returns whether it is there."""


class Arrived:
    """A tensor that is already on the host."""

    def __init__(self, value: Tensor) -> None:
        self.value = value

    def wait(self, clock: Callable[[], float], until: float | None) -> bool:
        return True


class Pinned:
    """A tensor on its way to pinned memory; `event` follows it in the device's queue."""

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
    """Arrives, with an empty tensor, when everything queued on the device so far is done."""
    return send(torch.empty(0, device=device))


def send(value: Tensor) -> Arrival:
    """Starts the transfer of a tensor to the host: asynchronous on CUDA, immediate elsewhere."""
    if not value.is_cuda:
        return Arrived(value.cpu())
    buffer = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
    with torch.cuda.device(value.device):
        buffer.copy_(value, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
    return Pinned(buffer, event)
