"""What a predictor returns."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

PRIOR = -1  # the step of an answer that no step has improved on


@dataclass(frozen=True)
class Answer:
    """What is known about an image at some moment.

    Attributes:
        levels: Probabilities `[1, K_d]` of each label level; empty unless the network is a classifier.
        outputs: What the network itself answered, `[1, K, ...]`: logits (log p of a prior), values or maps.
        step: 1..T, or -1 for a prior.
        elapsed: Seconds from the call to this answer.
        deadline: The call's deadline in seconds; None if there was none.
        macs: Multiply-adds that were spent.
        reason: Why there is no later answer: "complete", "deadline", "stopped", "interrupted"; "" while one may come.
        not_finite: Steps whose outputs were NaN or infinite, after which the last finite answer stayed.
    """

    levels: tuple[np.ndarray, ...]
    outputs: np.ndarray
    step: int
    elapsed: float
    deadline: float | None
    macs: int = 0
    reason: str = ""
    not_finite: tuple[int, ...] = ()

    def because(self, reason: str) -> Answer:
        """The same answer with the reason why there is no later one."""
        if reason and self.not_finite:
            steps = ", ".join(map(str, self.not_finite))
            which = f"step {steps} was" if len(self.not_finite) == 1 else f"steps {steps} were"
            reason += f"; {which} NaN or infinite, so the last finite answer was kept"
        return replace(self, reason=reason)

    @property
    def probabilities(self) -> np.ndarray:
        """`[1, K]`; of the first label level."""
        return self.levels[0]

    @property
    def label(self) -> np.ndarray:
        """The most probable class, int64 `[1]`."""
        return self.levels[0].argmax(1)

    @property
    def confidence(self) -> np.ndarray:
        """Its probability, `[1]`."""
        return self.levels[0].max(1)

    @property
    def missed(self) -> bool:
        """Whether the answer came after the deadline; always if that had passed at the call."""
        return self.deadline is not None and (self.elapsed > self.deadline or self.deadline <= 0)
