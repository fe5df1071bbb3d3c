"""Hard deadlines: the step in progress is cancelled when the deadline comes, so a step that may not fit can be risked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from anytime.runtime.alarm import ALARMS
from anytime.runtime.engines.base import Cancelled
from anytime.runtime.lazy import LazyAnswer

OPERATOR, STEP = "operator", "step"
LEAST_RESERVE = 200e-6  # seconds: on a quiet machine, waking the thread that cancels and ending an operator take no longer
_LATE = 1e-3  # the share of answers that may go out late because a step was risked


class Reserve:
    """How many seconds before the deadline a step is cancelled that was risked although it may not fit.

        L <- 2 L if the answer was late,    L <- max(L_0, L 2^(-1/1000)) if not,    L_0 = 0.2 ms,

    after each call whose last step was risked. The second also after each whose next step was not, only because no more than L
    was left; L stays if such an answer is late, which a larger one would not change. So of n such answers of both kinds, one
    after the other, at most n / 1000 + log2(L / L_0) are late after a risked step, whatever the machine does and however long
    its operators are. No step is risked under a deadline shorter than L, so L is at most twice the longest deadline.
    (Control of a quantile, one observation at a time: Gibbs and Candes 2021, "Adaptive conformal inference under distribution
    shift".) Several calls at a time that kept the same L and are late double it once, and one that ends in time at the very
    moment may undo that.

    Attributes:
        seconds: L.
    """

    def __init__(self) -> None:
        self.seconds = LEAST_RESERVE

    def notice(self, late: bool, kept: float | None) -> None:
        """A call ended, in time or late; its last step was to be cancelled `kept` seconds before the deadline (None: none)."""
        if late and kept is not None:
            self.seconds = max(self.seconds, 2 * kept)
        elif not late:
            self.seconds = max(LEAST_RESERVE, self.seconds * 2**-_LATE)


class Cancellation:
    """What cancels the steps of one call, at a time that moves from step to step.

    Attributes:
        kept: The seconds before the deadline at which the newest step is cancelled: 0 if it fits; None if it did not start.
        risked: Whether the newest step may make the answer before it late, as it may not fit; or only the reserve, having
            grown, kept it from being started.
    """

    def __init__(self, call: Any, cancel: Callable[[Any], None]) -> None:
        self.call, self._cancel = call, partial(cancel, call)
        self.kept: float | None = None
        self._set: float | None = None  # the seconds before the deadline at which the alarm rings
        self._rang = False
        self.risked = False

    def before(self, fits: bool, left: float, reserve: float, least: float, step: int) -> bool:
        """Whether step `step` + 1 starts; none does once the alarm has rung, as it would be cancelled at once.

        Args:
            fits: Whether it fits: then it is cancelled at the deadline, and otherwise earlier.
            left: The seconds until the deadline.
            reserve: The seconds before it at which a step is cancelled that is risked.
            least: The seconds that the step takes at least.
            step: The steps before it.
        """
        kept = None if self._rang else 0.0 if fits else reserve if left > reserve + least else None
        self.kept, self.risked = kept, step > 0 and not fits and left > LEAST_RESERVE + least
        if kept is not None and (kept != self._set or not ALARMS.holds(self)):  # a forked process holds none
            ALARMS.set(self, left - kept, self._ring)
            self._set = kept
        return kept is not None

    def _ring(self) -> None:
        self._rang = True
        self._cancel()

    def now(self) -> None:
        """Cancels the steps."""
        self._cancel()

    def end(self) -> None:
        """Cancels nothing any more."""
        ALARMS.take_back(self)


def cancels_steps(interrupt: Any, can_cancel: bool) -> bool:
    """Whether a deadline cancels the step in progress: as `interrupt` says; by default (None) if the engine can.

    Raises:
        ValueError: It is neither "operator" nor "step", or the engine cannot cancel a step.
    """
    if interrupt is not None and not (isinstance(interrupt, str) and interrupt in (OPERATOR, STEP)):
        raise ValueError(f"interrupt must be {OPERATOR!r} or {STEP!r}, got {interrupt!r}")
    if interrupt == OPERATOR and not can_cancel:
        raise ValueError(
            "interrupt='operator' needs an engine that can cancel a step, which torch cannot: use an export for ONNX Runtime "
            "or OpenVINO (anytime.export_model), or interrupt='step'"
        )
    return can_cancel and interrupt != STEP


def until_cancelled(cancels: Cancellation, answers: Iterator[LazyAnswer], unanswered: LazyAnswer) -> Iterator[LazyAnswer]:
    """The answers one by one, until a step is cancelled; `unanswered` if there is none before."""
    last = None
    try:
        for last in answers:
            yield last
    except Cancelled:
        if last is None:
            yield unanswered
    finally:
        cancels.end()
