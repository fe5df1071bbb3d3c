"""How an answer is transferred from the device to the host, and how to wait for it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_POLL = 20e-6  # seconds between two queries of an event


class Arrival:
    """A tensor on its way to the host; read `value` only after `wait` has returned True.

    Args:
        value: The tensor on the host, pinned if it is still on its way; or whatever was on the host already.
        event: Follows the tensor in the device's queue; None if the tensor is already there.
    """

    def __init__(self, value: Any, event: torch.cuda.Event | None = None) -> None:
        self.value, self.event = value, event

    def wait(self, clock: Callable[[], float], until: float | None) -> bool:
        """Waits for the tensor, at most until the clock reaches `until`; returns whether it is there."""
        if self.event is None:
            return True
        if until is None:
            self.event.synchronize()
            return True
        while not self.event.query():
            if clock() >= until:
                return False
            time.sleep(_POLL)
        return True


def mark(device: torch.device) -> Arrival:
    """Arrives, with an empty tensor, when everything queued on the device so far is done."""
    return Arrival(torch.empty(0), _event(device) if device.type == "cuda" else None)


def send(value: Any) -> Arrival:
    """Starts the transfer of a tensor to the host: asynchronous on CUDA, immediate elsewhere; nothing else is changed."""
    if not isinstance(value, Tensor):
        return Arrival(value)
    if not value.is_cuda:
        return Arrival(value.cpu())
    buffer = torch.empty(value.shape, dtype=value.dtype, pin_memory=True)
    with torch.cuda.device(value.device):
        buffer.copy_(value, non_blocking=True)
    return Arrival(buffer, _event(value.device))


def _event(device: torch.device) -> torch.cuda.Event:
    with torch.cuda.device(device):
        event = torch.cuda.Event()
        event.record()
    return event
