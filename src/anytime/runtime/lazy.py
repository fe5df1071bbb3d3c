"""Answers that are made when they are read; with lazy exits, only then does the head run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

from anytime.combine import Combiner, Last, Temperature
from anytime.model import AnytimeModel, SplitStep
from anytime.runtime.answer import Answer
from anytime.stopping.rules import Rule


@dataclass
class LazyAnswer:
    """An answer that is not made yet: the first use of `answer` makes it, in the calling thread; a lazy head runs then.

    Attributes:
        compute: Makes the answer, given the reason.
        step: 1..T.
        reason: As in `Answer`.
    """

    compute: Callable[[str], Answer]
    step: int
    reason: str = ""

    def because(self, reason: str) -> LazyAnswer:
        """The same answer with the reason why there is no later one."""
        return replace(self, reason=reason)

    @cached_property
    def answer(self) -> Answer:
        """The answer; with lazy exits its `elapsed` is the time of its first use."""
        return self.compute(self.reason)


def read(answer: Answer | LazyAnswer) -> Answer:
    """The answer itself, computed now if it is lazy."""
    return answer.answer if isinstance(answer, LazyAnswer) else answer


def check_lazy_exits(model: AnytimeModel, rule: Rule | None, combiner: Combiner) -> None:
    """Raises ValueError if the model's steps cannot be split, or if the stopping rule or combiner needs every answer."""
    if not isinstance(model, SplitStep):
        raise ValueError(
            f"lazy_exits needs a model with advance(state) and read(state), the halves of a step, like ann; "
            f"{type(model).__name__} has none"
        )
    if rule is not None:
        raise ValueError(f"with lazy_exits only the last answer is read: leave out the rule {rule!r}")
    if not isinstance(combiner, (Last, Temperature)):
        raise ValueError(f"with lazy_exits only the last answer is read: combine='last', not {combiner.kind!r}")
