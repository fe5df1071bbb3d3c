"""How the steps of a model are run: as they are, or each compiled once for given batch sizes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import FunctionType
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from anytime.model import AnytimeModel, State, eval_mode, select_samples


class LazyExits(Protocol):
    """A model that has the two halves of a step: `step(state)` is `read(after), after` for `after = advance(state)`."""

    def advance(self, state: State) -> State:
        """The state after one more step, without its answer."""

    def read(self, state: State) -> Tensor:
        """The logits `[B, K]` of a state after at least one step: one head."""


class Steps:
    """The steps of a model as they are, at any batch size.

    Args:
        model: Read only.
        lazy: Steps leave out their heads, their answers are None; `read` gives the answer of a state (see `LazyExits`).
    """

    compiled = False

    def __init__(self, model: AnytimeModel, lazy: bool = False) -> None:
        self.model, self.lazy = model, lazy
        self._halves = cast(LazyExits, model)

    def size(self, batch: int) -> int:
        """The batch size at which `batch` samples are run: the smallest possible one that is not below."""
        return batch

    def start(self, x: Tensor, size: int) -> State:
        """The state before step 1, as part of it, of a batch that is filled up to `size` samples by copies of the first."""
        filler = size - len(x)
        return self.model.initial_state(torch.cat([x, x[:1].expand(filler, -1, -1, -1)]) if filler else x)

    def __call__(self, step: int, state: State, size: int) -> tuple[Any, State]:
        """Step 1..T on a state of `size` samples."""
        return (None, self._halves.advance(state)) if self.lazy else self.model.step(state)

    def read(self, step: int, state: State, size: int) -> Tensor:
        """The logits after step 1..T of a state of `size` samples, where exits are lazy."""
        return self._halves.read(state)


class CompiledSteps(Steps):
    """Each step compiled once for each of a few batch sizes, and warmed; others are filled up to the next of them.

    No request ever waits for the compiler: what it guards on (shapes, strides, the number of the step, inference mode) is
    that of the warm-up, which runs each step on the state of the step before and on one that samples were taken out of.

    Args:
        model: On its device, in its precision; put into eval mode for the warm-up.
        input_size: (channels, height, width).
        batch_sizes: What to compile for.
        lazy: As of `Steps`; the two halves of each step are compiled.
    """

    compiled = True

    def __init__(self, model: AnytimeModel, input_size: Sequence[int], batch_sizes: Sequence[int], lazy: bool = False) -> None:
        super().__init__(model, lazy)
        self._sizes = sorted(set(batch_sizes))
        halves = self._halves
        whole: Callable[[State], Any] = (lambda state: (None, halves.advance(state))) if lazy else model.step
        self._steps = {size: self._compiled("step", whole, size) for size in self._sizes}
        self._reads = {size: self._compiled("read", halves.read, size) for size in self._sizes} if lazy else {}
        reference = next(model.parameters())
        with torch.inference_mode(), eval_mode(model):
            for size in self._sizes:
                everyone = torch.arange(size, device=reference.device)
                state = model.initial_state(torch.rand(size, *input_size).to(reference))
                for place, step in enumerate(self._steps[size]):
                    step(select_samples(state, everyone))
                    for _ in range(2):
                        _, after = step(state)
                        if lazy:
                            self._reads[size][place](after)
                    state = after

    def size(self, batch: int) -> int:
        return next(size for size in self._sizes if size >= batch)

    def __call__(self, step: int, state: State, size: int) -> tuple[Any, State]:
        return self._steps[size][step - 1](state)

    def read(self, step: int, state: State, size: int) -> Tensor:
        return self._reads[size][step - 1](state)

    def _compiled(self, what: str, function: Callable[[State], Any], size: int) -> list[Any]:
        """The function, compiled for each step at one batch size, with a compiler cache of its own.

        The compiler keeps its results by code object, and gives up after some eight: so every step gets its own.
        """

        def run(state: State) -> Any:
            return function(state)

        names = [f"{what}_{step}_of_{size}" for step in range(1, self.model.num_steps + 1)]
        own = [FunctionType(run.__code__.replace(co_name=n), run.__globals__, n, None, run.__closure__) for n in names]
        return [torch.compile(each, dynamic=False) for each in own]
