"""What an engine is: it starts, runs and, where it can, cancels the steps of a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, Self

from torch import Tensor

from anytime.model import AnytimeModel, State
from anytime.runtime.conditions import Conditions


class Cancelled(RuntimeError):
    """A step was cancelled; its state is as it was, and the engine can run it again, in another call."""


class StepMeasurement(NamedTuple):
    """What an engine knows about the operators of one step.

    Attributes:
        seconds: Those of the operator whose median is the longest, in each run.
        memory: The most bytes in use at a time, weights included; 0 if unknown.
    """

    seconds: list[float]
    memory: int


class Engine(Protocol):
    """How the steps of a model run: what predictor and profile compute with, from any number of threads.

    Attributes:
        model: What computes: the model in eval mode.
        conditions: `with engine.conditions():` around everything that computes with the model (see `Conditions`).
        lazy: Steps skip their heads and return None as their answer; `read` computes the answer of a state (see `SplitStep`).
        cancels: Whether `cancel` ends a step before it is done.
    """

    model: AnytimeModel
    conditions: Conditions
    lazy: bool
    cancels: bool

    def size(self, batch: int) -> int:
        """The smallest batch size that can run and is not below `batch`."""

    def start(self, x: Tensor, size: int) -> State:
        """The state before step 1 of the images, padded to `size` samples by copies of the first; runs as part of step 1."""

    def step(self, step: int, state: State, size: int, call: Any = None) -> tuple[Any, State]:
        """Step 1..T on a state of `size` samples: its answer `[B, K]`, or None if lazy, and the state after it.

        Raises:
            Cancelled: `cancel` was called with this call, in any thread, before or meanwhile.
        """

    def read(self, step: int, state: State, size: int) -> Tensor:
        """With lazy exits: the logits after step 1..T, from a state of `size` samples."""

    def measure(self, x: Tensor, repeats: int) -> list[StepMeasurement]:
        """The operators of each step on images `[B, C, H, W]`, in a run of their own; none where steps cannot be cancelled."""

    def call(self) -> Any:
        """What identifies the steps of one run, so that `cancel` can end them; None if the engine cannot."""

    def cancel(self, call: Any) -> None:
        """Ends the step that runs in a call, within one operator, and every later one at its start; nothing if it is None."""


class Graph(Protocol):
    """One step of an export, loaded by its engine.

    Attributes:
        cancels: Whether `cancel` ends a run before it is done.
    """

    cancels: bool

    def call(self) -> Any:
        """What identifies one call of `run`, so that another thread can end it by `cancel`."""

    def run(self, inputs: Sequence[Tensor], call: Any = None) -> list[Tensor]:
        """The outputs, from the inputs in their order in the manifest.

        Raises:
            Cancelled: `cancel` was called with this call, in any thread, before or meanwhile.
        """

    def cancel(self, call: Any) -> None:
        """Ends a call within one operator, and every later `run` with it."""

    def measure(self, inputs: Sequence[Tensor], repeats: int) -> StepMeasurement:
        """How long the operators take in `repeats` runs, and how much memory they need."""


class WholeGraph:
    """What engines share whose runs end only by themselves, and do not say how long their operators take."""

    cancels = False

    def call(self) -> None:
        """Nothing: a run cannot be cancelled."""

    def cancel(self, call: Any) -> None:
        """Does nothing."""

    def measure(self, inputs: Sequence[Tensor], repeats: int) -> StepMeasurement:
        """Nothing is known about the operators."""
        return StepMeasurement([0.0] * repeats, 0)

    def __deepcopy__(self, memo: Any) -> Self:
        return self
