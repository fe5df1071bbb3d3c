"""What a model is worth under deadlines: a pure function of its trace and of a profile of its steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from anytime.trace import Trace

if TYPE_CHECKING:
    from anytime.combine import Combiner
    from anytime.runtime import Profile


@dataclass(frozen=True, eq=False)
class DeadlineCurve:
    """accuracy(d) = a_t, t the deepest step with d_t <= d; a_0 before d_1: right-continuous, constant in between.

    Attributes:
        deadlines: d_t, the shortest deadline under which step t is run, seconds, float64 `[T]`, not falling.
        accuracies: a_0, a_1 .. a_T: of a miss, then of each step, float64 `[T + 1]`.
    """

    deadlines: Tensor
    accuracies: Tensor

    def steps(self, deadlines: Sequence[float] | Tensor) -> Tensor:
        """The step reached under each deadline in seconds, 0 for a miss, int64."""
        return torch.searchsorted(self.deadlines, torch.as_tensor(deadlines, dtype=torch.float64), right=True)

    def accuracy(self, deadlines: Sequence[float] | Tensor) -> Tensor:
        """The accuracy under each deadline in seconds, float64."""
        return self.accuracies[self.steps(deadlines)]

    def expected(self, deadlines: Sequence[float] | Tensor) -> float:
        """E[accuracy(D)], D drawn from these deadlines: the area under the curve over their distribution.

        Args:
            deadlines: A sample in seconds, such as a log of those that were met with.
        """
        found = self.accuracy(deadlines)
        if not found.numel():
            raise ValueError("deadlines is empty: give at least one, in seconds")
        return float(found.mean())

    def area(self, shortest: float, longest: float, log: bool = False) -> float:
        """E[accuracy(D)], D uniform in shortest..longest seconds, or with `log` its logarithm: exact, no sampling.

        Raises:
            ValueError: Not 0 <= shortest < longest < infinity, or 0 as the shortest with `log`.
        """
        if not 0 <= shortest < longest < math.inf or (log and shortest == 0):
            above = "0 < shortest" if log else "0 <= shortest"
            raise ValueError(f"deadlines must lie in a range {above} < longest in seconds, got {shortest!r} to {longest!r}")
        inner = [d for d in self.deadlines.tolist() if shortest < d < longest]
        edges = [shortest, *inner, longest]
        places = torch.tensor([math.log(d) for d in edges] if log else edges, dtype=torch.float64)
        heights = self.accuracy([low for low, _ in pairwise(edges)])
        return float((heights * places.diff()).sum() / (places[-1] - places[0]))


def deadline_curve(
    trace: Trace,
    profile: Profile,
    batch_size: int = 1,
    quantile: str = "p99",
    guard: float = 0.0,
    prior: Tensor | None = None,
    combiner: Combiner | None = None,
) -> DeadlineCurve:
    """The accuracy that `Predictor` reaches under every deadline, which it learns only when time is up.

    Step t is run if (median seconds until answer t - 1) + (quantile of step t) + guard <= deadline, as `Predictor` does where
    the steps before took their median time; d_t is the largest left side up to t.

    Args:
        trace: The answers.
        profile: The latencies of the same model.
        batch_size: Images per request.
        quantile: Which of the profile's quantiles must fit.
        guard: Seconds kept free before the deadline.
        prior: Probabilities `[K]` that are the answer if no step fits. None: a miss counts as wrong.
        combiner: Makes the answers of several steps' outputs; default the last alone.

    Raises:
        ValueError: A trace and a profile of different models; several label levels; a prior of another length.
    """
    if tuple(trace.macs.tolist()) != tuple(profile.macs):
        raise ValueError(
            f"trace and profile are of different models or image sizes: MACs {trace.macs.tolist()} and {list(profile.macs)}"
        )
    if trace.levels:
        raise ValueError(f"this trace has {len(trace.levels)} label levels; pick one: trace.level(0)")
    if prior is not None and prior.shape != (trace.num_classes,):
        raise ValueError(f"prior must be {trace.num_classes} probabilities, got {list(prior.shape)}")
    latencies = profile.at(batch_size)
    before = [0.0, *(reached.p50 for reached in latencies.reached[:-1])]
    needed = [at + step.at(quantile) + guard for at, step in zip(before, latencies.steps, strict=True)]
    labels = (trace.logits if combiner is None else combiner(trace.logits)).argmax(2)
    right = (labels == trace.labels).double().mean(1)
    missed = 0.0 if prior is None else float((trace.labels == prior.argmax()).double().mean())
    deadlines = torch.tensor(needed, dtype=torch.float64).cummax(0).values
    return DeadlineCurve(deadlines, torch.cat([right.new_tensor([missed]), right]))
