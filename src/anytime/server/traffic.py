"""The live requests of a server, and what they teach about the load: the state that the scheduler looks at."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from anytime.server.scheduler import Batch, Load, Request

_SMOOTHING = 0.05  # weight of the newest interval between arrivals
_PRIOR = 0.3  # share of 1 - confidence that a step removes, before any has been seen
_DOUBT = 5.0  # how much 1 - confidence has to be seen before it outweighs the prior


class Traffic:
    """Requests that have arrived and are not answered yet.

    Args:
        num_steps: T.

    Attributes:
        live: The live requests by key.
    """

    def __init__(self, num_steps: int) -> None:
        self.live: dict[int, Request] = {}
        self._interval, self._last = math.inf, -math.inf
        self._before = [_DOUBT] * (num_steps - 1)
        self._after = [_DOUBT * (1 - _PRIOR)] * (num_steps - 1)

    def arrive(self, request: Request) -> None:
        """A request has arrived; its deadline counts from its arrival."""
        gap, self._last = max(request.arrival - self._last, 0.0), request.arrival
        if math.isfinite(self._interval):
            self._interval += _SMOOTHING * (gap - self._interval)
        elif 0 < gap < math.inf:  # several images of one request say nothing yet
            self._interval = gap
        self.live[request.key] = request

    def leave(self, key: int) -> Request:
        """A request is answered, or its client has gone."""
        return self.live.pop(key)

    def finish(self, batch: Batch, confidences: Sequence[float]) -> None:
        """A batch has given its answers, with these confidences; requests that have left meanwhile are passed over."""
        for key, confidence in zip(batch.keys, confidences, strict=True):
            if (request := self.live.get(key)) is None:
                continue
            if batch.first and batch.last == batch.first + 1:
                self._before[batch.first - 1] += 1 - request.confidence
                self._after[batch.first - 1] += 1 - confidence
            request.step, request.confidence = batch.last, confidence

    def load(self) -> Load:
        """What the traffic has taught so far."""
        pairs: Any = zip(self._before, self._after, strict=True)
        return Load(self._interval, [1 - after / before for before, after in pairs])
