"""A model around another one, whose answers it changes: additive answers, cascade heads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from anytime.model import AnytimeModel, State, create_model

AnyAround = TypeVar("AnyAround", bound="Around")


class AroundState(NamedTuple):
    """`inner` is the state of the model inside, `answer` the latest answer F_t `[B, K]`, None before the first step."""

    step: int
    inner: State
    answer: Tensor | None


class Around(AnytimeModel):
    """F_t = changed(f_t, F_{t-1}), f_t the answers of any model.

    A single answer t needs all f up to it, so its contract cost is that of the stream.

    Args:
        model: Computes f_t. Its normalisation moves to this model: its own buffers mean and std become the identity. Its
            number of steps must stay as it is.
    """

    def __init__(self, model: AnytimeModel) -> None:
        super().__init__(model.levels, model.in_channels)
        self.num_steps = model.num_steps
        self.own_normalization = model.own_normalization
        self.mean.copy_(model.mean)
        self.std.copy_(model.std)
        model.set_normalization([0.0] * model.in_channels, [1.0] * model.in_channels)
        self.model = model

    def changed(self, output: Tensor, previous: Tensor | None, step: int) -> Tensor:
        """F_t `[B, K]` from f_t, F_{t-1} (None before the first step) and t = 1..T."""
        raise NotImplementedError

    def initial_state(self, x: Tensor) -> AroundState:
        self.check_input(x)
        self._check_steps()
        return AroundState(0, self.model.initial_state(self.normalize(x)), None)

    def step(self, state: AroundState) -> tuple[Tensor, AroundState]:
        output, inner = self.model.step(state.inner)
        answer = self.changed(output, state.answer, state.step + 1)
        return answer, AroundState(state.step + 1, inner, answer)

    def forward(self, x: Tensor, step: int | None = None) -> Tensor:
        """All answers `[T, B, K]`, by the schedule of the model inside; or with `step` = 1..T only that answer, `[B, K]`."""
        if step is not None:
            return super().forward(x, step)
        self.check_input(x)
        self._check_steps()
        answers: list[Tensor] = []
        for t, output in enumerate(self.model(self.normalize(x)), 1):
            answers.append(self.changed(output, answers[-1] if answers else None, t))
        return torch.stack(answers)

    def _check_steps(self) -> None:
        if self.model.num_steps != self.num_steps:
            raise ValueError(
                f"the model inside has num_steps={self.model.num_steps}, but this {type(self).__name__} was built for "
                f"{self.num_steps}: set num_steps before it is built"
            )


def build_around(
    around: Callable[[AnytimeModel], AnyAround],
    num_classes: int | tuple[int, ...],
    in_channels: int,
    base: str,
    arguments: dict[str, Any] | None,
) -> AnyAround:
    """`around` a new model by name; the arguments of that model are saved as they turned out.

    Raises:
        ValueError: `base` is no name, or `arguments` are no mapping, or hold what the outer model takes itself.
    """
    if not isinstance(base, str):
        raise ValueError(f"base must be the name of a model, got {base!r}")
    if not isinstance(arguments, Mapping | None):
        raise ValueError(f"arguments must be a mapping of names to values, got {arguments!r}")
    for name in ("num_classes", "in_channels"):
        if name in (arguments or {}):
            raise ValueError(f"arguments are those of {base} alone: give {name} outside of them")
    levels = num_classes if isinstance(num_classes, int) else tuple(num_classes)
    model = create_model(base, levels, in_channels=in_channels, **(arguments or {}))
    built = around(model)
    settled = {key: value for key, value in model.config["arguments"].items() if key not in ("num_classes", "in_channels")}
    built.settled_arguments = {"arguments": settled}
    return built
