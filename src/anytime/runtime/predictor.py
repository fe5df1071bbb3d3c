"""The best answer by a deadline, on any anytime model."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from anytime.combine import Combiner
from anytime.model import AnytimeModel
from anytime.runtime.answer import PRIOR, Answer
from anytime.runtime.drift import Drift
from anytime.runtime.execution import Execution
from anytime.runtime.lazy import Held, LazyExecution, check_lazy_exits
from anytime.runtime.profile import Profile
from anytime.runtime.session import Session
from anytime.runtime.steps import CompiledSteps, Steps
from anytime.runtime.transfer import Arrival, mark, send
from anytime.stopping import Rule, resolve

_SESSIONS = 64  # threads at most


@dataclass(frozen=True)
class _Launched:
    """A step that was started: its answer on the way, and what the answer is about."""

    arrival: Arrival
    steps: Tensor
    macs: Tensor
    at: float
    seconds: float
    usual: float


class Predictor:
    """The best answer by a deadline.

    Interruptible use (the default): steps run one by one; step t is started only if

        now + inflation * q_t + guard <= deadline,

    q_t being the profile's quantile of that step's seconds at this batch size, and inflation >= 1 how much slower than
    profiled the machine is now (`Drift`). Where not even the first step fits, the answer is the prior (`steps` = -1).
    Contract use (`contract=True`): the budget is known before, so the deepest answer whose quantile fits is planned and
    computed alone.

    With `lazy_exits`, for models that have the two halves of a step (`advance` and `read`: all of `ann`), the steps of a
    call leave out their heads, and the head of the answer given back is run alone: MACs are those of the contract answer.

    On CUDA, steps are started before the answer of the one before has arrived, `depth` at a time; the deadline then gets the
    newest answer that is there. A stopping rule has to see an answer before the next step: with one, the depth is 1.

    Any number of threads may use one predictor: each call has its own state.

    Args:
        model: An anytime model; put into eval mode.
        profile: `anytime.profile(model, example)`. Without one, a step is started as long as time is left.
        combine: How answers are made of the steps so far: a name (`"last"`, `"caching"`, `"product"`, `"mixture"`, or one
            saved with the model), or a combiner. None: what a saved rule was fitted to, and else the last answer.
        stop: A stopping rule besides the deadline, or the name of one saved with the model (`anytime fit`); None for none.
        quantile: Which of the profile's quantiles must fit: "p50", "p90", "p99", "p999" or "max".
        guard: Seconds kept free before the deadline.
        prior: Probabilities `[K]` for when there is no time for any step, of all label levels side by side; default uniform.
        compile: Runs steps that are compiled and warmed here, for the profile's batch sizes; the profile must be of such.
        depth: Steps under way at a time on CUDA; 1 with lazy exits.
        lazy_exits: Runs heads only for answers that are asked for; without a rule, and with `combine="last"`.
        foreign: Accepts a profile measured on other hardware.
        clock: Returns seconds; replaced in tests.

    Raises:
        ValueError: A profile of another model or machine, unknown names, rules that were never fitted, a prior of the wrong
            length.

    Example:
        >>> predictor = anytime.Predictor(model, anytime.profile(model, (3, 32, 32)), combine="product")
        >>> predictor(image[None], deadline=0.005).label
        tensor([3])
    """

    def __init__(
        self,
        model: AnytimeModel,
        profile: Profile | None = None,
        combine: str | Combiner | None = None,
        stop: str | Rule | None = None,
        *,
        quantile: str = "p99",
        guard: float = 0.0,
        prior: Tensor | None = None,
        compile: bool = False,
        depth: int = 2,
        lazy_exits: bool = False,
        foreign: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if profile is not None:
            profile.check(model, compiled=compile, foreign=foreign)
            next(iter(profile.batches.values())).steps[0].at(quantile)
        elif compile:
            raise ValueError(
                "compile=True compiles for the image and batch sizes of a profile: give Predictor one, "
                "anytime.profile(model, example, compile=True)"
            )
        if not guard >= 0:
            raise ValueError(f"guard must be at least 0 seconds, got {guard!r}")
        if depth < 1:
            raise ValueError(f"depth must be at least 1 step, got {depth!r}")
        rule, self._combiner = resolve(model, stop, combine, None if profile is None else profile.macs)
        if profile is None and rule is not None and rule.needs:
            raise ValueError(f"the rule {rule!r} needs {' and '.join(sorted(rule.needs))}: give Predictor a profile")
        self._combiner.start(model.num_steps)  # refuses now what was fitted to another number of steps, or never
        if rule is not None:
            rule.start(model.num_steps)
        if lazy_exits:
            check_lazy_exits(model, rule, self._combiner)
        self.model, self.profile = model.eval(), profile
        self._rule = rule
        self._quantile, self._guard, self.clock = quantile, guard, clock
        self._prior = _prior_levels(model.levels, prior)
        on_cuda = next(model.parameters()).is_cuda
        self._depth = depth if on_cuda and rule is None else 1
        self._send = send
        self._run = (
            CompiledSteps(model, profile.input_size, [*profile.batches], lazy_exits)
            if profile and compile
            else Steps(model, lazy_exits)
        )
        self._drift = Drift()
        self._plans: dict[int, tuple[list[float], list[float]]] = {}
        self._threads: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()

    def __call__(
        self,
        x: Tensor,
        deadline: float | None = None,
        *,
        until: float | None = None,
        contract: bool = False,
        prior: Answer | None = None,
    ) -> Answer:
        """The best answer about images `[B, C, H, W]` by the deadline.

        Args:
            x: Images in [0, 1] on the model's device.
            deadline: Seconds from now; None for no deadline.
            until: An absolute time of the clock (`time.monotonic()`) in place of `deadline`.
            contract: Plan the deepest answer that fits and compute it alone; needs a profile.
            prior: The answer for when there is no time for any step, such as that about the last frame.

        Raises:
            ValueError: A deadline that is no positive number, a time that has passed; images of the wrong shape or with NaN.
            TypeError: Images that are not floating-point, of another precision or on another device.
        """
        start = self.clock()
        budget = self._budget(start, deadline, until)
        self._check(x)
        if contract:
            return self._contract(x, start, budget, prior)
        for answer in self._computed(x, start, budget, prior):
            last = answer
        if not last.reason:
            last = replace(last, reason="deadline")
        return last.read() if isinstance(last, Held) else last

    def stream(
        self, x: Tensor, deadline: float | None = None, *, until: float | None = None, prior: Answer | None = None
    ) -> Iterator[Answer]:
        """The answers one by one, computed as they are asked for; the last one says in `reason` why it is the last.

        Time goes on between the answers: the deadline counts from this call. If it passes in between, no other answer comes.
        """
        start = self.clock()
        budget = self._budget(start, deadline, until)
        self._check(x)
        return (answer.read() if isinstance(answer, Held) else answer for answer in self._computed(x, start, budget, prior))

    def session(self, x: Tensor, prior: Answer | None = None) -> Session:
        """Computes in the background; `best()`, `wait(seconds)` and `interrupt()` from any thread. Use it with `with`."""
        start = self.clock()
        self._check(x)
        first = self._prior_answer(x, start, None, prior)
        with self._lock:
            if self._threads is None:
                self._threads = ThreadPoolExecutor(_SESSIONS, thread_name_prefix="anytime")
        return Session(self._threads, lambda: self._computed(x, start, None, prior), first)

    def _budget(self, start: float, deadline: float | None, until: float | None) -> float | None:
        if until is not None:
            if deadline is not None:
                raise ValueError("give deadline or until, not both")
            if not math.isfinite(until):
                raise ValueError(f"until must be a time of the clock in seconds, got {until!r}")
            deadline = until - start
            if not deadline > 0:
                raise ValueError(f"until={until!r} has passed: the clock is at {start!r}")
        if deadline is not None and not (deadline > 0 and math.isfinite(deadline)):
            raise ValueError(f"deadline must be a number of seconds above zero, got {deadline!r}")
        return deadline

    def _check(self, x: Tensor) -> None:
        """Refuses at the door what would fail in the middle of a stream."""
        self.model.check_input(x)
        reference = next(self.model.parameters())
        if x.device != reference.device:
            raise TypeError(f"the images are on {x.device}, the model on {reference.device}")
        if x.dtype != reference.dtype:
            raise TypeError(f"the images are {x.dtype}, the model {reference.dtype}; convert them: x.to({reference.dtype})")
        if not torch.isfinite(x).all():
            raise ValueError("the images hold NaN or infinite pixels")
        if self.profile is not None:
            self.profile.at(len(x))
            if tuple(x.shape[1:]) != tuple(self.profile.input_size):
                found, known = ("x".join(map(str, size)) for size in (x.shape[1:], self.profile.input_size))
                raise ValueError(f"the images are {found}, the profile is of {known}; resize them, or profile that size")

    def _prior_answer(self, x: Tensor, start: float, budget: float | None, prior: Answer | None) -> Answer:
        batch = len(x)
        nothing = torch.zeros(batch, dtype=torch.int64)
        levels = tuple(level.expand(batch, -1) for level in self._prior)
        if prior is not None:
            found, wanted = ([list(level.shape) for level in given] for given in (prior.levels, levels))
            if found != wanted:
                raise ValueError(f"prior must be an answer about as many images, {wanted}, got {found}")
            levels = prior.levels
        return Answer(levels, nothing + PRIOR, self.clock() - start, budget, nothing)

    def _computed(
        self, x: Tensor, start: float, budget: float | None, prior: Answer | None
    ) -> Iterator[Answer] | Iterator[Held | Answer]:
        answers = self._held if self._run.lazy else self._answers
        return answers(x, start, budget, prior)

    def _held(self, x: Tensor, start: float, budget: float | None, prior: Answer | None) -> Iterator[Answer | Held]:
        """As `_answers`, but answers are not computed until somebody reads them."""
        nothing = partial(self._prior_answer, x, start, budget, prior)
        if prior is not None:
            nothing()  # refuses one about other images
        run = LazyExecution(self._run, x)
        end = None if budget is None else start + budget - self._guard
        fits = self._fits(run, end)
        if not fits:
            yield replace(nothing(), reason="deadline")
        while fits:
            at, usual = self.clock(), self._usual(run)
            with torch.inference_mode():
                read = run.advance()
                done = mark(x.device).wait(self.clock, end)
            self._drift.notice(usual, self.clock() - at)
            if not done:
                if run.step == 1:
                    yield replace(nothing(), reason="deadline")
                return
            fits = not run.done and self._fits(run, end)
            compute = partial(self._read, read, run.step, start, budget)
            yield Held(compute, run.step, "" if fits else "complete" if run.done else "deadline")
            fits = fits and self._fits(run, end)  # who asked may have taken their time

    def _read(self, logits: Callable[[], Tensor], step: int, start: float, budget: float | None, reason: str) -> Answer:
        """The answer of one step alone, which knows of no other."""
        with torch.inference_mode():
            parts = logits().float().split(self.model.levels, 1)
            said = [self._combiner.update(self._combiner.start(self.model.num_steps), part, step)[0] for part in parts]
            arrivals = [self._send(probabilities) for probabilities in said]
        for arrival in arrivals:
            arrival.wait(self.clock, None)
        levels = tuple(arrival.value for arrival in arrivals)
        cost = self.profile.contract_macs[step - 1] if self.profile is not None else 0
        batch = len(levels[0])
        spent = torch.full((batch,), cost)
        return Answer(levels, torch.full((batch,), step), self.clock() - start, budget, spent, reason)

    def _answers(self, x: Tensor, start: float, budget: float | None, prior: Answer | None) -> Iterator[Answer]:
        nothing = partial(self._prior_answer, x, start, budget, prior)
        if prior is not None:
            nothing()  # refuses one about other images
        macs = self.profile.macs if self.profile is not None else (0,) * self.model.num_steps
        run = Execution(self._run, x, self._combiner, self._rule, macs)
        end = None if budget is None else start + budget - self._guard
        under_way: deque[_Launched] = deque()
        last, answered, fits = start, False, self._fits(run, end)
        if not fits:
            yield replace(nothing(), reason="deadline")
        while fits or under_way:
            while fits and len(under_way) < self._depth:
                under_way.append(self._launch(run))
                fits = len(under_way) < self._depth and not run.done and self._fits(run, end, under_way)
            step = under_way.popleft()
            there, after = step.arrival.wait(self.clock, end), self.clock()
            self._drift.notice(step.usual, after - max(step.at, last))
            if not there:
                if not answered:
                    yield replace(nothing(), reason="deadline")
                return
            last, answered = after, True
            if not under_way and not run.done:
                run.judge(after - start + self._seconds(run))
            fits = not run.done and self._fits(run, end, under_way)
            over = not fits and not under_way
            reason = ("stopped" if run.stopped else "complete" if run.done else "deadline") if over else ""
            levels = step.arrival.value.split(self.model.levels, 1) if len(self.model.levels) > 1 else (step.arrival.value,)
            yield Answer(levels, step.steps, after - start, budget, step.macs, reason)
            fits = fits and self._fits(run, end, under_way)  # who asked may have taken their time

    def _launch(self, run: Execution) -> _Launched:
        at, seconds, usual = self.clock(), self._seconds(run), self._usual(run)
        with torch.inference_mode():
            arrival = self._send(run.advance())
        return _Launched(arrival, run.steps, run.macs, at, seconds, usual)

    def _seconds(self, run: Execution | LazyExecution) -> float:
        """What the next step may take."""
        return 0.0 if self.profile is None else self._drift.inflation * self._plan(run.alive)[0][run.step]

    def _usual(self, run: Execution | LazyExecution) -> float:
        """What the next step took in half of all cases when it was profiled; 0 if nobody knows."""
        return 0.0 if self.profile is None else self._plan(run.alive)[1][run.step]

    def _plan(self, batch: int) -> tuple[list[float], list[float]]:
        """The quantile and the median of each step's seconds at a batch size."""
        if batch not in self._plans:
            assert self.profile is not None
            steps = self.profile.at(batch).steps
            self._plans[batch] = [step.at(self._quantile) for step in steps], [step.p50 for step in steps]
        return self._plans[batch]

    def _fits(self, run: Execution | LazyExecution, end: float | None, under_way: Sequence[_Launched] = ()) -> bool:
        """Whether the next step may be started, to be done by `end` after those under way."""
        if end is None:
            return True
        seconds = self._seconds(run) + sum(step.seconds for step in under_way)
        left = end - self.clock()
        if seconds > left >= seconds / self._drift.inflation:
            self._drift.forget()
        return seconds <= left

    def _contract(self, x: Tensor, start: float, budget: float | None, prior: Answer | None) -> Answer:
        if self.profile is None:
            raise ValueError("contract=True plans by a profile; give Predictor one: anytime.profile(model, example)")
        with torch.inference_mode():
            answer = self._prior_answer(x, start, budget, prior)
            left = math.inf if budget is None else budget - (self.clock() - start) - self._guard
            latencies = self.profile.at(len(x)).contract
            needed = [seconds.at(self._quantile) for seconds in latencies]
            fitting = [t for t, seconds in enumerate(needed, 1) if self._drift.inflation * seconds <= left]
            if not fitting:
                if min(needed) <= left:
                    self._drift.forget()
                return replace(answer, reason="deadline")
        step, at = max(fitting), self.clock()
        reason = "complete" if step == self.model.num_steps else "deadline"
        answer = self._read(lambda: self.model(x, step=step), step, start, budget, reason)
        self._drift.notice(latencies[step - 1].p50, self.clock() - at)
        return answer


def _prior_levels(sizes: Sequence[int], prior: Tensor | None) -> tuple[Tensor, ...]:
    """The prior `[K_d]` of each label level."""
    if prior is None:
        return tuple(torch.full((size,), 1 / size) for size in sizes)
    levels = prior.split(list(sizes)) if prior.shape == (sum(sizes),) else ()
    if not levels or not all(torch.isclose(level.sum(), torch.tensor(1.0), atol=1e-3) for level in levels):
        each = f" in each of the levels {tuple(sizes)}" if len(sizes) > 1 else ""
        raise ValueError(f"prior must be {sum(sizes)} probabilities that sum to 1{each}, got {list(prior.shape)}")
    return levels
