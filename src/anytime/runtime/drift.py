"""How much slower than profiled the machine runs now."""

from __future__ import annotations

_SMOOTHING = 0.1  # weight of one observation in the running ratio
_CLIP = 0.2  # clip observations to +-20 % of the ratio; occasional stalls are already covered by the profile's quantiles
_TOLERANCE = 0.1  # slowness to ignore: running ratios vary that much, and the quantiles allow for it
_LEAST = 0.5  # lower bound of the ratio, so that the end of an unusually fast spell is noticed soon


class Drift:
    """r <- r (1 + clip(x / r - 1, -0.2, 0.2) / 10) after every step, x being its measured seconds over the profile's median.

    Attributes:
        ratio: r, close to the median of x, however long the rare slow steps take.
        slowdown: max(1, r - 0.1), the factor by which profiled seconds are multiplied.
        least: r - 0.1, the factor of a profiled median below which a step hardly ever ends.
    """

    def __init__(self) -> None:
        self.ratio = self.slowdown = 1.0
        self.least = self.ratio - _TOLERANCE

    def notice(self, median: float, seconds: float) -> None:
        """A step took `seconds`; `median` is what it took in the profile, or 0 if unknown."""
        if median > 0:
            self._follow(seconds / median)

    def forget(self) -> None:
        """Lets r decay after the drift ruled out a step; otherwise no step would ever run to show that the drift is over."""
        self._follow(1.0)

    def _follow(self, ratio: float) -> None:
        change = max(-_CLIP, min(_CLIP, ratio / self.ratio - 1))
        self.ratio = max(_LEAST, self.ratio * (1 + _SMOOTHING * change))
        self.least = self.ratio - _TOLERANCE
        self.slowdown = max(1.0, self.least)
