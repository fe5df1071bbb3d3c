"""What was recorded in flight, decided once more: with another rule, profile, engine or way to interrupt."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Any

from anytime.runtime.drift import Drift
from anytime.runtime.interrupts import LEAST_RESERVE, OPERATOR, STEP, Reserve
from anytime.runtime.recorded_rules import Seen, check, judge_of, parts_of, single
from anytime.runtime.recorder import FORMAT, KIND, is_flight
from anytime.stopping.rules import ConfidenceBands, Rule
from anytime.support.folders import check_ordinary
from anytime.support.limits import MOST_STEPS, UNFIT
from anytime.support.text import one_line

_LINE = 2**20  # bytes
_ROUNDING = 1e-9  # seconds
_LONGEST = 1e9  # seconds; beyond it a deadline is none
_MOST_WORK = 20_000_000  # steps times parts of the rule, of all answers of a file; what 64 MB really hold is less


@dataclass(frozen=True)
class Decision:
    """An answer: its step (-1: the prior), the seconds until it went out, whether that was too late, and its reason."""

    step: int
    elapsed: float
    missed: bool
    reason: str


@dataclass(frozen=True)
class Recorded(Decision):
    """An answer as it was recorded, with the seconds of each step that ran and what a rule saw after it (None if unknown).

    With hard deadlines, its newest step was to be cancelled `kept` seconds before the deadline; None: it was not started.
    Contract answers and those to several images are `apart`: a flight does not hold what decides them.
    """

    deadline: float | None
    seconds: tuple[float, ...]
    seen: tuple[Seen | None, ...]
    kept: float | None = None
    apart: bool = False


@dataclass
class Flight:
    """The answers of one predictor.

    Attributes:
        facts: What describes it: model, interrupt, guard, rule, combiner, MACs, and for each step quantile and median.
        answers: Its answers, in order.
    """

    facts: dict[str, Any]
    answers: list[Recorded] = field(default_factory=list)


def read_flights(path: Path) -> tuple[list[Flight], int]:
    """The flights in a file and in the older part beside it, and the number of lines that are damaged or belong to none.

    Damaged is also what no network of this library does: more than `MOST_STEPS` steps, more than its predictor knows, or times
    beyond 1e9 s.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no flight.
    """
    old = Path(f"{os.path.realpath(path)}.1")
    for file in (path, *([old] if old.exists() else [])):
        check_ordinary(file)
        if not is_flight(file):
            raise ValueError(f"{file} is no flight; Predictor(record={path.name!r}) writes one")
    flights: dict[Any, Flight] = {}
    lost = 0
    for line in chain(_lines(old) if old.exists() else (), _lines(path)):
        try:
            data = json.loads(line)
            if data.get("kind") == KIND:
                if data["format"] != FORMAT:
                    raise ValueError(f"this version reads flights of format {FORMAT}")
                flights.setdefault(data["flight"], Flight(_facts(data)))
            else:
                flight = flights[data["flight"]]
                flight.answers.append(_recorded(data, known_steps(flight) or MOST_STEPS))
        except (ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError):
            lost += 1
    return [flight for flight in flights.values() if flight.answers], lost


def _lines(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while line := file.readline(_LINE):
            yield line


def _facts(data: Mapping[str, Any]) -> dict[str, Any]:
    """The description of a predictor, checked; raises as a missing or damaged entry does."""
    plan = [(float(needed), float(typical)) for needed, typical in data["plan"]] if data["plan"] else None
    macs = [int(cost) for cost in data["macs"]] if data["macs"] else None
    guard = float(data["guard"])
    if not all(0 <= number <= _LONGEST for number in (guard, *chain.from_iterable(plan or ()))):
        raise ValueError(f"a flight with the guard {guard!r} and the plan {plan!r}")
    if not all(0 <= cost < 2**63 for cost in macs or ()) or data["interrupt"] not in (OPERATOR, STEP):
        raise ValueError(f"a flight with {data['interrupt']!r} and {macs!r}")
    steps = int(data.get("steps", 0))  # earlier versions did not write it
    if len({len(each) for each in (plan, macs) if each}) > 1 or not 0 <= max(len(plan or macs or ()), steps) <= MOST_STEPS:
        raise ValueError("a flight whose plan and MACs are not of the same steps")
    return {**data, "guard": guard, "plan": plan, "macs": macs, "steps": max(0, steps)}


def known_steps(flight: Flight) -> int:
    """How many steps its predictor has; 0 if it does not say."""
    return len(flight.facts["macs"] or flight.facts["plan"] or ()) or flight.facts.get("steps", 0)


def _recorded(data: Mapping[str, Any], most: int) -> Recorded:
    """An answer, checked, of a predictor of at most `most` steps."""
    deadline = None if data["deadline"] is None else float(data["deadline"])
    seen = tuple(None if each is None else (*map(single, each[:2]), float(each[2]), int(each[3])) for each in data["seen"])
    seconds = tuple(map(float, data["seconds"]))
    step, elapsed = int(data["step"]), float(data["elapsed"])
    if len(seen) != len(seconds) or not all(0 <= second <= _LONGEST for second in seconds):
        raise ValueError(f"seconds are {data['seconds']!r}")
    if len(seconds) > most or not -1 <= step <= most or not 0 <= elapsed <= _LONGEST or math.isnan(deadline or 0.0):
        raise ValueError(f"step {step} after {elapsed} s, of a deadline of {deadline} s")
    reason = str(data["reason"]).partition(";")[0]
    kept = None if data.get("kept") is None else float(data["kept"])
    if kept is not None and not 0 <= kept <= _LONGEST:
        raise ValueError(f"a step was cancelled {kept} s before the deadline")
    apart = bool(data.get("contract")) or int(data.get("images", 1)) > 1
    return Recorded(step, elapsed, bool(data["missed"]), reason, deadline, seconds, seen, kept, apart)  # type: ignore[arg-type]


@dataclass(frozen=True)
class ReplaySettings:
    """What decides.

    Attributes:
        interrupt: "operator" or "step".
        guard: Seconds to keep free before a deadline.
        rule: A stopping rule; None for none.
        plan: For each step the seconds that must fit and the median; None if unknown, which counts as no time.
        macs: Cumulative MACs of each step; None if unknown.
        scale: What the recorded seconds of each step are multiplied by, as for another engine.
    """

    interrupt: str
    guard: float
    rule: Rule | None
    plan: Sequence[tuple[float, float]] | None
    macs: Sequence[int] | None = None
    scale: Sequence[float] | None = None

    def __post_init__(self) -> None:
        if self.interrupt not in (OPERATOR, STEP):
            raise ValueError(f"interrupt must be {OPERATOR!r} or {STEP!r}, got {self.interrupt!r}")
        if self.rule is not None:
            check(self.rule)

    @classmethod
    def of(cls, flight: Flight) -> ReplaySettings:
        """Those that a flight was recorded with; ValueError if its rule cannot be replayed."""
        facts = flight.facts
        try:
            rule = None if facts["stop"] is None else Rule.from_dict(facts["stop"])
        except UNFIT as error:
            raise ValueError(f"the flight's rule cannot be used ({one_line(error)}); replay another, or none") from error
        return cls(facts["interrupt"], facts["guard"], rule, facts["plan"], facts["macs"])


def replay(flight: Flight, settings: ReplaySettings) -> list[Decision | None]:
    """The decision for each answer of a flight; None if it is apart, or where a step would have run of which nothing is known.

    A step that did not run takes the median of those that did in this flight, or else the median of the plan. The slowdown of
    the machine is followed as in flight. What a rule would have seen after a step that did not run is unknown. What a call
    needs besides its steps is that of the recorded answer, or the median of those where it is known.

    Raises:
        ValueError: The settings are of fewer steps, or there is more to decide than the recorder's files hold.
    """
    check_work([(flight, settings)])
    made = iter(_replayed(Flight(flight.facts, [answer for answer in flight.answers if not answer.apart]), settings))
    return [None if answer.apart else next(made) for answer in flight.answers]


def _replayed(flight: Flight, settings: ReplaySettings) -> list[Decision | None]:
    """The decision for each answer of a flight of which none is apart."""
    steps = _steps(flight)
    for what, given in {"plan": settings.plan, "MACs": settings.macs, "scale": settings.scale}.items():
        if given is not None and len(given) < steps:
            raise ValueError(f"the flight has {steps} steps, but the {what} only {len(given)}")
    for part in parts_of(settings.rule):
        part.start(part.num_steps or steps)  # raises an error if it was never fitted
        if part.num_steps is not None and part.num_steps < steps:
            raise ValueError(f"the flight has {steps} steps, but the rule {part.kind!r} only {part.num_steps}")
    scale = settings.scale or [1.0] * steps
    columns: list[list[float]] = [[] for _ in range(steps)]
    for answer in flight.answers:
        for column, seconds in zip(columns, answer.seconds, strict=False):
            column.append(seconds)
    planned = [settings.plan[t][1] if settings.plan else None for t in range(len(columns))]
    medians = [median(column) * scale[t] if column else planned[t] for t, column in enumerate(columns)]
    drift, reserve, hard = Drift(), Reserve(), flight.facts["interrupt"] == OPERATOR
    leads = [_lead(answer, hard) for answer in flight.answers]
    usual = median([lead for lead in leads if lead is not None] or [0.0])
    delays = [_delay(answer) if hard else None for answer in flight.answers]
    late = median([delay for delay in delays if delay is not None] or [0.0])
    before = [_most(answer, usual) if lead is None else lead for answer, lead in zip(flight.answers, leads, strict=True)]
    return [
        _decided(
            answer,
            settings,
            medians,
            drift,
            reserve,
            lead,
            late if delay is None else delay,
            delay,
            flight.facts,
            fitted,
        )
        for answer, lead, delay, fitted in zip(flight.answers, before, delays, _fitted(flight, before), strict=True)
    ]


def _fitted(flight: Flight, leads: Iterable[float]) -> list[bool]:
    """Whether the last step that ended had fitted by the flight's own plan: then only the deadline would have cancelled it."""
    plan, guard, drift, found = flight.facts["plan"], flight.facts["guard"], Drift(), list[bool]()
    for answer, now in zip(flight.answers, leads, strict=True):
        limit, fits = math.inf if answer.deadline is None else answer.deadline, True
        for step in range(len(answer.seconds) + (answer.reason == "deadline")):
            needed, typical = plan[step] if plan and step < len(plan) else (0.0, 0.0)
            if drift.slowdown * needed > limit - guard - now >= needed:
                drift.forget()
            if step == len(answer.seconds):
                break
            fits = drift.slowdown * needed <= limit - guard - now and plan is not None
            now += answer.seconds[step]
            drift.notice(typical, answer.seconds[step])
        found.append(fits or flight.facts["interrupt"] == STEP)
    return found


def check_work(replays: Iterable[tuple[Flight, ReplaySettings]]) -> None:
    """Raises ValueError if there is more to decide than the recorder's files hold, which would take minutes or hours."""
    work = 0
    for flight, settings in replays:
        parts = [max(map(len, part.bands)) if isinstance(part, ConfidenceBands) else 1 for part in parts_of(settings.rule)]
        work += len(flight.answers) * _steps(flight) * max(sum(parts), 1)
    if work > _MOST_WORK:
        raise ValueError(f"its answers, steps and rules ask for {work:,} decisions, more than {_MOST_WORK:,}")


def _lead(answer: Recorded, hard: bool) -> float | None:
    """What a call took besides its steps; unknown if it ended at the deadline and not with a step."""
    if answer.step != len(answer.seconds) or (hard and answer.reason == "deadline" and answer.kept is not None):
        return None
    return max(0.0, answer.elapsed - sum(answer.seconds))


def _most(answer: Recorded, usual: float) -> float:
    """What a call usually takes besides its steps, but not more than leaves time for those that counted."""
    cancelled = answer.kept or 0.0 if answer.reason == "deadline" else 0.0  # the step after them had started by then
    end = answer.elapsed if answer.deadline is None else min(answer.elapsed, answer.deadline - cancelled)
    return max(0.0, min(usual, end - sum(answer.seconds[: max(answer.step, 0)])))


def _delay(answer: Recorded) -> float | None:
    """How long after its last step was cancelled an answer went out; unknown if none was."""
    if answer.reason != "deadline" or answer.deadline is None or answer.deadline <= 0 or answer.kept is None:
        return None
    return max(0.0, answer.elapsed - (answer.deadline - answer.kept))


def _excess(answer: Recorded, kept: float) -> float:
    """How long after it was cancelled, `kept` seconds before the deadline, the last step ended, which counted nevertheless."""
    if answer.deadline is None or (answer.reason == "deadline" and answer.kept is not None):  # `kept` is not of that step
        return 0.0
    return max(0.0, answer.elapsed - (answer.deadline - (kept if answer.kept is None else answer.kept)))


def _steps(flight: Flight) -> int:
    return max(known_steps(flight), *(len(answer.seconds) for answer in flight.answers), 0)


def _decided(
    answer: Recorded,
    settings: ReplaySettings,
    medians: Sequence[float | None],
    drift: Drift,
    reserve: Reserve,
    lead: float,
    delay: float,
    own: float | None,
    facts: Mapping[str, Any],
    fitted: bool,
) -> Decision | None:
    """What happens; with hard deadlines an answer goes out `delay` seconds after the step that follows was cancelled.

    `facts` are those of the flight, and `fitted` is what `_fitted` says of the answer. If the delay is known of the answer
    itself (`own`), the step after its last one had not ended then.
    """
    hard = settings.interrupt == OPERATOR and answer.deadline is not None and answer.deadline > 0
    limit = math.inf if answer.deadline is None else answer.deadline
    now, step, judge, risked, started = lead, 0, judge_of(settings.rule), False, None
    if answer.kept is not None and answer.kept > facts["guard"]:
        reserve.seconds = answer.kept  # what the machine had made of it

    def out(elapsed: float, reason: str) -> Decision:
        late = elapsed > limit or limit <= 0
        if risked:
            reserve.notice(late, started)
        return Decision(step or -1, elapsed, late, reason)

    while step < len(medians):
        planned = settings.plan[step] if settings.plan else (0.0, 0.0)
        needed, left = drift.slowdown * planned[0], limit - settings.guard - now
        if needed > left >= planned[0]:
            drift.forget()
        sure = needed <= left and limit > 0 and (settings.plan is not None or not hard)
        kept = 0.0 if sure else max(settings.guard, reserve.seconds if step else 0.0)
        least = drift.least * planned[1] if settings.plan else 0.0
        risked = hard and step > 0 and not sure and limit - now > LEAST_RESERVE + least
        started = kept if sure or (hard and limit - now > kept + least) else None
        if started is None:
            return out(now, "deadline")
        ratio = settings.scale[step] if settings.scale else 1.0
        seconds = answer.seconds[step] * ratio if step < len(answer.seconds) else medians[step]
        if own is not None and step == len(answer.seconds):
            seconds = max(seconds or 0.0, ratio * (answer.elapsed - lead - sum(answer.seconds)) + 2 * _ROUNDING)
        if seconds is None:
            return None
        now += seconds
        over = handed = 0.0
        if step == len(answer.seconds) - 1:
            over = _excess(answer, 0.0 if fitted else max(facts["guard"], reserve.seconds if step else 0.0))
            # in flight it ended in time, or it would not count: the way to the caller took the rest
            in_time = facts["interrupt"] == OPERATOR and answer.step == len(answer.seconds)
            handed = max(0.0, answer.elapsed - limit) if in_time else 0.0
        if hard and now > min(limit - kept + max(delay, over), limit + handed) + _ROUNDING:
            return out(limit - kept + delay, "deadline")
        drift.notice(planned[1], seconds)
        step += 1
        if settings.rule is not None and step < len(medians):
            later = drift.slowdown * settings.plan[step][0] if settings.plan else 0.0
            macs = settings.macs[step] if settings.macs else 0
            if step > len(answer.seen) and settings.rule.reads_probabilities:
                return None
            if judge(step, answer.seen[step - 1] if step <= len(answer.seen) else None, macs, now + later):
                return out(now, "stopped")
    return out(now, "complete")
