"""The best confidence thresholds under a mean cost, found on the answers of a validation split.

Samples stop at the first step whose confidence is at least the threshold of that step, and all stop at the last. Costs are
whole numbers here, shares of the last step's cost, so that sums are exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations

import torch
from torch import Tensor

_SCALE = 2**40  # the cost of the last step
_COARSE, _FINE = 64, 512  # thresholds tried per step, if it has more
_CELLS = 2**16  # cells of a table held at once, so that they fit into the cache
_RANDOM_STARTS, _PRICES = 8, 8

Score = Callable[[Tensor, Tensor], Tensor]
"""Maps the number of right answers and the summed cost, int64 of any shape, to the value to maximise."""
Passes = tuple[Sequence[float], Tensor]
"""Falling thresholds of a step, and the index of the first that each sample passes, int64 `[N]` (their number if none)."""


class ThresholdSearch:
    """Searches one confidence threshold per step, the last always 0.

    Args:
        confidence: Confidence of each answer, `[T, N]`.
        right: Whether each answer is right, bool `[T, N]`.
        cost: Cumulative cost of each step, `[T]`, rising.
        budget: Mean cost per sample, at least that of the first step.
    """

    def __init__(self, confidence: Tensor, right: Tensor, cost: Tensor, budget: float) -> None:
        self.confidence, self.right = confidence, right.long()
        self.cost = (cost.double() / float(cost[-1]) * _SCALE).round().long()
        samples = confidence.shape[1]
        share = min(budget / float(cost[-1]), 1.0)
        self.amount = torch.stack([self.right, self.cost[:, None].expand_as(self.right)])  # [2, T, N]
        self.limit = round(samples * share * _SCALE) + samples  # costs are rounded by half a unit each

    def within_budget(self, right: Tensor, cost: Tensor) -> Tensor:
        """Right answers, with ties broken by the lower cost; minus infinity beyond the budget."""
        return torch.where(cost <= self.limit, right - cost / (2.0 * self.limit), -math.inf)

    def single(self) -> float:
        """The best common threshold, exactly: every value of the running maximum of the confidence is tried."""
        reached = self.confidence[:-1].cummax(0).values
        if not len(reached):
            return 0.0
        values, order = reached.flatten().sort(descending=True)
        # Lowering the threshold below a value of step t moves that sample from step t + 1 to step t.
        right = (self.right[:-1] - self.right[1:]).flatten()[order].cumsum(0)
        cost = (self.cost[:-1] - self.cost[1:]).repeat_interleave(reached.shape[1])[order].cumsum(0)
        scores = self.within_budget(self.right[-1].sum() + right, reached.shape[1] * self.cost[-1] + cost)
        scores[:-1][values[1:] == values[:-1]] = -math.inf  # equal values are passed together
        never = self.within_budget(self.right[-1].sum(), reached.shape[1] * self.cost[-1])
        best = int(scores.argmax())
        return float(values[best]) if scores[best] > never else math.inf

    def per_step(self, starts: Sequence[Sequence[float]]) -> list[float]:
        """The best thresholds: exact for up to 3 steps, otherwise the best of many starts with paired moves.

        Args:
            starts: Thresholds that the result must not be worse than.
        """
        steps = len(self.cost)
        if steps == 1:
            return [0.0]
        if steps <= 3:
            grids = [self.grid(0), self.grid(1) if steps == 3 else [0.0]]
            passes = [self._passes(step, grid) for step, grid in enumerate(grids)]
            return [*self.move([0.0] * steps, (0, 1), passes, self.within_budget)[1], 0.0][:steps]
        found = [list(start) for start in (*starts, *self._random_starts(), *self._by_price(starts[0]))]
        climbed = [self.climb(start, self.within_budget, _COARSE) for start in found]
        return self.climb(max([*found, *climbed], key=self.score), self.within_budget, _FINE)

    def score(self, thresholds: Sequence[float]) -> float:
        """`within_budget` of thresholds."""
        return float(self.within_budget(*self.value(thresholds)))

    def value(self, thresholds: Sequence[float]) -> tuple[Tensor, Tensor]:
        """Right answers and summed cost."""
        stops = _first(self._stops(thresholds))
        return self.right.gather(0, stops[None]).sum(), self.cost[stops].sum()

    def grid(self, step: int, size: int | None = None) -> list[float]:
        """Thresholds to try at a step, falling from infinity: all its confidences, or `size` quantiles of them."""
        values = self.confidence[step].unique()
        if size is not None and len(values) > size:
            values = values[torch.linspace(0, len(values) - 1, size).round().long()]
        return [math.inf, *values.flip(0).tolist()]

    def climb(self, thresholds: Sequence[float], score: Score, size: int) -> list[float]:
        """Moves two thresholds at a time to their best values on grids of `size`, until no pair moves."""
        thresholds, best, before = list(thresholds), float(score(*self.value(thresholds))), math.nan
        grids = [self._passes(step, self.grid(step, size)) for step in range(len(thresholds) - 1)]
        while best != before:
            before = best
            for pair in combinations(range(len(grids)), 2):
                reached, values = self.move(thresholds, pair, [grids[step] for step in pair], score)
                if reached > best:
                    best = reached
                    for step, value in zip(pair, values, strict=True):
                        thresholds[step] = value
        return thresholds

    def move(
        self, thresholds: Sequence[float], pair: tuple[int, int], passes: Sequence[Passes], score: Score
    ) -> tuple[float, tuple[float, float]]:
        """The best score over all thresholds of two steps, and these thresholds; those of the other steps stay.

        A sample that reaches the first of the two steps leaves there, between them, at the second, or where it would leave
        without either. Cumulative sums over both grids hold the outcomes of all pairs of thresholds.
        """
        first, second = pair
        stops = self._stops(thresholds)
        arrives = ~stops[:first].any(0)
        meets = arrives & ~stops[first + 1 : second].any(0)  # reaches the second if it passes the first
        stops[[first, second]] = False
        otherwise = _first(stops)
        base = self.amount.gather(1, otherwise.expand(2, 1, -1))[:, 0]
        (first_grid, rows), (second_grid, columns) = passes
        at_first, at_second = (self.amount[:, first] - base) * arrives, (self.amount[:, second] - base) * meets
        sizes = len(first_grid) + 1, len(second_grid) + 1  # the last row and column hold samples that never leave there
        above = _sums(at_first, rows, sizes[0]).cumsum(1) + base.sum(1, keepdim=True)
        beside = _sums(at_second, columns, sizes[1]).cumsum(1)[:, :-1]
        best, place, carried = -math.inf, (0, 0), torch.zeros_like(beside)
        height = max(1, _CELLS // sizes[1])
        for start in range(0, len(first_grid), height):
            end = min(start + height, len(first_grid))
            here = ((rows >= start) & (rows < end)).nonzero()[:, 0]
            cells = (rows[here] - start) * sizes[1] + columns[here]
            table = _sums(at_second[:, here], cells, (end - start) * sizes[1]).reshape(2, end - start, sizes[1])
            table = table.cumsum(2)[:, :, :-1].cumsum(1) + carried[:, None]  # what leaves at the first step before
            carried = table[:, -1]
            scores = score(*(above[:, start:end, None] + beside[:, None] - table))
            row, column = divmod(int(scores.argmax()), scores.shape[1])
            if (reached := float(scores[row, column])) > best:
                best, place = reached, (start + row, column)
        return best, (first_grid[place[0]], second_grid[place[1]])

    def _stops(self, thresholds: Sequence[float]) -> Tensor:
        """Whether each sample would stop at each step if it reached it, bool `[T, N]`."""
        stops = self.confidence >= torch.tensor(thresholds, dtype=self.confidence.dtype)[:, None]
        stops[-1] = True
        return stops

    def _passes(self, step: int, grid: Sequence[float]) -> Passes:
        rising = torch.tensor(grid, dtype=self.confidence.dtype).flip(0)
        return grid, len(grid) - torch.searchsorted(rising, self.confidence[step].contiguous(), right=True)

    def _random_starts(self) -> Iterator[list[float]]:
        generator = torch.Generator().manual_seed(0)
        grids = [self.grid(step, _COARSE) for step in range(len(self.cost) - 1)]
        for _ in range(_RANDOM_STARTS):
            yield [*(grid[int(torch.randint(len(grid), (), generator=generator))] for grid in grids), 0.0]

    def _by_price(self, start: Sequence[float]) -> Iterator[list[float]]:
        """The best thresholds for accuracy - λ * cost, for a bisection of λ that meets the budget."""
        low, high, thresholds = -5.0, 3.0, list(start)  # powers of ten of λ
        for _ in range(_PRICES):
            middle = (low + high) / 2
            thresholds = self.climb(thresholds, _net_of(10**middle / _SCALE), _COARSE)
            yield thresholds
            low, high = (middle, high) if self.value(thresholds)[1] > self.limit else (low, middle)


def _first(flags: Tensor) -> Tensor:
    """The first step whose flag is set, else the last, int64 `[N]` from bool `[T, N]`; `argmax` is many times slower."""
    countdown = torch.arange(len(flags), 0, -1, dtype=torch.int16)[:, None]
    return (len(flags) - (flags * countdown).amax(0).long()).clamp(max=len(flags) - 1)


def _net_of(price: float) -> Score:
    return lambda right, cost: right - price * cost


def _sums(values: Tensor, places: Tensor, size: int) -> Tensor:
    """Sums of `[2, N]` values by their places `[N]`, int64 `[2, size]`."""
    return values.new_zeros(2, size).index_add_(1, places, values)
