"""How the steps of a model are run: as they are, or each compiled once for given batch sizes."""

from __future__ import annotations

from collections.abc import Sequence
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from anytime.model import AnytimeModel, State, eval_mode, select_samples


class Steps:
    """The steps of a model as they are, at any batch size."""

    compiled = False

    def __init__(self, model: AnytimeModel) -> None:
        self.model = model

    def size(self, batch: int) -> int:
        """The batch size at which `batch` samples are run: the smallest possible one that is not below."""
        return batch

    def __call__(self, step: int, state: State, size: int) -> tuple[Tensor, State]:
        """Step 1..T on a state of `size` samples."""
        return self.model.step(state)


class CompiledSteps(Steps):
    """Each step compiled once for each of a few batch sizes, and warmed; others are filled up to the next of them.

    No request ever waits for the compiler: what it guards on (shapes, strides, the number of the step, inference mode) is
    that of the warm-up, which runs each step on the state of the step before and on one that samples were taken out of.

    Args:
        model: On its device, in its precision; put into eval mode for the warm-up.
        input_size: (channels, height, width).
        batch_sizes: What to compile for.
    """

    compiled = True

    def __init__(self, model: AnytimeModel, input_size: Sequence[int], batch_sizes: Sequence[int]) -> None:
        super().__init__(model)
        self._sizes = sorted(set(batch_sizes))
        self._steps = {size: [_alone(model, step, size) for step in range(1, model.num_steps + 1)] for size in self._sizes}
        reference = next(model.parameters())
        with torch.inference_mode(), eval_mode(model):
            for size, steps in self._steps.items():
                everyone = torch.arange(size, device=reference.device)
                state = model.initial_state(torch.rand(size, *input_size).to(reference))
                for step in steps:
                    step(select_samples(state, everyone))
                    for _ in range(2):
                        _, after = step(state)
                    state = after

    def size(self, batch: int) -> int:
        return next(size for size in self._sizes if size >= batch)

    def __call__(self, step: int, state: State, size: int) -> tuple[Tensor, State]:
        return self._steps[size][step - 1](state)


def _alone(model: AnytimeModel, step: int, size: int) -> Any:
    """`model.step`, compiled for one step and batch size, with a compiler cache of its own.

    The compiler keeps its results by code object, and gives up after some eight: so every step gets its own.
    """

    def run(state: State) -> tuple[Tensor, State]:
        return model.step(state)

    name = f"step_{step}_of_{size}"
    own = FunctionType(run.__code__.replace(co_name=name), run.__globals__, name, None, run.__closure__)
    return torch.compile(own, dynamic=False)
