"""Runs a model independently of the caller's train mode, autocast and denormal settings."""

from __future__ import annotations

import sys
import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from anytime.runtime.forks import leave_lost_pool
from anytime.runtime.shell import Shell
from anytime.support.precision import own_precision

_MANY = 1e-3  # a denormal number costs as much as a thousand others


class Conditions:
    """`with conditions():` computes in inference mode, in the precision of the weights, with denormals as zero.

    What computes is `conditions.model`, a `Shell` of the model that is always in eval mode; the model itself stays in whatever
    mode the caller puts it into, at any time. On exit, the caller's autocast and denormal settings are restored. Denormal
    numbers (below 1.2e-38 in float32) would make a step up to 20 times slower. Any number of threads may be inside.

    Denormals are zero in the thread that enters and in the threads of torch that it starts, so in all that a session computes
    with. If the caller's thread started its threads of torch earlier, those keep their setting: there is no way to change it.
    A warning says if that matters, because many weights are denormal.

    `with conditions(update=False):` does not look for modules that were replaced since the last time.

    Attributes:
        model: The model in eval mode.
    """

    def __init__(self, model: nn.Module) -> None:
        _warn_of_denormals(model)
        self._shell = Shell(model)
        self.model = self._shell.model
        self._tensor = next(model.parameters(), next(model.buffers(), torch.empty(0)))  # tells the device

    @contextmanager
    def __call__(self, update: bool = True) -> Iterator[None]:
        leave_lost_pool()
        if update:
            self._shell.update()
        flushed = sys.float_info.min * 0.5 == 0.0
        torch.set_flush_denormal(True)
        try:
            with torch.inference_mode(), own_precision(self._tensor.device):
                yield
        finally:
            torch.set_flush_denormal(flushed)


def _warn_of_denormals(model: nn.Module) -> None:
    """Warns if torch has several threads and more than one weight in 1,000 is denormal."""
    kinds = (torch.float32, torch.float64, torch.bfloat16)
    weights = [p.detach() for p in model.parameters() if p.device.type == "cpu" and p.dtype in kinds and p.numel()]
    if torch.get_num_threads() == 1 or not weights:
        return
    count = sum(int(((weight != 0) & (weight.abs() < torch.finfo(weight.dtype).tiny)).sum()) for weight in weights)
    share = count / sum(weight.numel() for weight in weights)
    if share > _MANY:
        warnings.warn(
            f"{share:.1%} of the weights are denormal numbers, which make a step many times slower: set them to zero, call "
            "torch.set_flush_denormal(True) before anything else computes, or use one thread",
            stacklevel=2,
        )


_by_model: weakref.WeakValueDictionary[int, Conditions] = weakref.WeakValueDictionary()


def conditions_of(model: nn.Module) -> Conditions:
    """The conditions of a model: one object shared by everything that computes with it."""
    found = _by_model.get(id(model))
    return _by_model.setdefault(id(model), Conditions(model)) if found is None else found
