"""Runs a model independently of the caller's train mode, autocast and denormal settings."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import nn

from anytime.runtime.forks import leave_lost_pool
from anytime.runtime.shell import Shell


class Conditions:
    """`with conditions():` computes in inference mode, in the precision of the weights, with denormals as zero.

    What computes is `conditions.model`, a `Shell` of the model that is always in eval mode; the model itself stays in whatever
    mode the caller puts it into, at any time. On exit, the caller's autocast and denormal settings are restored. Denormal
    numbers (below 1.2e-38 in float32) would make a step up to 20 times slower. Any number of threads may be inside.

    Attributes:
        model: The model in eval mode.
    """

    def __init__(self, model: nn.Module) -> None:
        self._shell = Shell(model)
        self.model = self._shell.model
        self._tensor = next(model.parameters(), next(model.buffers(), torch.empty(0)))  # tells the device

    @contextmanager
    def __call__(self) -> Iterator[None]:
        leave_lost_pool()
        self._shell.update()
        flushed = sys.float_info.min * 0.5 == 0.0
        torch.set_flush_denormal(True)
        try:
            with torch.inference_mode(), self._own_precision():
                yield
        finally:
            torch.set_flush_denormal(flushed)

    def _own_precision(self) -> torch.autocast | nullcontext[None]:
        device = self._tensor.device.type
        return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


_by_model: weakref.WeakValueDictionary[int, Conditions] = weakref.WeakValueDictionary()


def conditions_of(model: nn.Module) -> Conditions:
    """The conditions of a model: one object shared by everything that computes with it."""
    found = _by_model.get(id(model))
    return _by_model.setdefault(id(model), Conditions(model)) if found is None else found
