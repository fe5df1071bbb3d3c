"""When each operation of a delayed network runs, and the values it gave."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from anytime.models.common.delay_kernels import Kernel, Smoothing
from anytime.models.surgery.delays.graph import OpGraph


class DelayState(NamedTuple):
    """The state of a delayed network between two steps.

    Attributes:
        time: t of the next answer.
        moving: 1 if each step has a separate image, by default the previous one; otherwise 0.
        images: The image that enters next; () if none does.
        values: For each operation, the values that later steps need, the latest last.
        zeros: The initial output of each delay.
    """

    time: int
    moving: int
    images: tuple[Tensor, ...]
    values: tuple[tuple[Any, ...], ...]
    zeros: tuple[Tensor, ...]


class Series:
    """The values of an operation at times `first`, first + 1, ...

    `whole` holds the values of n times from `begin` on if one call computed them: they follow each other in the batch.
    """

    def __init__(self, first: int, parts: list[Any], whole: Any = None) -> None:
        self.first, self.parts = first, parts
        self.begin, self.count, self.whole = first, len(parts), whole

    def at(self, time: float) -> Any:
        """The value at one time."""
        assert time >= self.first
        return self.parts[int(time) - self.first]

    def batched(self, times: Sequence[float], copies: bool) -> Any:
        """The values of several times, one after the other in the batch; None if that needs a copy and `copies` is False."""
        if self.whole is not None and list(times) == list(range(self.begin, self.begin + self.count)):
            return self.whole
        return torch.cat([self.at(time) for time in times]) if copies else None

    def followed_by(self, later: Series) -> Series:
        """These values and the later ones."""
        later.first, later.parts = self.first, self.parts + later.parts
        return later

    def forget_before(self, time: int) -> None:
        """Drops the values before `time`."""
        self.first, self.parts = time, self.parts[time - self.first :]
        self.whole = self.whole if time <= self.begin else None


class DelayPlan:
    """When each operation runs: never twice on the same input, and not before an answer needs it.

    Operation i has values at times 0, 1, ..., `settled[i]`, and stays constant from then on. The answer at time t uses its
    value of time t - `lag_to_answer[i]` as the newest (the lag of the delays on the way from it to the answer); values before
    `earliest[i]` are never needed. A value is stored until every reader, some through long delay lines, has used it.

    Args:
        graph: The operations.
        kernel: The kernel of all delays.
        start: Time of the first answer; default: the first that knows the image.
        moving: The images change at every step, so nothing settles.

    Attributes:
        first: The first time at which the answer can know the image.
        start: The time of the first answer.
        order: The operations that the answer needs, in order, without the images.
        delays: The delays among them.
        zeros_until: From this time on no delay outputs zeros.
        span: How far back an operation reads its input.
        last: For each operation, those whose last reader within a step it is.
    """

    def __init__(self, graph: OpGraph, kernel: Kernel, start: int | None = None, moving: bool = False) -> None:
        self.ops, self.output, self.moving = graph.ops, graph.output, moving
        count, smooth = len(self.ops), isinstance(kernel, Smoothing)
        self.settled: list[float] = [math.inf if moving else 0] * count
        for i, op in enumerate(self.ops):
            if op.inputs and not op.timeless:
                memory = kernel.memory if op.is_delay else 0
                self.settled[i] = max(self.settled[j] for j in op.inputs) + memory
        lags = [kernel.lag if op.is_delay else 0 for op in self.ops]
        self.lag_to_answer: list[float] = [math.inf] * count
        self.lag_to_answer[self.output] = 0
        self.users: list[list[int]] = [[] for _ in self.ops]
        for i in reversed(range(count)):
            for j in self.ops[i].inputs if self.lag_to_answer[i] < math.inf else ():
                self.users[j].append(i)
                self.lag_to_answer[j] = min(self.lag_to_answer[j], self.lag_to_answer[i] + lags[i])
        self.order = [i for i, op in enumerate(self.ops) if i and self.lag_to_answer[i] < math.inf]
        lag_from_image = [math.inf] * count
        for i in [0, *self.order]:
            lag_from_image[i] = min((lag_from_image[j] for j in self.ops[i].sources), default=0) + lags[i]
        self.first = int(lag_from_image[self.output])
        self.lag_to_answer[0] = self.first
        self.start = self.first if start is None else start
        self.span = [int(kernel.memory) if op.is_delay and not smooth else 0 for op in self.ops]
        self.recurrent = [smooth and op.is_delay for op in self.ops]
        self.earliest: list[float] = [math.inf] * count
        self.earliest[self.output] = self.start
        for i in reversed([0, *self.order]):
            self.earliest[i] = 0 if self.recurrent[i] else max(0, min(self.earliest[i], self.settled[i]))
            for j in self.ops[i].inputs:
                self.earliest[j] = min(self.earliest[j], self.earliest[i] - self.span[i])
        self.delays = [i for i in self.order if self.ops[i].is_delay]
        latest = max((self.lag_to_answer[i] for i in self.delays), default=0)
        self.zeros_until = int(latest) + kernel.lag if kernel.lag else 0
        self.last: list[list[int]] = [[] for _ in self.ops]
        for j in [0, *self.order]:
            if j != self.output:
                self.last[max(self.users[j])].append(j)

    def times(self, i: int, start: int, stop: int) -> range:
        """The times at which operation i is evaluated for the answers at times start..stop-1."""
        lag = int(self.lag_to_answer[i])
        return range(int(max(start - lag, self.earliest[i])), int(min(stop - 1 - lag, self.settled[i])) + 1)

    def oldest(self, i: int, time: int) -> int | None:
        """The oldest time whose value of operation i is needed for the answers from `time` on; None if there is none."""
        readers = [(c, self.span[c]) for c in self.users[i]] + [(i, 1)] * self.recurrent[i]
        needed = math.inf
        for c, span in readers:
            turn = max(time - self.lag_to_answer[c], self.earliest[c])
            if turn <= self.settled[c]:
                needed = min(needed, turn - span)
        return None if needed == math.inf else int(max(0, min(needed, self.settled[i])))

    def live(self, time: int) -> list[tuple[int, int]]:
        """The operations with values stored before the answer at `time`, each with the time of the oldest one."""
        live = []
        for i in [0, *self.order]:
            oldest, newest = self.oldest(i, time), min(time - 1 - self.lag_to_answer[i], self.settled[i])
            if oldest is not None and oldest <= newest:
                live.append((i, oldest))
        return live
