"""A model whose steps take exactly known times, on a clock that only they advance."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from anytime.model import AnytimeModel
from anytime.runtime.profile import BatchProfile, Latency, Profile, architecture, fingerprint


class Clock:
    """A clock that only tests and models advance."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Timed(AnytimeModel):
    """Step t takes `seconds[t - 1]` and predicts class t - 1 ever more confidently; `started` lists (step, batch size)."""

    def __init__(self, clock: Clock, seconds: Sequence[float], classes: int = 5) -> None:
        super().__init__(classes)
        self.num_steps = len(seconds)
        self.bias = torch.nn.Parameter(torch.zeros(1))
        self.clock, self.seconds = clock, list(seconds)
        self.started: list[tuple[int, int]] = []
        self.fails_at: int | None = None

    def initial_state(self, x: Tensor) -> Any:
        self.check_input(x)
        return 0, x.mean((1, 2, 3))

    def step(self, state: Any) -> tuple[Tensor, Any]:
        step, mean = state
        self.started.append((step + 1, len(mean)))
        if self.fails_at == step + 1:
            raise RuntimeError(f"step {step + 1} failed")
        self.clock.now += self.seconds[step]
        logits = torch.zeros(len(mean), self.num_classes) + self.bias
        logits[:, step % self.num_classes] = 1.0 + 4 * mean * (step + 1)
        return logits, (step + 1, mean)


Case = tuple[Clock, Timed, Profile]


@pytest.fixture(scope="session")
def timed_case() -> Callable[..., Case]:
    """A clock, a timed model, and a profile whose seconds are `factor` times the true ones."""

    def make(seconds: Sequence[float], factor: float = 1.0, contract: Sequence[float] | None = None) -> Case:
        clock = Clock()
        model = Timed(clock, seconds).eval()

        def rows(values: Sequence[float]) -> tuple[Latency, ...]:
            return tuple(Latency.of([factor * value]) for value in values)

        reached = [sum(seconds[: t + 1]) for t in range(len(seconds))]
        batch = BatchProfile(rows(seconds), rows(reached), rows(contract or reached))
        macs = tuple(10 * (t + 1) for t in range(len(seconds)))
        return clock, model, Profile(architecture(model), (3, 2, 2), fingerprint(model), {1: batch, 8: batch}, macs, macs)

    return make
