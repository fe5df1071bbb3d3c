"""What a predictor returns: the outputs after some step, and how they came about."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

PRIOR = -1  # the step of an answer that no step has improved on


@dataclass(frozen=True)
class Answer:
    """What is known about a batch at some moment.

    Attributes:
        levels: Probabilities `[B, K_d]` of each label level, combined over the steps so far; usually there is one level. None
            (an empty tuple) unless the model is a classifier.
        steps: Step of each sample's answer, int64 `[B]`: 1..T, or -1 for a prior that no step has improved on.
        elapsed: Seconds from the call to this answer.
        deadline: The deadline of the call in seconds; None if there was none, 0 or below if it had passed.
        macs: Multiply-adds spent on each sample, int64 `[B]`; 0 if neither a profile nor an export says them.
        reason: Why there is no later answer: `"complete"`, `"deadline"`, `"stopped"` (by the rule) or `"interrupted"`;
            `""` while a later one may come. If the logits of a step were NaN or infinite, it adds that the last finite answer
            was kept.
        outputs: What the model itself answered, float32 `[B, K, ...]`: uncombined logits of a classifier (log p of a prior),
            values or maps.
        not_finite: Steps whose logits were NaN or infinite for some sample; such a sample kept its last finite answer.
    """

    levels: tuple[Tensor, ...]
    steps: Tensor
    elapsed: float
    deadline: float | None
    macs: Tensor
    reason: str = ""
    not_finite: tuple[int, ...] = ()
    outputs: Tensor = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.outputs is None:
            object.__setattr__(self, "outputs", torch.cat(self.levels, 1).log())

    def because(self, reason: str) -> Answer:
        """The same answer with the reason why there is no later one."""
        if reason and self.not_finite:
            steps = ", ".join(map(str, self.not_finite))
            which = f"step {steps} was" if len(self.not_finite) == 1 else f"steps {steps} were"
            reason += f"; {which} NaN or infinite, so the last finite answer was kept"
        return replace(self, reason=reason)

    @property
    def probabilities(self) -> Tensor:
        """`[B, K]`; with several label levels those of the first, which stopping rules look at.

        Raises:
            AttributeError: The model is no classifier.
        """
        if not self.levels:
            raise AttributeError("only the answers of classifiers have probabilities, a label and a confidence; see outputs")
        return self.levels[0]

    @property
    def step(self) -> int:
        """The furthest step of any sample; -1 for a prior."""
        return int(self.steps.max())

    @property
    def label(self) -> Tensor:
        """The most probable class of each sample, int64 `[B]`."""
        return self.probabilities.argmax(1)

    @property
    def confidence(self) -> Tensor:
        """The largest probability of each sample, `[B]`."""
        return self.probabilities.amax(1)

    @property
    def missed(self) -> bool:
        """Whether the answer came after the deadline; always if that had passed at the call."""
        return self.deadline is not None and (self.elapsed > self.deadline or self.deadline <= 0)
