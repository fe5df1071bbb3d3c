"""How much slower than profiled the machine is now."""

from __future__ import annotations

_SMOOTHING = 0.1  # of the running ratio
_LARGEST = 0.2  # how far from it a step counts: some are held up by something else, which is the quantiles' business
_UNNOTICED = 0.1  # of slowness: running ratios vary by that, and quantiles hold it
_LEAST = 0.5  # of the ratio: a machine that was faster than profiled is soon seen to be so no longer


class Drift:
    """r <- r (1 + clip(x / r - 1, -0.2, 0.2) / 10) for every step, x its measured seconds over the profile's median.

    Attributes:
        ratio: r, near the median of x, whatever the rare slow steps take.
        inflation: max(1, r - 0.1): what profiled seconds are multiplied by.
    """

    def __init__(self) -> None:
        self.ratio = self.inflation = 1.0

    def notice(self, usual: float, seconds: float) -> None:
        """A step took `seconds`, and `usual` in half of all cases when it was profiled (0: nobody knows)."""
        if usual > 0:
            self._follow(seconds / usual)

    def forget(self) -> None:
        """A step was refused for the drift alone: without trying, nothing would show that it is over."""
        self._follow(1.0)

    def _follow(self, ratio: float) -> None:
        change = max(-_LARGEST, min(_LARGEST, ratio / self.ratio - 1))
        self.ratio = max(_LEAST, self.ratio * (1 + _SMOOTHING * change))
        self.inflation = max(1.0, self.ratio - _UNNOTICED)
