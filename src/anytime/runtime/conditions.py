"""Runs a model independently of the caller's train mode, autocast and denormal settings."""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from operator import attrgetter

import torch
from torch import nn

from anytime.runtime.forks import leave_lost_pool, renew_after_fork

_is_training = attrgetter("training")


class Conditions:
    """`with conditions():` computes in inference and eval mode, in the precision of the weights, with denormals as zero.

    On exit, the train mode of every module and the caller's autocast and denormal settings are restored. Denormal numbers
    (below 1.2e-38 in float32) would make a step up to 20 times slower. Any number of threads may be inside; they share one
    object per model (`conditions_of`), so no thread restores a mode while another still computes.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model, self._modules = model, list(model.modules())
        self._inside = 0
        self._training: list[nn.Module] = []  # the last thread to leave restores their train mode
        self._lock = threading.Lock()
        self._tensor = next(model.parameters(), next(model.buffers(), torch.empty(0)))  # tells the device
        renew_after_fork(self)

    @contextmanager
    def __call__(self) -> Iterator[None]:
        leave_lost_pool()
        self._enter()
        flushed = sys.float_info.min * 0.5 == 0.0
        torch.set_flush_denormal(True)
        try:
            with torch.inference_mode(), self._own_precision():
                yield
        finally:
            torch.set_flush_denormal(flushed)
            self._leave()

    def _own_precision(self) -> torch.autocast | nullcontext[None]:
        device = self._tensor.device.type
        return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()

    def _enter(self) -> None:
        with self._lock:
            self._inside += 1
            if any(map(_is_training, self._modules)):
                self._evaluate()

    @contextmanager
    def again(self) -> Iterator[None]:
        """For each step within `with conditions():` only puts a model into eval mode that was put into train mode since."""
        if self._model.training:
            with self._lock:
                self._evaluate()
        yield

    def _evaluate(self) -> None:
        training = [module for module in self._model.modules() if module.training]
        self._training += training
        for module in training:
            module.training = False

    def _leave(self) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside and self._training:
                for module in self._training:
                    module.training = True
                self._training = []

    def renew(self) -> None:
        """Resets the count in a forked process, which does not have the threads that were inside."""
        self._lock, self._inside = threading.Lock(), 1
        self._leave()


_by_model: weakref.WeakValueDictionary[int, Conditions] = weakref.WeakValueDictionary()


def conditions_of(model: nn.Module) -> Conditions:
    """The conditions of a model: one object shared by everything that computes with it."""
    return _by_model.setdefault(id(model), Conditions(model))
