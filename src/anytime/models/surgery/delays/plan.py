"""Which operation of a delayed network runs when, and the values it gave."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from anytime.models.common.delay_kernels import Kernel, Smoothing
from anytime.models.surgery.delays.graph import Network


class DelayState(NamedTuple):
    """`time` is t of the next answer; `images` is the one that enters next, () where none does; `values` are those that later
    steps need of each operation, the latest last; `zeros` is what delays give at first. `moving` is 1 where each step has an
    image of its own, which is the last one unless it has changed."""

    time: int
    moving: int
    images: tuple[Tensor, ...]
    values: tuple[tuple[Any, ...], ...]
    zeros: tuple[Tensor, ...]


class Series:
    """The values of an operation at times `first`, first + 1, ...; `whole` are those of n times from `begin` on, where they
    were computed in one call and lie one after the other in the batch."""

    def __init__(self, first: int, parts: list[Any], whole: Any = None) -> None:
        self.first, self.parts = first, parts
        self.begin, self.count, self.whole = first, len(parts), whole

    def at(self, time: float) -> Any:
        """The value of one time."""
        assert time >= self.first
        return self.parts[int(time) - self.first]

    def together(self, times: Sequence[float], copies: bool) -> Any:
        """The values of several times, one after the other in the batch; None where this takes copying, if not `copies`."""
        if self.whole is not None and list(times) == list(range(self.begin, self.begin + self.count)):
            return self.whole
        return torch.cat([self.at(time) for time in times]) if copies else None

    def followed_by(self, later: Series) -> Series:
        """These values and the later ones."""
        later.first, later.parts = self.first, self.parts + later.parts
        return later

    def since(self, time: int) -> Series:
        """The values from `time` on."""
        self.first, self.parts = time, self.parts[time - self.first :]
        self.whole = self.whole if time <= self.begin else None
        return self


class Plan:
    """Which operation runs at which time, so that nothing runs twice on the same input, or earlier than it is needed.

    Operation i has values at times 0, 1, ..., `settled[i]`, and from then on the same. For the answer of time t its value of
    time t - `late[i]` is new (the delays on the way from it to the answer take that long); values before `low[i]` are never
    needed. A value is kept until all that read it, some of them through long delay lines, have done so.

    Attributes:
        first: The first time at which the answer may know the image.
        start: The time of the first answer.
        order: The operations that the answer needs, in order, without the images.
        delays: Those of them that are delays.
        dark: From this time on no delay gives zeros any more.
        span: How far back an operation reads its input.
        last: After each operation, those that no later one reads in the same step.

    Args:
        network: The operations.
        kernel: Of all delays.
        start: Time of the first answer; default: the first that knows the image.
        moving: The images change at every step, so that nothing settles.
    """

    def __init__(self, network: Network, kernel: Kernel, start: int | None = None, moving: bool = False) -> None:
        self.ops, self.output, self.moving = network.ops, network.output, moving
        count, smooth = len(self.ops), isinstance(kernel, Smoothing)
        self.settled: list[float] = [math.inf if moving else 0] * count
        for i, op in enumerate(self.ops):
            if op.inputs and not op.free:
                memory = kernel.memory if op.delay else 0
                self.settled[i] = max(self.settled[j] for j in op.inputs) + memory
        self.late: list[float] = [math.inf] * count
        self.late[self.output] = 0
        self.users: list[list[int]] = [[] for _ in self.ops]
        for i in reversed(range(count)):
            for j in self.ops[i].inputs if self.late[i] < math.inf else ():
                self.users[j].append(i)
                self.late[j] = min(self.late[j], self.late[i] + (kernel.lag if self.ops[i].delay else 0))
        self.order = [i for i, op in enumerate(self.ops) if i and self.late[i] < math.inf]
        lag = [math.inf] * count  # from the image to the operation
        for i in [0, *self.order]:
            lag[i] = min((lag[j] for j in self.ops[i].sources), default=0) + (kernel.lag if self.ops[i].delay else 0)
        self.first = int(lag[self.output])
        self.late[0] = self.first
        self.start = self.first if start is None else start
        self.span = [int(kernel.memory) if op.delay and not smooth else 0 for op in self.ops]
        self.low: list[float] = [math.inf] * count
        self.low[self.output] = self.start
        for i in reversed([0, *self.order]):
            self.low[i] = 0 if smooth and self.ops[i].delay else max(0, min(self.low[i], self.settled[i]))
            for j in self.ops[i].inputs:
                self.low[j] = min(self.low[j], self.low[i] - self.span[i])
        self.delays = [i for i in self.order if self.ops[i].delay]
        self.dark = int(max((self.late[i] for i in self.delays), default=0)) + kernel.lag if kernel.lag else 0
        self.recurrent = [smooth and op.delay for op in self.ops]
        self.last: list[list[int]] = [[] for _ in self.ops]
        for j in [0, *self.order]:
            if j != self.output:
                self.last[max(self.users[j])].append(j)

    def times(self, i: int, start: int, stop: int) -> range:
        """The times at which operation i is evaluated for the answers at times start..stop-1."""
        late = int(self.late[i])
        return range(int(max(start - late, self.low[i])), int(min(stop - 1 - late, self.settled[i])) + 1)

    def oldest(self, i: int, time: int) -> int | None:
        """The first time of which the value of operation i is needed for the answers from `time` on, None where none is."""
        wanted = [(c, self.span[c]) for c in self.users[i]] + [(i, 1)] * self.recurrent[i]
        needed = math.inf
        for c, span in wanted:
            turn = max(time - self.late[c], self.low[c])
            if turn <= self.settled[c]:
                needed = min(needed, turn - span)
        return None if needed == math.inf else int(max(0, min(needed, self.settled[i])))

    def kept(self, time: int) -> list[tuple[int, int]]:
        """The operations of which values are kept before the answer at `time`, each with the time of the first of these."""
        kept = []
        for i in [0, *self.order]:
            first, newest = self.oldest(i, time), min(time - 1 - self.late[i], self.settled[i])
            if first is not None and first <= newest:
                kept.append((i, first))
        return kept
