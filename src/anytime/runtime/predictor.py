"""The best answer by a deadline, on any anytime model."""

from __future__ import annotations

import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from anytime.combine import Combiner
from anytime.model import AnytimeModel
from anytime.runtime.alone import read_newest
from anytime.runtime.answer import PRIOR, Answer
from anytime.runtime.door import admit, budget_seconds, whole_depth
from anytime.runtime.engines.exported import engine_of
from anytime.runtime.engines.pytorch import CompiledSteps, EagerSteps, require_steps
from anytime.runtime.execution import EagerExecution, Execution, LazyExecution, Reader
from anytime.runtime.gathered import Gathered
from anytime.runtime.interrupts import Cancellation, Reserve, cancels_steps, until_cancelled
from anytime.runtime.lazy import LazyAnswer, check_lazy_exits
from anytime.runtime.plan import Plan, check_costs, known_macs
from anytime.runtime.prior import Priors
from anytime.runtime.profile import Profile, check_quantile
from anytime.runtime.recorder import FlightRecorder, Log, flight_facts, seen
from anytime.runtime.session import Session
from anytime.runtime.threads import Threads
from anytime.runtime.transfer import Arrival, mark, send
from anytime.runtime.watch import check_watch, watched
from anytime.stopping import Rule, resolve
from anytime.support.units import guard_seconds

Deadline = float | str | Tensor | None  # or any other scalar, see `deadline_seconds`
Prior = Callable[[], Answer]


class _Launched(NamedTuple):
    """A step that was started: its arrival, and how to make its answer, given the elapsed seconds."""

    arrival: Arrival
    answer: Callable[[float], LazyAnswer]
    at: float
    seconds: float
    median: float


class Predictor:
    """The best answer by a deadline.

    Interruptible use (the default): steps run one by one; step t starts only if

        now + slowdown * q_t + guard <= deadline,

    where q_t is the profile's quantile of that step's seconds at this batch size, and slowdown >= 1 says how much slower
    than profiled the machine is now (`Drift`). If not even the first step fits, the answer is the prior (`steps` = -1).
    Contract use (`contract=True`): the budget is known beforehand, so only the deepest answer whose quantile fits is computed.

    Hard deadlines (`interrupt="operator"`, the default where the engine can cancel a step, as ONNX Runtime and OpenVINO can):
    a step starts whenever it can end in time, and the deadline cancels it. A step that may not fit, or of which no profile
    knows the seconds, is cancelled a little before, so that the answer before it goes out in time (see `Reserve`). A cancelled
    step ends within one operator. One that ends after the deadline does not count. Contract answers are never cancelled.

    With `lazy_exits`, for models with the two halves of a step (`advance` and `read`: all of `ann`), the steps of a call skip
    their heads, and only the head of the returned answer runs: MACs are those of the contract answer.

    On CUDA, steps start before the answer of the previous one has arrived, `depth` at a time; at the deadline you get the
    newest answer that is there. A stopping rule has to see an answer before the next step starts: with a rule, the depth is 1.

    Any number of threads may share one predictor: each call has its own state. Every answer is computed in eval mode, in the
    precision of the weights (whatever the caller's autocast), and with denormal numbers as zero. Images are copied at the
    call: an answer describes them as they were then. A copy of a predictor (`copy.deepcopy`, pickle) has its own model,
    threads and drift, and compiles again. A forked process computes with one thread, as the others do not survive the fork.

    Args:
        model: An anytime model; put into eval mode now. Whatever mode it is in later, answers are computed in eval mode.
        profile: `anytime.profile(model, example)`. Without one, a step starts as long as any time is left.
        combine: How the answer is made from the steps so far: a combiner, or a name (`"last"`, `"caching"`, `"product"`,
            `"mixture"`, or one saved with the model). None: the one that a saved rule was fitted to, or the last answer.
        stop: A stopping rule besides the deadline, or the name of one saved with the model (`anytime fit`); None for none.
        quantile: The quantile of the profile that must fit: "p50", "p90", "p99", "p999" or "max".
        guard: Time to keep free before the deadline, in the forms of a deadline: seconds, or text like `"1ms"`.
        prior: The answer if no step fits, a tensor, array or list: probabilities `[K]`, all label levels side by side, default
            uniform; in other tasks the output of one image, default NaN.
        compile: Compiles and warms the steps now, for the profile's batch sizes; needs a profile of compiled steps.
        depth: Steps in flight at a time on CUDA; 1 with lazy exits.
        lazy_exits: Runs heads only for answers that are read; needs `combine="last"` and no rule.
        foreign: Accepts a profile measured on other hardware.
        interrupt: "operator" for hard deadlines, "step" to let every step end; None: "operator" if the engine can. Sessions
            end within one operator where the engine can, unless this is "step".
        record: A file to which each call's decision is written, for `anytime replay`; `recorder.flush()` writes what waits.
        clock: Returns seconds; replaced in tests.

    Raises:
        ValueError: If the profile is of another model or machine, a name is unknown, a rule was never fitted, the prior has
            the wrong length, the engine cannot cancel a step, or the file to record to is of another kind or in use.
        TypeError: If the model is no anytime model, or another argument has the wrong type.

    Example:
        >>> import anytime, torch
        >>> model = anytime.create_model("anytimenet", width=4)
        >>> predictor = anytime.Predictor(model, anytime.profile(model, 32, batch_sizes=[1], repeats=20), combine="product")
        >>> predictor(torch.rand(1, 3, 32, 32), deadline="10s").step
        7
    """

    def __init__(
        self,
        model: AnytimeModel,
        profile: Profile | None = None,
        combine: str | Combiner | None = None,
        stop: str | Rule | None = None,
        *,
        quantile: str = "p99",
        guard: float | str | Tensor = 0.0,
        prior: Any = None,
        compile: bool = False,
        depth: int = 2,
        lazy_exits: bool = False,
        foreign: bool = False,
        interrupt: str | None = None,
        record: str | os.PathLike[str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        require_steps(model)
        if profile is not None and not isinstance(profile, Profile):
            raise TypeError(f"profile must be one of anytime.profile(model, example), got {profile!r}")
        if profile is not None:
            profile.check(model, compiled=compile, foreign=foreign)
        elif compile:
            raise ValueError(
                "compile=True compiles for the image and batch sizes of a profile: give Predictor one, "
                "anytime.profile(model, example, compile=True)"
            )
        check_quantile(quantile)
        kept, most = guard_seconds(guard), whole_depth(depth)
        macs = known_macs(model, profile)
        rule, self._combiner = resolve(model, stop, combine, macs)
        check_costs(rule, macs, profile)
        self._combiner.start(model.num_steps)  # raises an error now if fitted to another number of steps, or never
        if rule is not None:
            rule.start(model.num_steps)
        if lazy_exits:
            check_lazy_exits(model, rule, self._combiner)
        self.model, self.profile = model.eval(), profile
        self._rule = rule
        self.clock = clock
        self._prior = Priors(model, prior)
        self._levels = model.levels if model.info.task == "classification" else ()
        on_cuda = next(model.parameters()).is_cuda
        self._depth = most if on_cuda and rule is None and not lazy_exits else 1
        self._send = send
        self._compile, self._lazy_exits = compile, lazy_exits
        self._run = self._make_run()
        self._hard, self._reserve = cancels_steps(interrupt, self._run.cancels), Reserve()
        self._guard, self._plan = kept, Plan(profile, quantile, clock)
        self._threads = Threads()
        known = model, profile, self._plan, rule, self._combiner, self._guard, self._hard
        self.recorder = None if record is None else FlightRecorder(record, flight_facts(*known))
        if profile is not None:
            reference = next(model.parameters())
            self._prior.learn(torch.zeros(1, *profile.input_size).to(reference), self._first_output)

    def _make_run(self) -> EagerSteps:
        if self.profile is None or not self._compile:
            return engine_of(self.model, self._lazy_exits)
        return CompiledSteps(self.model, self.profile.input_size, [*self.profile.batches], self._lazy_exits)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_run"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._run = self._make_run()

    def __call__(
        self,
        x: Tensor,
        deadline: Deadline = None,
        *,
        until: float | None = None,
        contract: bool = False,
        prior: Answer | None = None,
    ) -> Answer:
        """The best answer for images `[B, C, H, W]` by the deadline.

        Args:
            x: Images in [0, 1] on the model's device, in any memory layout; copied now.
            deadline: Seconds from now: a number, a numpy or torch scalar, or text like `"5ms"`. 0 and below has passed: the
                answer is the prior, and missed. None, inf and anything above 1e9 is no deadline.
            until: An absolute time of the clock (`time.monotonic()`) instead of `deadline`; one in the past has passed.
            contract: Computes only the deepest answer that fits; needs a profile.
            prior: The answer if there is no time for any step, such as that for the last frame.

        Raises:
            ValueError: If the deadline is NaN or text without a unit, or the images have the wrong shape or NaN.
            TypeError: If the deadline is a bool or of another type, or the images are not floating-point, or have another
                precision or device than the model.
        """
        start = self.clock()
        budget = budget_seconds(start, deadline, until)
        x, prior = self._admit(x, prior)
        log: Log | None = None if self.recorder is None else []
        cancels = None if contract else self._cancellation(budget)
        if contract:
            answer = self._contract(x, start, budget, prior)
        else:
            for each in self._at_once(x, start, budget, prior, cancels, log):
                last = each
            answer = (last if last.reason else last.because("deadline")).answer
            if cancels is not None:
                if not last.reason:  # it waited for a step that did not count
                    answer = replace(answer, elapsed=self.clock() - start)
                if cancels.risked:
                    self._reserve.notice(answer.missed, cancels.kept)
        if self.recorder is not None:
            self.recorder.note(answer, None if contract else log, cancels.kept if cancels else None)
        return answer

    def stream(
        self, x: Tensor, deadline: Deadline = None, *, until: float | None = None, prior: Answer | None = None
    ) -> Iterator[Answer]:
        """Yields the answers one by one, computed on demand; the `reason` of the last one says why it is the last.

        The deadline counts from this call, and time spent between the answers counts too: once it has passed, none follows. If
        it comes during a step, the last answer has no reason yet.
        """
        start = self.clock()
        budget = budget_seconds(start, deadline, until)
        x, prior = self._admit(x, prior)
        answers = self._answers(x, start, budget, prior, self._run.conditions, self._cancellation(budget))
        return (lazy.answer for lazy in answers)

    def session(self, x: Tensor, prior: Answer | None = None) -> Session:
        """Computes in the background; `best()`, `wait(seconds)` and `interrupt()` from any thread. Use it with `with`."""
        start = self.clock()
        x, prior = self._admit(x, prior)
        cancels = self._cancellation(None)
        first, cancel = self._prior_answer(x, start, None, prior), cancels.now if cancels else lambda: None
        return Session(self._threads, partial(self._at_once, x, start, None, prior, cancels), first, cancel)

    def _cancellation(self, budget: float | None) -> Cancellation | None:
        """What cancels the steps of a call with hard deadlines."""
        hard = self._hard and (budget is None or budget > 0)
        return Cancellation(self._run.call(), self._run.cancel) if hard else None

    def watch(self, images: Iterable[Tensor], updates: int = 1) -> Iterator[Answer]:
        """Answers each frame after `updates` more steps on the state that the earlier ones left, which never starts anew.

        An answer's step is the number of steps so far, at most T; its MACs are 0. Steps run eagerly, also with `compile`.

        Raises:
            ValueError: The model cannot follow frames, or the shape of a frame changes.
        """
        check_watch(self.model, self._rule, self._combiner, updates)
        call = self._levels, images, updates, lambda x: self._admit(x, None)[0]
        return watched(self._run, self._combiner, *call, lambda x, at, last: self._prior_answer(x, at, None, last), self.clock)

    def _admit(self, x: Tensor, prior: Answer | None) -> tuple[Tensor, Answer | None]:
        """Copies of the images and of the prior, checked."""
        x = admit(x, self.model, self.profile)
        self._prior.learn(x, self._first_output)
        return x, None if prior is None else self._prior.answer(x, 0.0, None, prior)

    def _first_output(self, x: Tensor) -> Tensor:
        with self._run.conditions():
            return self._run.model.step(self._run.model.initial_state(x))[0]

    def _prior_answer(self, x: Tensor, start: float, budget: float | None, prior: Answer | None) -> Answer:
        return self._prior.answer(x, self.clock() - start, budget, prior)

    def _at_once(
        self,
        x: Tensor,
        start: float,
        budget: float | None,
        prior: Answer | None,
        cancels: Cancellation | None = None,
        log: Log | None = None,
    ) -> Iterator[LazyAnswer]:
        """All answers that fit, for a caller that does nothing else in between: the conditions hold until the last one."""
        with self._run.conditions():
            yield from self._answers(x, start, budget, prior, nullcontext, cancels, log)

    def _answers(
        self,
        x: Tensor,
        start: float,
        budget: float | None,
        prior: Answer | None,
        conditions: Callable[[], AbstractContextManager[None]],
        cancels: Cancellation | None = None,
        log: Log | None = None,
    ) -> Iterator[LazyAnswer]:
        """All answers in time; each is made when it is read, and with lazy exits computed then."""
        no_step = partial(self._prior_answer, x, start, budget, prior)
        unanswered = LazyAnswer(lambda reason: no_step().because(reason), PRIOR, "deadline")
        answers = self._steps(x, start, budget, no_step, unanswered, conditions, cancels, log)
        return answers if cancels is None or budget is None else until_cancelled(cancels, answers, unanswered)

    def _steps(
        self,
        x: Tensor,
        start: float,
        budget: float | None,
        no_step: Callable[[], Answer],
        unanswered: LazyAnswer,
        conditions: Callable[[], AbstractContextManager[None]],
        cancels: Cancellation | None,
        log: Log | None,
    ) -> Iterator[LazyAnswer]:
        macs = known_macs(self.model, self.profile) or (0,) * self.model.num_steps
        run: LazyExecution | EagerExecution
        if self._run.lazy:
            run = LazyExecution(self._run, x)
        else:
            gathered, call = Gathered(no_step, self._levels, macs), cancels and cancels.call
            run = EagerExecution(self._run, x, self._combiner, self._rule, gathered, conditions, call)
        end = None if budget is None else start + budget - self._guard
        in_flight: deque[_Launched] = deque()
        last, answered, fits = start, False, self._fits(run, end, cancels) and not _has_passed(budget)
        if not fits:
            yield unanswered
        while fits or in_flight:
            while fits and len(in_flight) < self._depth:
                with conditions():
                    in_flight.append(self._launch(run, start, budget, no_step))
                fits = len(in_flight) < self._depth and not run.done and self._fits(run, end, cancels, in_flight)
            step = in_flight.popleft()
            arrived, now = step.arrival.wait(self.clock, end), self.clock()
            seconds = now - max(step.at, last)
            self._plan.drift.notice(step.median, seconds)
            if not arrived or (cancels is not None and budget is not None and now - start > budget):
                if not answered:
                    yield unanswered
                return
            last, answered, answer = now, True, step.answer(now - start)
            if log is not None:
                log.append((seconds, seen(run)))
            if self._rule is not None and not in_flight and not run.done:
                run.judge(macs[run.step], now - start + self._plan.step(run.step, run.alive)[0])
            fits = not run.done and self._fits(run, end, cancels, in_flight)
            is_last = not fits and not in_flight
            reason = ("stopped" if run.stopped else "complete" if run.done else "deadline") if is_last else ""
            yield answer.because(reason) if reason else answer
            if fits and conditions is not nullcontext:  # in a stream, whose caller may have taken a while
                fits = self._fits(run, end, cancels, in_flight)

    def _launch(self, run: EagerExecution | LazyExecution, start: float, budget: float | None, prior: Prior) -> _Launched:
        at, planned = self.clock(), self._plan.step(run.step, run.alive)
        if isinstance(run, LazyExecution):
            compute, step = partial(self._read, run.advance(), prior, start, budget), run.step
            return _Launched(mark(run.x.device), lambda _: LazyAnswer(compute, step), at, *planned)
        arrival = self._send(run.advance())
        return _Launched(arrival, partial(self._collected, run, run.step, arrival, budget), at, *planned)

    @staticmethod
    def _collected(run: EagerExecution, step: int, arrival: Arrival, budget: float | None, elapsed: float) -> LazyAnswer:
        run.collect(step, arrival.value)
        return LazyAnswer(run.gathered.answer(elapsed, budget), step)

    def _read(self, readers: Sequence[Reader], prior: Prior, start: float, budget: float | None, reason: str) -> Answer:
        """The newest finite answer, combined with no other; of each sample by itself if some are NaN or infinite."""
        known = self._combiner, self._levels, self.model.num_steps, self._run.conditions, self._send, self.clock
        made = read_newest(readers, prior(), *known)
        cost = self.profile.contract_macs[readers[0].step - 1] if self.profile is not None else 0
        elapsed, macs = self.clock() - start, torch.full_like(made.steps, cost)
        return replace(made, elapsed=elapsed, deadline=budget, macs=macs).because(reason)

    def _fits(
        self, run: Execution, end: float | None, cancels: Cancellation | None, in_flight: Sequence[_Launched] = ()
    ) -> bool:
        """Whether the next step can start now and be done by `end`, after those in flight; or be risked and cancelled."""
        fits = self._plan.fits(run.step, run.alive, end, sum(step.seconds for step in in_flight))
        if cancels is None or end is None:
            return fits
        fits, left = fits and self.profile is not None, end + self._guard - self.clock()
        reserve = max(self._guard, self._reserve.seconds if run.step else 0.0)
        return cancels.before(fits, left, reserve, self._plan.least(run.step, run.alive), run.step)

    def _contract(self, x: Tensor, start: float, budget: float | None, prior: Answer | None) -> Answer:
        nothing = self._prior_answer(x, start, budget, prior)
        left = math.inf if budget is None else budget - (self.clock() - start) - self._guard
        step, median = self._plan.deepest(len(x), left)
        if not step or _has_passed(budget):
            return nothing.because("deadline")
        at, reason = self.clock(), "complete" if step == self.model.num_steps else "deadline"
        answer = self._read([Reader(step, lambda: self._run.model(x, step=step))], lambda: nothing, start, budget, reason)
        self._plan.drift.notice(median, self.clock() - at)
        return answer


def _has_passed(budget: float | None) -> bool:
    return budget is not None and budget <= 0
