"""What an engine is: it starts, runs and, where it can, cancels the steps of a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

from anytime.model import AnytimeModel, State
from anytime.runtime.conditions import Conditions


class Cancelled(RuntimeError):
    """A step was cancelled; its state is as it was, and the engine can run it again."""


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

    def step(self, step: int, state: State, size: int) -> tuple[Any, State]:
        """Step 1..T on a state of `size` samples: its answer `[B, K]`, or None if lazy, and the state after it.

        Raises:
            Cancelled: Another thread has called `cancel` with this very state.
        """

    def read(self, step: int, state: State, size: int) -> Tensor:
        """With lazy exits: the logits after step 1..T, from a state of `size` samples."""

    def cancel(self, state: State) -> bool:
        """Ends the step that another thread runs on `state`; returns whether it will end early."""


class Graph(Protocol):
    """One step of an export, loaded by its engine."""

    def call(self) -> Any:
        """What identifies one call of `run`, so that another thread can end it by `cancel`."""

    def run(self, inputs: Sequence[Tensor], call: Any = None) -> list[Tensor]:
        """The outputs, from the inputs in their order in the manifest.

        Raises:
            Cancelled: Another thread has called `cancel` with this call.
        """

    def cancel(self, call: Any) -> None:
        """Ends a call within one operator."""
