"""Objects that a forked process has to renew: in the child only the thread that forked is left."""

from __future__ import annotations

import os
import weakref
from typing import Any, Protocol

import torch


class Renewable(Protocol):
    """Something with locks or threads of its own."""

    def renew(self) -> None:
        """Replaces the locks and gives up the threads, which do not exist in this process."""


_known: weakref.WeakSet[Renewable] = weakref.WeakSet()
_kept: list[Any] = []
_forked = False


def renew_after_fork(thing: Renewable) -> None:
    """Calls `thing.renew()` in every process that is forked from here."""
    _known.add(thing)


def keep(*things: Any) -> None:
    """In a forked process: keeps what its parent had, whose end would wait for the parent's threads for ever."""
    _kept.extend(things)


def leave_lost_pool() -> None:
    """In a forked process, once: computes with one thread, since the forking thread would wait for its lost pool for ever."""
    global _forked
    if _forked:
        _forked = False
        torch.set_num_threads(1)


def _renew() -> None:
    global _forked
    _forked = True
    for thing in list(_known):
        thing.renew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew)
