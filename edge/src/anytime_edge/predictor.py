"""The best answer by a deadline; the decisions are those of `anytime.Predictor`."""

from __future__ import annotations

import math
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from anytime_edge.answer import PRIOR, Answer
from anytime_edge.combiners import SIMPLE, combiner
from anytime_edge.graph import Cancelled
from anytime_edge.network import Network, load
from anytime_edge.profile import QUANTILES, Profile
from anytime_edge.recorder import FlightRecorder
from anytime_edge.rules import Seen, from_text, needs_seconds, rule

HANDING_OVER = 200e-6  # seconds: waking the thread that waits for an answer takes longer only rarely
_UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6}


def seconds_of(given: Any, name: str = "deadline") -> float | None:
    """Seconds from a number or text like "5ms"; None, inf and anything above 1e9 is None."""
    wanted = f"{name} must be a number of seconds, or text with a unit like '5ms', '0.2s' or '800us', got {given!r}"
    if isinstance(given, str):
        match = re.fullmatch(r"\s*([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[+-]?[0-9]+)?)\s*(s|ms|us)\s*", given)
        if not match:
            raise ValueError(wanted)
        given = float(match[1]) * _UNITS[match[2]]
    value = given.item() if isinstance(given, np.generic | np.ndarray) and given.ndim == 0 else given
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(wanted)
    if math.isnan(value):
        raise ValueError(wanted)
    return None if value > 1e9 else float(value)


class Predictor:
    """The best answer by a deadline, for one image at a time; any number of threads may call it.

    With `interrupt="operator"` a step starts whenever time is left, and the deadline cancels it. With "step" it starts only if
    now + slowdown * q_t + guard <= deadline, where q_t is the profile's quantile of that step's seconds.

    Args:
        network: A folder that `anytime export --engine onnx` wrote, or a loaded one.
        profile: What `anytime profile` or `python -m anytime_edge` measured: a file, or a loaded one.
        combine: "last", "caching", "product", the name of a rule saved with the model, or values as in the manifest.
        stop: The name of a rule saved with the model, text like "confidence=0.9", or values as in the manifest.
        quantile: Of the profile: "p50", "p90", "p99", "p999" or "max".
        guard: Time to keep free before the deadline; at least 0.2 ms with "operator".
        prior: Probabilities `[K]` (of all label levels), or values, if no step fits; by default uniform, or NaN.
        interrupt: "operator" or "step".
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
        interrupt: str = "operator",
        threads: int = 1,
        foreign: bool = False,
        record: Any = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.network = load(network, threads) if isinstance(network, str | os.PathLike) else network
        known = self.network.manifest
        self.profile = Profile.load(profile) if isinstance(profile, str | os.PathLike) else profile
        if self.profile is not None:
            self.profile.check(self.network, foreign)
        if interrupt not in ("operator", "step") or quantile not in QUANTILES:
            raise ValueError(
                f"interrupt is 'operator' or 'step', quantile one of {QUANTILES}; got {interrupt!r}, {quantile!r}"
            )
        kept = seconds_of(guard, "guard")
        if kept is None or kept < 0:
            raise ValueError(f"guard must be at least 0 seconds, got {guard!r}")
        self._cancels = interrupt == "operator"
        self._guard = max(kept, HANDING_OVER) if self._cancels else kept
        self._levels = known.levels if known.task == "classification" else ()
        stop, combine = self._resolved(stop, combine)
        steps, first = len(known.steps), known.levels[0]
        self._rule = None if stop is None else rule(stop, steps, first)
        self._combiners = [combiner(combine, steps, size) for size in self._levels]
        if stop is not None and needs_seconds(stop) and self.profile is None:
            raise ValueError("the rule 'deadline' needs the seconds of a profile: give one")
        times = self.profile.steps if self.profile else []
        self._plan = [(row[quantile], row["p50"]) for row in times] or [(0.0, 0.0)] * steps
        self._ratio = self._slowdown = 1.0
        self._prior = self._first(prior)
        self.clock, self._process = clock, os.getpid()
        facts = {"run_time": "anytime_edge", "model": known.model, "interrupt": interrupt, "guard": self._guard, "stop": stop}
        costs = {"macs": [step.macs for step in known.steps], "plan": self._plan if self.profile else None}
        self.recorder = None if record is None else FlightRecorder(record, {**facts, "combine": combine, **costs})

    def _resolved(self, stop: Any, combine: Any) -> tuple[Any, Any]:
        """The values of rule and combiner."""
        saved = self.network.manifest.metadata.get("fitted", {})
        fitted = saved.get(stop) if isinstance(stop, str) else None
        if isinstance(stop, str) and fitted is None and "=" not in stop:
            raise ValueError(
                f"no rule {stop!r} is saved with the model; there are {[*saved]}, or text such as 'confidence=0.9'"
            )
        stop = fitted["stop"] if fitted else from_text(stop) if isinstance(stop, str) else stop
        if isinstance(combine, str) and combine in saved and combine not in SIMPLE:
            combine = saved[combine]["combine"]
        elif isinstance(combine, str):
            if combine not in (*SIMPLE, "mixture"):
                raise ValueError(f"no combiner {combine!r} is saved with the model; there are {[*SIMPLE, 'mixture', *saved]}")
            macs = [step.macs for step in self.network.manifest.steps]
            weights: dict[str, Any] = {"product": {"weights": None}, "mixture": {"weights": macs}}
            combine = {"kind": combine, **weights.get(combine, {})}
        if fitted and combine not in (None, fitted["combine"]):
            raise ValueError(
                f"the saved rule was fitted to the answers of {fitted['combine']}, not of {combine}: leave combine out"
            )
        return stop, combine or (fitted["combine"] if fitted else {"kind": "last"})

    def _first(self, given: Any) -> Answer:
        """The answer before any step."""
        shape = (1, *self.network.manifest.steps[0].outputs["answer"][1:])
        if given is not None:
            outputs = np.asarray(given, np.float32).reshape(shape)
        else:
            parts = [np.full((1, size), 1 / size, np.float32) for size in self._levels]
            outputs = np.concatenate(parts, 1) if parts else np.full(shape, np.nan, np.float32)
        levels = self._split(outputs)
        if not all(abs(level.sum() - 1) < 1e-3 and level.min() >= 0 for level in levels):
            raise ValueError(f"prior must be probabilities that sum to 1 in each of the levels {self._levels}, got {given!r}")
        with np.errstate(divide="ignore"):
            return Answer(levels, np.log(outputs) if levels else outputs, PRIOR, 0.0, None)

    def _split(self, outputs: np.ndarray) -> tuple[np.ndarray, ...]:
        if len(self._levels) < 2:
            return (outputs,) if self._levels else ()
        return tuple(np.split(outputs, np.cumsum(self._levels)[:-1], 1))

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
        if until is not None and deadline is not None:
            raise ValueError(f"give deadline or until, not both: got {deadline!r} and {until!r}")
        budget = seconds_of(deadline) if until is None else seconds_of(until - start, "until")
        session = Session(self, self.network.prepare(frame, bgr), start, budget, prior)
        hard = self._cancels and budget is not None and budget > 0
        answer = session.wait(start + budget - self._guard - self.clock() if hard and budget is not None else None)
        if hard:
            session.interrupt()
        if not answer.reason:
            answer = replace(answer, elapsed=self.clock() - start if hard else answer.elapsed).because("deadline")
        if self.recorder:
            self.recorder.note(answer, session.seconds, session.seen)
        return answer

    def session(self, frame: Any, prior: Answer | None = None, bgr: bool = False) -> Session:
        """Computes in the background; `best()`, `wait(seconds)` and `interrupt()` from any thread. Use it with `with`."""
        start = self.clock()
        return Session(self, self.network.prepare(frame, bgr), start, None, prior)

    def words(self, answer: Answer) -> str:
        """An answer in words, at the label level that was chosen for its step: "bird (96 %)"."""
        known = self.network.manifest
        chosen = known.metadata.get("answer_levels")
        level = chosen["steps"][answer.step - 1] if chosen and answer.step > 0 else 0
        names, p = known.metadata.get("class_names", ()), answer.levels[level][0]
        label = sum(known.levels[:level]) + int(p.argmax())
        return f"{names[label] if names else label} ({100 * p.max():.0f} %)"

    def fits(self, step: int, end: float | None) -> bool:
        """Whether step `step` + 1 may start now, to be done or cancelled at `end`."""
        if end is None or self._cancels:
            return end is None or self.clock() < end
        seconds, left = self._slowdown * self._plan[step][0], end - self.clock()
        if seconds > left >= self._plan[step][0]:
            self._follow(1.0)  # or else no step would ever show that the drift is over
        return seconds <= left

    def _follow(self, ratio: float) -> None:
        """r <- r (1 + clip(x / r - 1, -0.2, 0.2) / 10), x being a step's seconds over the profile's median."""
        self._ratio = max(0.5, self._ratio * (1 + 0.1 * max(-0.2, min(0.2, ratio / self._ratio - 1))))
        self._slowdown = max(1.0, self._ratio - 0.1)

    def answers(self, x: np.ndarray, start: float, budget: float | None, first: Answer, session: Session) -> Iterator[Answer]:
        """All answers that fit, one by one."""
        network, steps = self.network, self.network.manifest.steps
        end, values, judged = None if budget is None else start + budget - self._guard, {(0, "images"): x}, None
        states: list[Any] = [None] * len(self._levels)
        answer, step, fits = first, 0, (budget is None or budget > 0) and self.fits(0, end)
        if not fits:
            yield replace(first, elapsed=self.clock() - start).because("deadline")
        while fits:
            at, step = self.clock(), step + 1
            logits, values = network.step(step, values, session.call)
            levels, finite = [], bool(np.isfinite(logits).all())
            for level, part in enumerate(self._split(logits)):
                p, states[level] = self._combiners[level](states[level], part, step)
                levels.append(p)
            if not finite and levels:  # -inf is no fault in a class
                finite = all(math.isfinite(part.max()) for part in self._split(logits))
            now = self.clock()
            if (median := self._plan[step - 1][1]) > 0:
                self._follow((now - at) / median)
            if self._cancels and budget is not None and now - start > budget:
                if step == 1:
                    yield replace(first, elapsed=now - start).because("deadline")
                return
            spent: dict[str, Any] = {"elapsed": now - start, "macs": steps[step - 1].macs}
            if finite:
                answer = replace(answer, levels=tuple(levels), outputs=logits, step=step, **spent)
            else:
                answer = replace(answer, not_finite=(*answer.not_finite, step), **spent)
            if self.recorder:
                session.seconds.append(now - at)
                session.seen.append(levels[0] if finite and levels else None)
            stopped = False
            if self._rule is not None and step < len(steps):
                planned = now - start + self._slowdown * self._plan[step][0]
                seen = Seen(step, levels[0][0] if finite and levels else None, steps[step].macs, planned)
                stopped, judged = self._rule(judged, seen)
            done = stopped or step == len(steps)
            fits = not done and self.fits(step, end)
            reason = "" if fits else "stopped" if stopped else "complete" if done else "deadline"
            yield answer.because(reason) if reason else answer


class Session:
    """One run in the background: `best()` never waits for it, `interrupt()` takes effect within one operator."""

    def __init__(self, predictor: Predictor, x: np.ndarray, start: float, budget: float | None, prior: Answer | None) -> None:
        if os.getpid() != predictor._process:
            raise RuntimeError("this predictor belongs to the process that forked this one: make one here")
        base = prior or predictor._prior
        if base.outputs.shape != predictor._prior.outputs.shape:
            raise ValueError(f"prior must be an answer of this network, such as the last one, got {base.outputs.shape}")
        now = predictor.clock() - start
        self._best = Answer(base.levels, base.outputs, PRIOR, now, budget)
        self.call, self._network = predictor.network.call() if predictor._cancels else None, predictor.network
        self._stop, self._done = threading.Event(), threading.Event()
        self._error: BaseException | None = None
        self.seconds, self.seen = list[float](), list[Any]()  # of each step, for a recorder
        predictor.network.pool.submit(self._run, predictor.answers(x, start, budget, self._best, self))

    def _run(self, answers: Iterator[Answer]) -> None:
        try:
            for answer in answers:
                interrupted = self._stop.is_set() and not answer.reason
                self._best = answer.because("interrupted") if interrupted else answer
                if interrupted:
                    break
        except Cancelled:
            self._best = self._best.because("interrupted")
        except BaseException as error:
            self._error = error
        finally:
            self._done.set()

    def best(self) -> Answer:
        """The best answer so far; the prior before the first step."""
        return self._best

    @property
    def done(self) -> bool:
        """Whether the computation has ended."""
        return self._done.is_set()

    def wait(self, seconds: Any = None) -> Answer:
        """Waits for the end, at most some seconds, then returns the best answer; raises what a step raised."""
        longest = seconds_of(seconds, "seconds")
        self._done.wait(longest if longest is None else max(longest, 0.0))
        if self._error is not None:
            raise self._error
        return self._best

    def interrupt(self) -> Answer:
        """Ends the computation within one operator, or with `interrupt="step"` after the step; returns the best answer."""
        self._stop.set()
        if self.call is not None:
            self._network.cancel(self.call)
        return self._best

    def close(self) -> None:
        """Interrupts the computation and waits for its end."""
        self.interrupt()
        self._done.wait()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
