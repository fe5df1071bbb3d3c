"""The best answer by a deadline; the decisions are those of `anytime.Predictor`."""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Callable
from concurrent.futures import wait as ended
from dataclasses import replace
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import numpy as np

from anytime_edge.answer import PRIOR, Answer
from anytime_edge.decisions import BLIND, Seen, combiner, from_text, kinds_of, rule
from anytime_edge.network import Cancelled, Network, load
from anytime_edge.profile import QUANTILES, Profile
from anytime_edge.recorder import FlightRecorder

LEAST_RESERVE, LATE = 200e-6, 1e-3  # seconds that a quiet machine takes to wake a thread; the share of late answers to allow
_UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6}
_SECONDS = re.compile(r"\s*([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[+-]?[0-9]+)?)\s*(s|ms|us)\s*")


def seconds_of(given: Any, name: str = "deadline") -> float:
    """Seconds from a number or text like "5ms"; inf for None and anything above 1e9."""
    match = _SECONDS.fullmatch(given) if isinstance(given, str) else None
    number = float(match[1]) * _UNITS[match[2]] if match else math.nan if isinstance(given, str) else given
    value = np.asarray(math.inf if number is None else max(-1e10, min(number, 1e10)) if type(number) is int else number)
    if value.ndim or value.dtype.kind not in "iuf" or np.isnan(value):
        error = TypeError if value.ndim or value.dtype.kind not in "iuf" else ValueError
        raise error(f"{name} must be a number of seconds, or text with a unit like '5ms', '0.2s' or '800us', got {given!r}")
    return float(value) if value <= 1e9 else math.inf


class Predictor:
    """The best answer by a deadline, for one image at a time; any number of threads may call it.

    A step fits if now + slowdown * q_t + guard <= deadline; q_t is that quantile of the profile. With `interrupt="operator"`
    (the default) one that does not fit, or whose q_t is unknown, is risked: it starts if more time is left than L and
    nine tenths of its usual time, and is cancelled L before the deadline (the first step: `guard`). L doubles when an answer
    is late for that, and shrinks by 2^(-1/1000) when it is not, down to 0.2 ms. With "step", only what fits starts.

    Args:
        network: A folder that `anytime export --engine onnx` wrote, or a loaded one.
        profile: What `anytime profile` or `python -m anytime_edge` measured: a file, or a loaded one.
        combine: "last", "caching", "product", the name of a rule saved with the model, or values as in the manifest.
        stop: The name of a rule saved with the model, text like "confidence=0.9", or values as in the manifest.
        quantile: A quantile of the profile: "p50", "p90", "p99", "p999" or "max".
        guard: Time to keep free before the deadline.
        prior: Probabilities `[K]` (of all label levels), or values, if no step fits; by default uniform, or NaN.
        interrupt: "operator" or "step"; None: "operator". Sessions end within one operator, unless "step".
        threads: Threads that a step computes with.
        foreign: Accepts a profile measured elsewhere.
        record: A file to which each decision is written (see `FlightRecorder`).
        clock: Returns seconds.

    Raises:
        ValueError: An argument is none of these, or does not fit the network.
    """

    def __init__(
        self,
        network: str | os.PathLike[str] | Network,
        profile: str | os.PathLike[str] | Profile | None = None,
        combine: Any = None,
        stop: Any = None,
        *,
        quantile: str = "p99",
        guard: Any = 0.0,
        prior: Any = None,
        interrupt: str | None = None,
        threads: int = 1,
        foreign: bool = False,
        record: Any = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.network = network if isinstance(network, Network) else load(network, threads)
        self.profile = profile if isinstance(profile, Profile | None) else Profile.load(profile)
        if self.profile is not None:
            self.profile.check(self.network, foreign)
        if interrupt not in (None, "operator", "step") or quantile not in QUANTILES:
            raise ValueError(f"interrupt is 'operator' or 'step', quantile in {[*QUANTILES]}; got {interrupt!r}, {quantile!r}")
        kept = seconds_of(guard, "guard")
        if not 0 <= kept < math.inf:
            raise ValueError(f"guard must be at least 0 seconds, got {guard!r}")
        self.hard, self.guard, self.reserve = interrupt != "step", kept, LEAST_RESERVE
        known, macs = self.network.manifest, [step.macs for step in self.network.manifest.steps]
        self._levels = known.levels if known.metadata.get("task", "classification") == "classification" else ()
        self._bounds = [*pairwise(accumulate(self._levels, initial=0))]
        stop, combine = self._resolved(stop, combine, macs)
        self.rule = rule({"kind": "never"} if stop is None else stop, len(macs), known.levels[0])
        self.combiners = [combiner(combine, len(macs), size) for size in self._levels]
        looks_at = set() if stop is None else kinds_of(stop)
        if "deadline" in looks_at and self.profile is None:
            raise ValueError("the rule 'deadline' needs the seconds of a profile: give one")
        if not self._levels and (looks_at - BLIND or combine != {"kind": "last"}):
            raise ValueError("rules and combiners of probabilities are for classifiers, and this network is none")
        plan = [(row[quantile], row["p50"]) for row in self.profile.steps] if self.profile else None
        self.plan, self._ratio = plan or [(0.0, 0.0)] * len(macs), 1.0
        self.prior, self.clock = self._first(prior), clock
        facts: dict[str, Any] = {"run_time": "anytime_edge", "model": known.model, "guard": self.guard}
        facts |= {"interrupt": ("step", "operator")[self.hard], "stop": stop, "combine": combine, "macs": macs, "plan": plan}
        self.recorder = None if record is None else FlightRecorder(record, facts)

    def _resolved(self, stop: Any, combine: Any, macs: list[int]) -> tuple[Any, Any]:
        """The values of rule and combiner."""
        saved = self.network.manifest.metadata.get("fitted", {})
        named = {name: each["combine"] for name, each in saved.items()} | {"mixture": {"kind": "mixture", "weights": macs}}
        named |= {"product": {"kind": "product", "weights": None}, **{name: {"kind": name} for name in ("last", "caching")}}
        fitted = saved.get(stop) if isinstance(stop, str) else None
        if isinstance(stop, str):
            stop = fitted["stop"] if fitted else from_text(stop, [*saved])
        if isinstance(combine, str):
            if combine not in named:
                raise ValueError(f"no combiner {combine!r} is saved with the model; there are {[*named]}")
            combine = named[combine]
        if fitted and combine not in (None, fitted["combine"]):
            raise ValueError(f"the saved rule is of the answers of {fitted['combine']}, not of {combine}: leave combine out")
        return stop, combine or (fitted["combine"] if fitted else named["last"])

    def _first(self, given: Any) -> Answer:
        """The answer before any step."""
        shape = (1, *self.network.manifest.steps[0].outputs[0][1][1:])
        uniform = [1 / size for size in self._levels for _ in range(size)] or np.full(shape, np.nan)
        outputs = np.asarray(uniform if given is None else given, np.float32)
        levels = self.split(outputs.reshape(shape)) if outputs.size == math.prod(shape) else ()
        sound = all(abs(level.sum() - 1) < 1e-3 and level.min() >= 0 for level in levels)
        if not (sound and outputs.size == math.prod(shape)):
            kind = "probabilities that sum to 1 in each of the levels" if self._levels else "values"
            raise ValueError(f"prior must be {kind} {self._levels or shape[1:]}, got {given!r}")
        with np.errstate(divide="ignore"):
            return Answer(levels, (np.log(outputs) if levels else outputs).reshape(shape), PRIOR, 0.0, None)

    def split(self, outputs: np.ndarray) -> tuple[np.ndarray, ...]:
        """The parts `[1, K_d]` of outputs that belong to each label level; none unless the network is a classifier."""
        return tuple(outputs[:, first:end] for first, end in self._bounds)

    def __call__(
        self, frame: Any, deadline: Any = None, *, until: float | None = None, prior: Answer | None = None, bgr: bool = False
    ) -> Answer:
        """The best answer for a frame by the deadline.

        Args:
            frame: uint8 `(H, W, C)`, `(C, H, W)` or `(H, W)` of any size, or float `[1, C, H, W]` in [0, 1] of the network's.
            deadline: Seconds from now, or text like "5ms"; 0 and below has passed, None is no deadline.
            until: An absolute time of the clock instead.
            prior: The answer if there is no time for any step, such as that for the last frame.
            bgr: Whether colours come as blue, green, red.
        """
        start = self.clock()
        if until is not None and (deadline is not None or np.ndim(until) or np.asarray(until).dtype.kind not in "iuf"):
            raise ValueError(f"give deadline or until, not both, until as the clock's time: got {deadline!r} and {until!r}")
        budget = seconds_of(deadline) if until is None else seconds_of(float(until) - start, "until")
        session = Session(self, self.network.prepare(frame, bgr), start, budget, prior)
        hard = self.hard and 0 < budget < math.inf
        try:
            free = max(self.guard, session.reserve)
            session.wait(start + budget - free - self.clock() if hard else None)
            while free != (free := (now := session.now).kept or 0.0) and hard:  # a step that fits may take longer
                session.wait(start + budget - free - self.clock())
            answer, steps, kept, risked = now
        finally:  # also after KeyboardInterrupt
            session.interrupt()
        answer = replace(answer if answer.reason else answer.because("deadline"), elapsed=self.clock() - start)
        if hard and risked:
            grown, shrunk = 2 * (kept or 0.0) * answer.missed, self.reserve * 2 ** (-LATE * (not answer.missed))
            self.reserve = max(LEAST_RESERVE, grown, shrunk)
        if self.recorder:
            self.recorder.note(answer, session.steps[:steps], kept if hard else None)
        return answer

    def session(self, frame: Any, prior: Answer | None = None, bgr: bool = False) -> Session:
        """Computes in the background; `best()`, `wait(seconds)` and `interrupt()` from any thread. Use it with `with`."""
        return Session(self, start=self.clock(), x=self.network.prepare(frame, bgr), budget=math.inf, prior=prior)

    def words(self, answer: Answer) -> str:
        """An answer in words, at the label level that was chosen for its step: "bird (96 %)"."""
        known = self.network.manifest
        chosen = known.metadata.get("answer_levels")
        level = chosen["steps"][answer.step - 1] if chosen and answer.step > 0 else 0
        names, p = known.metadata.get("class_names", ()), answer.levels[level][0]
        label = sum(known.levels[:level]) + int(p.argmax())
        return f"{names[label] if names else label} ({100 * p.max():.0f} %)"

    def planned(self, step: int) -> float:
        """Seconds that step `step` + 1 takes by the profile, as slow as the machine is now; 0 without a profile."""
        return max(1.0, self._ratio - 0.1) * self.plan[step][0]

    def keeps(self, step: int, deadline: float, reserve: float) -> tuple[float | None, bool]:
        """The seconds before the deadline at which step `step` + 1 is cancelled, and whether it may make an answer late.

        They are 0 if it fits, and None if it may not start. See `anytime.runtime.interrupts.Reserve`.
        """
        seconds, left = self.planned(step), deadline - self.clock()
        if seconds > left - self.guard >= self.plan[step][0]:
            self.follow(1.0)  # or else no step would ever show that the drift is over
        sure = seconds <= left - self.guard and (self.profile is not None or not self.hard)
        kept, least = max(self.guard, reserve if step else 0.0), (self._ratio - 0.1) * self.plan[step][1]
        starts = 0.0 if sure else kept if self.hard and left > kept + least else None
        return starts, self.hard and step > 0 and not sure and left > LEAST_RESERVE + least

    def follow(self, ratio: float) -> None:
        """r <- r (1 + clip(x / r - 1, -0.2, 0.2) / 10), x being a step's seconds over the profile's median."""
        self._ratio = max(0.5, self._ratio * (1 + 0.1 * max(-0.2, min(0.2, ratio / self._ratio - 1))))


class Now(NamedTuple):
    """What a session knows after a number of steps: its answer, and what `keeps` said of the next one."""

    answer: Answer
    steps: int
    kept: float | None = None
    risked: bool = False


class Session:
    """One run in the background: `best()` never waits for it, `interrupt()` takes effect within one operator."""

    def __init__(self, predictor: Predictor, x: np.ndarray, start: float, budget: float, prior: Answer | None) -> None:
        predictor.network.check()
        base = prior or predictor.prior
        if base.outputs.shape != predictor.prior.outputs.shape:
            raise ValueError(f"prior must be an answer of this network, such as the last one, got {base.outputs.shape}")
        deadline = None if budget == math.inf else budget
        self.now = Now(Answer(base.levels, base.outputs, PRIOR, predictor.clock() - start, deadline), 0)
        self._predictor, self._call, self._stop = predictor, predictor.network.call() if predictor.hard else None, False
        # for a recorder, seconds and probabilities of each step; and what other calls may change meanwhile
        self.steps, self.reserve, self._told = list[tuple[float, Any]](), predictor.reserve, None
        self._run = predictor.network.pool.submit(self._compute, x, start, budget)

    def _compute(self, x: np.ndarray, start: float, budget: float) -> None:
        """Sets what is known step by step, with a reason if no step follows."""
        predictor, answer = self._predictor, self.now.answer

        def known(step: int, reason: str = "") -> None:
            self.now = Now(answer.because(reason), step, *keeps)

        steps, values, judged = predictor.network.manifest.steps, {(0, "images"): x}, None
        states: list[Any] = [None] * len(predictor.combiners)
        keeps = predictor.keeps(0, start + budget, self.reserve) if budget > 0 else (None, False)
        known(0, "deadline" * (keeps[0] is None))
        if keeps[0] is None:
            return
        for step, entry in enumerate(steps, 1):
            at, last = predictor.clock(), step == len(steps)
            try:
                logits, values = predictor.network.step(step, values, self._call)
            except Cancelled:
                return known(step - 1, "interrupted")
            parts = predictor.split(logits)
            made = [update(state, part, step) for update, state, part in zip(predictor.combiners, states, parts, strict=True)]
            levels, states = tuple(p for p, _ in made), [state for _, state in made]
            finite = all(math.isfinite(part.max()) for part in parts or (np.abs(logits),))  # -inf is no fault in a class
            now = predictor.clock()
            elapsed, p = now - start, levels[0] if finite and levels else None
            if (median := predictor.plan[step - 1][1]) > 0:
                predictor.follow((now - at) / median)
            if predictor.hard and elapsed > budget:
                answer = replace(answer, elapsed=elapsed) if step == 1 else answer
                return known(step - 1, "deadline" * (step == 1))
            new = (levels, logits, step) if finite else (answer.levels, answer.outputs, answer.step)
            answer = Answer(*new, elapsed, answer.deadline, entry.macs, "", answer.not_finite + (step,) * (not finite))
            self.steps.append((now - at, p))
            if not last:
                seen = Seen(step, None if p is None else p[0], steps[step].macs, elapsed + predictor.planned(step))
                stopped, judged = predictor.rule(judged, seen)
            ended = "complete" if last else "stopped" if stopped else ""
            if not ended:
                keeps = predictor.keeps(step, start + budget, self.reserve)
            known(step, reason := ended or ("deadline" if keeps[0] is None else "interrupted" * self._stop))
            if reason:
                return

    def best(self) -> Answer:
        """The best answer so far; the prior before the first step."""
        return self.now.answer

    @property
    def done(self) -> bool:
        """Whether the computation has ended."""
        return os.getpid() != self._predictor.network.process or self._run.done()

    def wait(self, seconds: Any = None) -> Answer:
        """Waits for the end, at most some seconds, then returns the best answer; raises what a step raised, once."""
        if self.now.answer.reason and os.getpid() != self._predictor.network.process:  # no thread there ends what it asks
            return self.now.answer
        self._predictor.network.check()
        over = seconds is None or ended([self._run], min(seconds_of(seconds, "seconds"), 4e6)).done
        if over and (error := self._run.exception()) and error is not self._told:
            self._told = error
            raise error
        return self.now.answer

    def interrupt(self) -> Answer:
        """Ends the computation within one operator, or with `interrupt="step"` after the step; returns the best answer."""
        self._stop = True
        if self._call is not None:
            self._call.terminate = True
        return self.now.answer

    def close(self) -> None:
        """Interrupts the computation and waits for its end."""
        self.interrupt()
        if os.getpid() == self._predictor.network.process:
            self._run.exception()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.close()
        if kind is None:
            self.wait()  # raises what a step raised
