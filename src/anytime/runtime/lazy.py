"""Lazy exits: the units of a network run on, and a head is run only on a state whose answer is wanted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from anytime.combine import Combiner, Last, Temperature
from anytime.model import AnytimeModel, SplitStep, State
from anytime.runtime.answer import Answer
from anytime.runtime.steps import Steps
from anytime.stopping import Rule


@dataclass
class Held:
    """An answer that is not computed yet: `read()` runs its head, once, in the thread that asks.

    Attributes:
        compute: Makes the answer, given the reason.
        step: 1..T.
        reason: As of `Answer`.
    """

    compute: Callable[[str], Answer]
    step: int
    reason: str = ""
    _answer: Answer | None = field(default=None, init=False)

    def read(self) -> Answer:
        """The answer; its `elapsed` is when it was first read."""
        if self._answer is None:
            self._answer = self.compute(self.reason)
        return self._answer


class LazyExecution:
    """Runs one batch without heads; call it inside `torch.inference_mode()`, from one thread."""

    def __init__(self, run: Steps, x: Tensor) -> None:
        self._run, self._last = run, run.model.num_steps
        self.alive = len(x)
        self._size = run.size(len(x))
        self._x = x
        self._state: State = None
        self.step = 0

    @property
    def done(self) -> bool:
        """Whether no step is left to run."""
        return self.step == self._last

    def advance(self) -> Callable[[], Tensor]:
        """Runs the next step without its head; what runs the head then, giving logits `[B, K]`."""
        if self.step == 0:
            self._state = self._run.start(self._x, self._size)
        _, self._state = self._run(self.step + 1, self._state, self._size)
        self.step += 1
        step, state = self.step, self._state
        return lambda: self._run.read(step, state, self._size)[: self.alive]


def check_lazy_exits(model: AnytimeModel, rule: Rule | None, combiner: Combiner) -> None:
    """Refuses, with a ValueError, what cannot do without some of the answers."""
    if not isinstance(model, SplitStep):
        raise ValueError(
            f"lazy_exits needs a model with advance(state) and read(state), the halves of a step, like ann; "
            f"{type(model).__name__} has none"
        )
    if rule is not None:
        raise ValueError(f"with lazy_exits no answer is read before the last: leave out the rule {rule!r}")
    if not isinstance(combiner, (Last, Temperature)):
        raise ValueError(f"with lazy_exits no answer is read before the last: combine='last', not {combiner.kind!r}")
