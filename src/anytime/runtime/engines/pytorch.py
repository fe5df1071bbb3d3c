"""The engines of torch: steps run eagerly, or each is compiled once per batch size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import FunctionType
from typing import Any, cast

import torch
from torch import Tensor

from anytime.model import AnytimeModel, Deployed, SplitStep, State, select_samples
from anytime.runtime.conditions import conditions_of
from anytime.runtime.engines.base import StepMeasurement


def require_steps(model: Any) -> None:
    """Raises TypeError unless a model computes in steps, as an `AnytimeModel` does."""
    if not all(hasattr(model, name) for name in ("num_steps", "initial_state", "step")):
        raise TypeError(
            f"only an anytime model can be stopped at a deadline, and {type(model).__name__} is none: give a network exits, "
            "anytime.attach_exits(network, exits=4, input_size=(channels, height, width))"
        )


class EagerSteps:
    """The steps of a model as they are, at any batch size.

    Args:
        model: The model; it is not changed, nor is its train mode.
        lazy: Steps skip their heads and return None as their answer; `read` computes the answer of a state (see `SplitStep`).

    Attributes:
        model: What computes: the model in eval mode (see `Shell`).
        conditions: `with run.conditions():` around everything that computes with the model (see `Conditions`).
        cancels: Whether `cancel` ends a step before it is done: torch cannot.
    """

    cancels = False

    def __init__(self, model: AnytimeModel, lazy: bool = False) -> None:
        self.lazy, self.conditions = lazy, conditions_of(model)
        self.model = self.conditions.model
        self._halves = cast(SplitStep, self.model)

    def size(self, batch: int) -> int:
        """The smallest batch size that can run and is not below `batch`."""
        return batch

    def start(self, x: Tensor, size: int) -> State:
        """The state before step 1 of the images, padded to `size` samples by copies of the first; runs as part of step 1."""
        padding = size - len(x)
        return self.model.initial_state(torch.cat([x, x[:1].expand(padding, -1, -1, -1)]) if padding else x)

    def step(self, step: int, state: State, size: int, call: Any = None) -> tuple[Any, State]:
        """Step 1..T on a state of `size` samples."""
        return (None, self._halves.advance(state)) if self.lazy else self.model.step(state)

    def read(self, step: int, state: State, size: int) -> Tensor:
        """With lazy exits: the logits after step 1..T, from a state of `size` samples."""
        return self._halves.read(state)

    def call(self) -> Any:
        """What identifies the steps of one run for `cancel`: nothing, in torch."""
        return None

    def cancel(self, call: Any) -> None:
        """Does nothing: torch cannot end a step early."""

    def measure(self, x: Tensor, repeats: int) -> list[StepMeasurement]:
        """The operators of each step, measured in a run of their own; none where steps cannot be cancelled."""
        return []


class CompiledSteps(EagerSteps):
    """Each step compiled and warmed once for each of a few batch sizes; smaller batches are padded to the next size.

    No request ever waits for the compiler: it is done after the warm-up, which runs each step on the state after the previous
    step and on a compacted state, so all that the compiler guards on has occurred: shapes, strides, the number of the step,
    inference mode. Where something else that it guards on has changed since (the number of threads, deterministic algorithms,
    `requires_grad`, a module), steps run as they are, until it is as it was.

    Args:
        model: On its device and in its precision.
        input_size: (channels, height, width).
        batch_sizes: The batch sizes to compile for.
        lazy: As for `EagerSteps`; both halves of each step are compiled.

    Raises:
        ValueError: The model is an export.
    """

    def __init__(self, model: AnytimeModel, input_size: Sequence[int], batch_sizes: Sequence[int], lazy: bool = False) -> None:
        if isinstance(model, Deployed):
            raise ValueError("an export is compiled by its engine already: leave compile out")
        super().__init__(model, lazy)
        self._sizes = sorted(set(batch_sizes))
        model, halves = self.model, self._halves
        whole: Callable[[State], Any] = (lambda state: (None, halves.advance(state))) if lazy else model.step

        def compiled(what: str, function: Callable[[State], Any], size: int) -> list[Callable[[State], Any]]:
            names = [f"{what}_{step}_of_{size}" for step in range(1, model.num_steps + 1)]
            return compile_copies(function, names, dynamic=False)

        self._steps = {size: compiled("step", whole, size) for size in self._sizes}
        self._reads = {size: compiled("read", halves.read, size) for size in self._sizes} if lazy else {}
        reference = next(model.parameters())
        with self.conditions():
            for size in self._sizes:
                everyone = torch.arange(size, device=reference.device)
                state = model.initial_state(torch.rand(size, *input_size).to(reference))
                for index, step in enumerate(self._steps[size]):
                    step(select_samples(state, everyone))
                    for _ in range(2):
                        _, after = step(state)
                        if lazy:
                            self._reads[size][index](after)
                    state = after
        self._steps, self._reads = ({size: only_run(made[size]) for size in made} for made in (self._steps, self._reads))

    def size(self, batch: int) -> int:
        return next(size for size in self._sizes if size >= batch)

    def step(self, step: int, state: State, size: int, call: Any = None) -> tuple[Any, State]:
        return self._steps[size][step - 1](state)

    def read(self, step: int, state: State, size: int) -> Tensor:
        return self._reads[size][step - 1](state)


def compile_copies(function: Callable[[State], Any], names: Sequence[str], **settings: Any) -> list[Callable[[State], Any]]:
    """A compiled copy of `function(state)` for each name, such as one per step; each sees only its own states.

    `torch.compile` keeps its graphs by code object, tries the guards of all of them in turn and gives up after some eight, so
    every copy has its own code object.

    Args:
        function: What to compile.
        names: Names of the copies, as they appear in the compiler's messages.
        **settings: Arguments of `torch.compile`.
    """

    def call(state: State) -> Any:
        return function(state)

    copies = [FunctionType(call.__code__.replace(co_name=n), call.__globals__, n, None, call.__closure__) for n in names]
    return [torch.compile(copy, **settings) for copy in copies]


def only_run(compiled: Sequence[Callable[[State], Any]]) -> list[Callable[[State], Any]]:
    """The compiled functions, which never compile again: as written where the guards of what is compiled do not hold."""
    import torch._dynamo  # late: importing the compiler takes a second

    return [torch._dynamo.run(function) for function in compiled]
