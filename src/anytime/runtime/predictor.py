"""The best answer by a deadline, on any anytime model."""

from __future__ import annotations

import math
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import torch
from torch import Tensor

from anytime.combine import Combiner
from anytime.combine import combiner as named_combiner
from anytime.model import AnytimeModel
from anytime.runtime.execution import PRIOR, Answer, Execution
from anytime.runtime.profile import Profile
from anytime.runtime.session import Session
from anytime.stopping import Rule

_UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6}
_SESSIONS = 64  # threads at most
_SMOOTHING, _LARGEST_RATIO = 0.1, 10.0  # of the running ratio of measured to profiled seconds


def parse_seconds(text: str) -> float:
    """Seconds from `"5ms"`, `"0.2s"`, `"800us"` or plain seconds `"0.005"`.

    Raises:
        ValueError: Not a time, or not above zero.
    """
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+(?:e-?[0-9]+)?)\s*(s|ms|us)?\s*", text)
    seconds = float(match[1]) * _UNITS[match[2] or "s"] if match else 0.0
    if seconds <= 0 or not math.isfinite(seconds):
        raise ValueError(f"a deadline must be a time above zero like 5ms, 0.2s or 800us, got {text!r}")
    return seconds


class Predictor:
    """The best answer by a deadline.

    Interruptible use (the default): steps run one by one; step t is started only if

        now + inflation * q_t + guard <= deadline,

    q_t being the profile's quantile of that step's seconds at this batch size, and inflation >= 1 the running ratio of
    measured to profiled seconds. Where not even the first step fits, the answer is the prior (`steps` = -1). Contract use
    (`contract=True`): the budget is known before, so the deepest answer whose quantile fits is planned and computed alone.

    Any number of threads may use one predictor: each call has its own state.

    Args:
        model: An anytime model; put into eval mode.
        profile: `anytime.profile(model, example)`. Without one, a step is started as long as time is left.
        combine: How answers are made of the steps so far: a name (`"last"`, `"caching"`, `"product"`) or a combiner.
        stop: A stopping rule besides the deadline; None for none.
        quantile: Which of the profile's quantiles must fit: "p50", "p90", "p99", "p999" or "max".
        guard: Seconds kept free before the deadline.
        prior: Probabilities `[K]` for when there is no time for any step; default uniform.
        foreign: Accepts a profile measured on other hardware.
        clock: Returns seconds; replaced in tests.

    Raises:
        ValueError: A profile of another model or machine, unknown names, a prior of the wrong length.

    Example:
        >>> predictor = anytime.Predictor(model, anytime.profile(model, (3, 32, 32)), combine="product")
        >>> predictor(image[None], deadline=0.005).label
        tensor([3])
    """

    def __init__(
        self,
        model: AnytimeModel,
        profile: Profile | None = None,
        combine: str | Combiner = "last",
        stop: Rule | None = None,
        *,
        quantile: str = "p99",
        guard: float = 0.0,
        prior: Tensor | None = None,
        foreign: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if profile is not None:
            profile.check(model, foreign=foreign)
            next(iter(profile.batches.values())).steps[0].at(quantile)
        if not guard >= 0:
            raise ValueError(f"guard must be at least 0 seconds, got {guard!r}")
        classes = model.levels[0]
        if profile is None and stop is not None and stop.needs:
            raise ValueError(f"the rule {stop!r} needs {' and '.join(sorted(stop.needs))}: give Predictor a profile")
        if prior is not None and (prior.shape != (classes,) or not torch.isclose(prior.sum(), torch.tensor(1.0), atol=1e-3)):
            raise ValueError(f"prior must be {classes} probabilities that sum to 1, got {list(prior.shape)}")
        self.model, self.profile = model.eval(), profile
        self._combiner = named_combiner(combine) if isinstance(combine, str) else combine
        self._combiner.start(model.num_steps)  # refuses now what was fitted to another number of steps, or never
        if stop is not None:
            stop.start(model.num_steps)
        self._rule = stop
        self._quantile, self._guard, self._clock = quantile, guard, clock
        self._prior = prior if prior is not None else torch.full((classes,), 1 / classes)
        self._ratio = self._inflation = 1.0
        self._threads: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()

    def __call__(
        self, x: Tensor, deadline: float | None = None, *, until: float | None = None, contract: bool = False
    ) -> Answer:
        """The best answer about images `[B, C, H, W]` by the deadline.

        Args:
            x: Images in [0, 1] on the model's device.
            deadline: Seconds from now; None for no deadline.
            until: An absolute time of the clock (`time.monotonic()`) in place of `deadline`.
            contract: Plan the deepest answer that fits and compute it alone; needs a profile.

        Raises:
            ValueError: A deadline that is no positive number, a time that has passed; images of the wrong shape or with NaN.
            TypeError: Images that are not floating-point, or on another device.
        """
        start = self._clock()
        budget = self._budget(start, deadline, until)
        if contract:
            return self._contract(x, start, budget)
        for answer in self._answers(x, start, budget):
            last = answer
        return last

    def stream(self, x: Tensor, deadline: float | None = None, *, until: float | None = None) -> Iterator[Answer]:
        """The answers one by one, computed as they are asked for; the last one says in `reason` why it is the last.

        Time goes on between the answers: the deadline counts from this call.
        """
        start = self._clock()
        return self._answers(x, start, self._budget(start, deadline, until))

    def session(self, x: Tensor) -> Session:
        """Computes in the background; `best()`, `wait(seconds)` and `interrupt()` from any thread. Use it with `with`."""
        start = self._clock()
        self._check(x)
        with self._lock:
            if self._threads is None:
                self._threads = ThreadPoolExecutor(_SESSIONS, thread_name_prefix="anytime")
        return Session(self._threads, lambda: self._answers(x, start, None), self._prior_answer(x, start, None))

    def _budget(self, start: float, deadline: float | None, until: float | None) -> float | None:
        if until is not None:
            if deadline is not None:
                raise ValueError("give deadline or until, not both")
            deadline = until - start
            if not deadline > 0:
                raise ValueError(f"until={until!r} has passed: the clock is at {start!r}")
        if deadline is not None and not (deadline > 0 and math.isfinite(deadline)):
            raise ValueError(f"deadline must be a number of seconds above zero, got {deadline!r}")
        return deadline

    def _check(self, x: Tensor) -> None:
        """Refuses at the door what would fail in the middle of a stream."""
        self.model.check_input(x)
        device = next(self.model.parameters()).device
        if x.device != device:
            raise TypeError(f"the images are on {x.device}, the model on {device}")
        if not torch.isfinite(x).all():
            raise ValueError("the images hold NaN or infinite pixels")
        if self.profile is not None:
            self.profile.at(len(x))

    def _prior_answer(self, x: Tensor, start: float, budget: float | None) -> Answer:
        batch = len(x)
        nothing = torch.zeros(batch, dtype=torch.int64)
        prior = self._prior.expand(batch, -1)
        return Answer(prior, nothing + PRIOR, self._clock() - start, budget, nothing)

    def _answers(self, x: Tensor, start: float, budget: float | None) -> Iterator[Answer]:
        with torch.inference_mode():
            self._check(x)
            macs = self.profile.macs if self.profile is not None else (0,) * self.model.num_steps
            run = Execution(self.model, x, self._combiner, self._rule, macs)
        answer = self._prior_answer(x, start, budget)
        while True:
            reason = (
                "stopped" if run.stopped else "complete" if run.done else "" if self._fits(run, start, budget) else "deadline"
            )
            if reason and answer.step == PRIOR:
                yield replace(answer, reason=reason)
            if reason:
                return
            before, alive = self._clock(), run.alive
            with torch.inference_mode():
                answer = run.advance(answer)
            if x.is_cuda:
                torch.cuda.synchronize(x.device)
            after = self._clock()
            self._notice_drift(run, after - before, alive)
            if not run.done:
                run.judge(after - start + self._seconds(run))
            late = not run.done and not self._fits(run, start, budget)
            reason = "stopped" if run.stopped else "complete" if run.done else "deadline" if late else ""
            answer = replace(answer, elapsed=after - start, reason=reason)
            yield answer
            if reason:
                return

    def _seconds(self, run: Execution) -> float:
        """What the next step may take."""
        if self.profile is None:
            return 0.0
        return self._inflation * self.profile.at(run.alive).steps[run.step].at(self._quantile)

    def _fits(self, run: Execution, start: float, budget: float | None) -> bool:
        if budget is None:
            return True
        left, seconds = budget - self._guard - (self._clock() - start), self._seconds(run)
        if seconds > left >= seconds / self._inflation:
            self._follow(1.0)  # refused for the drift alone: without trying, nothing would show that it is over
        return seconds <= left

    def _notice_drift(self, run: Execution, seconds: float, alive: int) -> None:
        """Follows how much slower than profiled the machine is now."""
        if self.profile is not None:
            usual = self.profile.at(alive).steps[run.step - 1].p50
            self._follow(min(seconds / usual, _LARGEST_RATIO) if usual > 0 else 1.0)

    def _follow(self, ratio: float) -> None:
        self._ratio += _SMOOTHING * (ratio - self._ratio)
        self._inflation = max(1.0, self._ratio)

    def _contract(self, x: Tensor, start: float, budget: float | None) -> Answer:
        if self.profile is None:
            raise ValueError("contract=True plans by a profile; give Predictor one: anytime.profile(model, example)")
        with torch.inference_mode():
            self._check(x)
            answer = self._prior_answer(x, start, budget)
            left = math.inf if budget is None else budget - (self._clock() - start) - self._guard
            latencies = self.profile.at(len(x)).contract
            fitting = [t for t, seconds in enumerate(latencies, 1) if self._inflation * seconds.at(self._quantile) <= left]
            if not fitting:
                return replace(answer, reason="deadline")
            step = max(fitting)
            probabilities, _ = self._combiner.update(
                self._combiner.start(self.model.num_steps), self.model(x, step=step)[:, : self.model.levels[0]].float(), step
            )
        if x.is_cuda:
            torch.cuda.synchronize(x.device)
        steps, macs = torch.full((len(x),), step), torch.full((len(x),), self.profile.contract_macs[step - 1])
        reason = "complete" if step == self.model.num_steps else "deadline"
        return Answer(probabilities, steps, self._clock() - start, budget, macs, reason)
