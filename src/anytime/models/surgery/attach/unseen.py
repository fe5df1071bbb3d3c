"""What a forward does that no function of torch shows: gradients of its own, and random numbers that are not torch's."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from torch.autograd.function import FunctionMeta
from torch.utils.checkpoint import CheckpointFunction

OWN_GRADIENT = "it calls {name}, a torch.autograd.Function, whose gradient a graph loses, so that only a submodule may call it"
REENTRANT = "it calls checkpoint(..., use_reentrant=True), which must be use_reentrant=False"
DRAWS = "it draws random numbers of Python or NumPy, which must be torch's"


@contextmanager
def own_gradients(note: Callable[[str], None]) -> Iterator[None]:
    """Inside this block `note` is called with what is wrong whenever a `torch.autograd.Function` runs."""
    kind: Any = FunctionMeta

    def read(function: type, name: str) -> Any:
        if name == "forward" and function.__name__ != "_NoopSaveInputs":  # a part of checkpoint, which changes no gradient
            note(REENTRANT if function is CheckpointFunction else OWN_GRADIENT.format(name=function.__name__))
        return type.__getattribute__(function, name)

    kind.__getattribute__ = read
    try:
        yield
    finally:
        del kind.__getattribute__


def other_chance() -> tuple[Any, ...]:
    """The state of the random numbers of Python and NumPy: whoever draws one changes it."""
    state: Any = np.random.get_state(legacy=False)
    numbers = state["state"]
    return random.getstate(), numbers["key"].tobytes(), numbers["pos"], state["has_gauss"], state["gauss"]


@contextmanager
def other_chance_kept() -> Iterator[None]:
    """Afterwards the random numbers of Python and NumPy continue as before."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
