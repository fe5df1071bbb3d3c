"""Whether the next step can be done by the deadline, and which answer is the deepest that can."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from anytime.model import AnytimeModel
from anytime.runtime.drift import Drift
from anytime.runtime.engines.exported import ExportedModel
from anytime.runtime.profile import Profile
from anytime.stopping import Rule


def known_macs(model: AnytimeModel, profile: Profile | None) -> Sequence[int] | None:
    """Cumulative MACs of the steps, as an export or a profile says; None if nobody has counted them."""
    if isinstance(model, ExportedModel):
        return [step.macs for step in model.manifest.steps]
    return None if profile is None else profile.macs


def check_costs(rule: Rule | None, macs: Sequence[int] | None, profile: Profile | None) -> None:
    """Raises ValueError if a stopping rule needs costs that are not known."""
    known = {"macs"} if macs is not None else set()
    if profile is None and rule is not None and (missing := rule.needs - known):
        raise ValueError(f"the rule {rule!r} needs {' and '.join(sorted(missing))}: give Predictor a profile")


class Plan:
    """A step fits at `now` if now + seconds <= end.

    Args:
        profile: How long steps take; None if unknown, which counts as no time.
        quantile: The quantile of the profile that must fit, a name in `QUANTILES`.
        clock: Returns seconds.

    Attributes:
        drift: How much slower than profiled the machine is now.
    """

    def __init__(self, profile: Profile | None, quantile: str, clock: Callable[[], float]) -> None:
        self._profile, self._quantile, self._clock = profile, quantile, clock
        self._known: dict[int, list[tuple[float, float]]] = {}  # by batch size: the quantile and the median of each step
        self.drift = Drift()

    def step(self, index: int, batch: int) -> tuple[float, float]:
        """Seconds that step `index` + 1 may take now, and its median in the profile; zeros without a profile."""
        if self._profile is None:
            return 0.0, 0.0
        if batch not in self._known:
            self._known[batch] = [(step.at(self._quantile), step.p50) for step in self._profile.at(batch).steps]
        quantile, median = self._known[batch][index]
        return self.drift.slowdown * quantile, median

    def least(self, index: int, batch: int) -> float:
        """Seconds that step `index` + 1 takes at least, or it would be unusually fast; 0 without a profile."""
        return self.drift.least * self.step(index, batch)[1]

    def fits(self, index: int, batch: int, end: float | None, before: float = 0.0) -> bool:
        """Whether step `index` + 1 may start now, to be done by `end`, after `before` seconds of steps in flight."""
        if end is None:
            return True
        seconds = self.step(index, batch)[0] + before
        left = end - self._clock()
        if seconds > left >= seconds / self.drift.slowdown:
            self.drift.forget()
        return seconds <= left

    def deepest(self, batch: int, left: float) -> tuple[int, float]:
        """The deepest contract answer 1..T whose quantile is at most `left` seconds, and its median; 0 if there is none.

        Raises:
            ValueError: There is no profile, or it has no contract answers.
        """
        latencies = () if self._profile is None else self._profile.at(batch).contract
        if not latencies:
            wanted = "a profile" if self._profile is None else "a profile of contract answers"
            raise ValueError(f"contract=True plans by {wanted}; give Predictor one: anytime.profile(model, example)")
        needed = [seconds.at(self._quantile) for seconds in latencies]
        fitting = [t for t, seconds in enumerate(needed, 1) if self.drift.slowdown * seconds <= left]
        if fitting:
            return max(fitting), latencies[max(fitting) - 1].p50
        if min(needed) <= left:
            self.drift.forget()
        return 0, 0.0
