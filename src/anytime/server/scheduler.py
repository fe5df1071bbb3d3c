"""What the worker of a server does next: a pure function of the live requests, the costs of steps, the load and the time.

A request waits until a batch enters it at some depth by `model.jump`; later batches continue requests that stand at the same
step. `decide` says which requests are answered now, and which batch runs next. The server and the simulation under a virtual
clock run this same code.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from anytime.support.names import nearest

COMPLETE, DEADLINE, STOPPED, SURE = "complete", "deadline", "stopped", "sure"  # why there is no later answer
ENOUGH = 0.999  # confidence of an answer that further steps would not change
COMPANY = 8  # requests that wait for their first answer until they are this many, while others have use for the time
BUCKETS = 16  # of latencies, in `slackfit`


@dataclass(slots=True)
class Request:
    """A live request; its times are seconds of one clock.

    Attributes:
        key: Names the request.
        arrival: When it arrived.
        deadline: When its answer must have left.
        step: Step of its best finished answer; 0 before the first.
        confidence: The largest probability of that answer.
        stopped: Whether a stopping rule accepts that answer.
    """

    key: int
    arrival: float
    deadline: float
    step: int = 0
    confidence: float = 0.0
    stopped: bool = False


@dataclass(frozen=True)
class Costs:
    """Seconds of one batch, by step and batch size; interpolated between the measured sizes, proportional beyond them.

    Attributes:
        jumps: By batch size, the seconds of `model.jump(x, t)` for t = 1..T.
        steps: By batch size, the seconds of step t for t = 1..T.
        factor: What all of them are multiplied by: how much slower the machine is now, and a reserve.
    """

    jumps: Mapping[int, Sequence[float]]
    steps: Mapping[int, Sequence[float]]
    factor: float = 1.0

    @cached_property
    def sizes(self) -> list[int]:
        """The measured batch sizes."""
        return sorted(self.jumps)

    @property
    def num_steps(self) -> int:
        """T."""
        return len(self.jumps[self.sizes[0]])

    def run(self, first: int, last: int, size: int) -> float:
        """Seconds of `size` requests from answer `first` (0: from nothing, by a jump) to answer `last`."""
        if first == 0:
            return self._at(self.jumps, last, size)
        return sum(self._at(self.steps, step, size) for step in range(first + 1, last + 1))

    def _at(self, table: Mapping[int, Sequence[float]], step: int, size: int) -> float:
        above = bisect_left(self.sizes, size)
        if above == len(self.sizes):
            return self.factor * table[self.sizes[-1]][step - 1] * size / self.sizes[-1]
        high, low = self.sizes[above], self.sizes[max(above - 1, 0)]
        share = (high - size) / (high - low) if high > low else 0.0
        return self.factor * (table[high][step - 1] * (1 - share) + table[low][step - 1] * share)


@dataclass(frozen=True)
class Load:
    """What the traffic has taught so far.

    Attributes:
        interval: Mean seconds between arrivals; infinite before the second one.
        removed: For t = 1..T - 1 the share of 1 - confidence that step t + 1 removes.
    """

    interval: float
    removed: Sequence[float]


@dataclass(frozen=True)
class Limits:
    """What the operator sets.

    Attributes:
        max_batch: Most requests in a batch.
        margin: Seconds from the end of a batch to the deadline, in which the answer is handed over.
    """

    max_batch: int = 16
    margin: float = 0.002


@dataclass(frozen=True)
class Batch:
    """Requests that stand at step `first` (0: none has begun) and go to step `last` together."""

    keys: tuple[int, ...]
    first: int
    last: int


@dataclass(frozen=True)
class Turn:
    """Requests that get their best finished answer now, with the reason, and the batch that runs next, if any."""

    answered: Mapping[int, str]
    batch: Batch | None


class View:
    """The live requests as a policy sees them.

    Attributes:
        waiting: Those without an answer, the most urgent first.
        begun: Those with an answer that one more step can improve in time, the most urgent first.
        answered: Keys of the others, with the reason.
    """

    def __init__(self, live: Sequence[Request], costs: Costs, load: Load, limits: Limits, now: float) -> None:
        self.costs, self.load, self.limits, self.now = costs, load, limits, now
        self.answered: dict[int, str] = {}
        self.waiting: list[Request] = []
        self.begun: list[Request] = []
        for request in sorted(live, key=lambda request: (request.deadline, request.key)):
            if request.step == costs.num_steps or request.stopped:
                self.answered[request.key] = STOPPED if request.stopped else COMPLETE
            elif costs.run(request.step, request.step + 1, 1) > self.left(request):
                self.answered[request.key] = DEADLINE
            else:
                (self.begun if request.step else self.waiting).append(request)

    def left(self, request: Request) -> float:
        """Seconds until a batch with this request must have ended."""
        return request.deadline - self.limits.margin - self.now

    def answer(self, requests: Sequence[Request], reason: str) -> None:
        """Answers requests now."""
        self.answered |= {request.key: reason for request in requests}

    def run(self, requests: Sequence[Request], last: int) -> Turn:
        """Runs a batch, and before that answers all whose next step could not end in time after it."""
        first, inside = requests[0].step, {request.key for request in requests}
        seconds = self.costs.run(first, last, len(requests))
        others = [request for request in self.begun if request.key not in inside]
        late = [r for r in others if seconds + self.costs.run(r.step, r.step + 1, 1) > self.left(r)]
        self.answer(late, DEADLINE)
        return Turn(self.answered, Batch(tuple(request.key for request in requests), first, last))

    def rest(self) -> Turn:
        """Runs nothing."""
        return Turn(self.answered, None)


def full(view: View) -> Turn:
    """Only whole networks: the largest batch that meets the deadlines of all in it; requests that would make it small are
    left out, and end without an answer. The batching server with early drop of Shen et al. (Nexus, SOSP 2019).
    """
    last = view.costs.num_steps
    seconds = [view.costs.run(0, last, size) for size in range(1, min(len(view.waiting), view.limits.max_batch) + 1)]
    for size in range(len(seconds), 0, -1):
        fitting = [request for request in view.waiting if seconds[size - 1] <= view.left(request)]
        if len(fitting) >= size:
            return view.run(fitting[:size], last)
    view.answer(view.waiting, DEADLINE)
    return view.rest()


def slackfit(view: View) -> Turn:
    """One depth for each batch, which is then answered: of the batches that meet the earliest deadline, those of the highest
    bucket of latencies, of these the largest, and of these the deepest (Khare et al., SuperServe, NSDI 2025).
    """
    view.answer(view.begun, DEADLINE)
    if not view.waiting:
        return view.rest()
    run, most = view.costs.run, min(len(view.waiting), view.limits.max_batch)
    sizes, depths = {most, *(2**k for k in range(most.bit_length()))}, range(1, view.costs.num_steps + 1)
    shortest = run(0, 1, 1)
    width = max(run(0, view.costs.num_steps, view.limits.max_batch) - shortest, shortest) / BUCKETS
    table = {(size, depth): run(0, depth, size) for size in sizes for depth in depths}
    fitting = [key for key, seconds in table.items() if seconds <= view.left(view.waiting[0])]
    size, depth = max(fitting, key=lambda key: (int((table[key] - shortest) / width), key))
    return view.run(view.waiting[:size], depth)


def edf(view: View) -> Turn:
    """The earliest deadline first: that request runs its next step, with all others whose next step is the same."""
    live = sorted([*view.waiting, *view.begun], key=lambda request: (request.deadline, request.key))
    if not live:
        return view.rest()
    step = live[0].step
    same = [request for request in live if request.step == step][: view.limits.max_batch]
    fitting = [n for n in range(1, len(same) + 1) if view.costs.run(step, step + 1, n) <= view.left(same[0])]
    return view.run(same[: max(fitting)], step + 1)


def greedy(view: View) -> Turn:
    """Everyone is entered at the depth that the load allows; the slack goes to those that are least sure.

    Of the batches that would continue requests, that with the largest expected gain a second is the candidate. Requests
    that wait are entered first, unless there is a candidate, and they are few and have time for it: they wait for company.
    """
    sure = [request for request in view.begun if request.confidence > ENOUGH]
    view.answer(sure, SURE)
    view.begun = [request for request in view.begun if request.confidence <= ENOUGH]
    room = _room(view, 1)
    candidate = _least_sure(view, room)
    if view.waiting:
        size, depth = _entry(view)
        few = size < COMPANY and room >= view.costs.run(0, depth, size)
        if candidate is None or not few:
            return view.run(view.waiting[:size], depth)
    return view.rest() if candidate is None else view.run(candidate, candidate[0].step + 1)


def _entry(view: View) -> tuple[int, int]:
    """How many requests enter, and the depth: the deepest at which they take no longer than as many need to arrive, meet the
    earliest deadline and leave all others the time to get as deep.
    """
    run, left, size = view.costs.run, view.left(view.waiting[0]), min(len(view.waiting), view.limits.max_batch)
    depths = range(1, view.costs.num_steps + 1)
    kept = [t for t in depths if run(0, t, size) <= min(left, size * view.load.interval)]
    depth = max((t for t in kept if size == len(view.waiting) or _room(view, t) >= 0), default=1)
    return max((n for n in range(1, size + 1) if run(0, depth, n) <= left), default=1), depth


def _room(view: View, depth: int) -> float:
    """Seconds after which those that wait must begin, so that each gets answer `depth`, in batches by urgency."""
    room, used, size = float("inf"), 0.0, view.limits.max_batch
    for start in range(0, len(view.waiting), size):
        part = view.waiting[start : start + size]
        used += view.costs.run(0, depth, len(part))
        room = min(room, view.left(part[0]) - used)
    return room


def _least_sure(view: View, room: float) -> list[Request] | None:
    """The requests of one step whose next one gains most confidence a second, within `room` seconds; None: there are none."""
    best, chosen = 0.0, None
    for step in {request.step for request in view.begun}:
        batch, doubt, rate = list[Request](), 0.0, 0.0  # rate: doubt a second
        ranked = sorted((r for r in view.begun if r.step == step), key=lambda r: (r.confidence, r.deadline, r.key))
        for request in ranked[: view.limits.max_batch]:
            seconds = view.costs.run(step, step + 1, len(batch) + 1)
            more = doubt + 1 - request.confidence
            if more / seconds < rate:
                break
            if seconds <= min(room, *(view.left(each) for each in (*batch, request))):
                batch, doubt, rate = [*batch, request], more, more / seconds
        gain = rate * _worth(view, step)
        if gain > best:
            best, chosen = gain, batch
    return chosen


def _worth(view: View, step: int) -> float:
    """The share of 1 - confidence that is removed, over the seconds as multiples of the next step's, by as many steps after
    `step` as make it largest.
    """
    remaining, worth = 1.0, 1e-9  # without any gain, steps still run where nothing else has to
    for last in range(step + 1, view.costs.num_steps + 1):
        remaining *= 1 - max(view.load.removed[last - 2], 0.0)
        worth = max(worth, (1 - remaining) * view.costs.run(step, step + 1, 1) / view.costs.run(step, last, 1))
    return worth


POLICIES: dict[str, Callable[[View], Turn]] = {"greedy": greedy, "edf": edf, "slackfit": slackfit, "full": full}


def decide(live: Sequence[Request], costs: Costs, load: Load, limits: Limits, now: float, policy: str = "greedy") -> Turn:
    """What happens now. If requests are live, at least one is answered or in the batch.

    Args:
        live: All live requests.
        costs: Seconds of batches.
        load: What the traffic has taught.
        limits: What the operator sets.
        now: Time of the requests' clock.
        policy: A name in `POLICIES`.

    Raises:
        ValueError: The policy is unknown.
    """
    if policy not in POLICIES:
        raise ValueError(f"policy must be one of {', '.join(POLICIES)}, got {policy!r}{nearest(policy, POLICIES)}")
    return POLICIES[policy](View(live, costs, load, limits, now))
