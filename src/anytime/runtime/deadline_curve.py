"""The accuracy of a model under deadlines: a pure function of its trace and of a profile of its steps."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anytime.combine import Combiner
from anytime.runtime.prior import probabilities
from anytime.runtime.profile import Profile
from anytime.support.units import deadline_seconds, is_list
from anytime.trace import Trace, labelled

Deadlines = float | str | Iterable[float | str | Tensor | None] | Tensor | None  # or any array of what a predictor takes


@dataclass(frozen=True, eq=False)
class DeadlineCurve:
    """accuracy(d) = a_t, where t is the deepest step with d_t <= d; a_0 before d_1. Right-continuous and piecewise constant.

    Attributes:
        deadlines: d_t, the shortest deadline in seconds under which answer t is given, float64 `[T]`, non-decreasing.
        accuracies: a_0, the accuracy of a miss, then a_1 .. a_T, that of each step, float64 `[T + 1]`.
    """

    deadlines: Tensor
    accuracies: Tensor

    def steps(self, deadlines: Deadlines) -> Tensor:
        """The step reached under each deadline, 0 for a miss, int64 in the shape of the deadlines.

        Args:
            deadlines: What a predictor takes, or a list, array or tensor of it: `[0.005, "5ms", None]`. One deadline has the
                shape `[]`.

        Raises:
            ValueError: One of them is NaN, or text without a unit.
            TypeError: One of them is a bool or of another type.
        """
        return torch.searchsorted(self.deadlines, _seconds(deadlines), right=True)

    def accuracy(self, deadlines: Deadlines) -> Tensor:
        """The accuracy under each deadline, float64."""
        return self.accuracies[self.steps(deadlines)]

    def expected(self, deadlines: Deadlines) -> float:
        """E[accuracy(D)] for D drawn from these deadlines, such as a log of real ones: the area over them."""
        accuracies = self.accuracy(deadlines)
        if not accuracies.numel():
            raise ValueError("deadlines is empty: give at least one, in seconds")
        return float(accuracies.mean())

    def area(self, shortest: float | str, longest: float | str, log: bool = False) -> float:
        """E[accuracy(D)] for D uniform in shortest..longest seconds, or log D with `log`: exact, without sampling.

        Args:
            shortest: A deadline as a predictor takes it, such as `"1ms"`.
            longest: Another one.
            log: Whether log D is uniform.

        Raises:
            ValueError: Not 0 <= shortest < longest, or one is no deadline or NaN; with `log`, the shortest is 0.
            TypeError: One is a bool or of another type.
        """
        low, high = deadline_seconds(shortest, "shortest"), deadline_seconds(longest, "longest")
        if low is None or high is None or not 0 <= low < high or (log and low == 0):
            above = "0 < shortest" if log else "0 <= shortest"
            raise ValueError(f"deadlines must lie in a range {above} < longest in seconds, got {shortest!r} to {longest!r}")
        edges = [low, *(d for d in self.deadlines.tolist() if low < d < high), high]
        places = torch.tensor([math.log(d) for d in edges] if log else edges, dtype=torch.float64)
        heights = self.accuracy([left for left, _ in pairwise(edges)])
        return float((heights * places.diff()).sum() / (places[-1] - places[0]))


def _seconds(deadlines: Any) -> Tensor:
    """Deadlines of any form in seconds, float64 in their shape; infinity is no deadline."""
    given = deadlines.detach().cpu() if isinstance(deadlines, Tensor) else deadlines
    if hasattr(given, "dtype"):
        given = np.asarray(given.double() if isinstance(given, Tensor) and given.is_floating_point() else given)
        if given.dtype.kind in "fiu":
            seconds = torch.from_numpy(np.array(given, np.float64, order="C"))
            if missing := int(seconds.isnan().sum()):
                raise ValueError(f"deadlines must be seconds, got {missing} of {seconds.numel()} values NaN")
            return seconds
        shape, each = given.shape, [*given.flat]
    elif not is_list(given):
        shape, each = (), [given]
    else:
        each = [*given]
        shape = (len(each),)
    values = [math.inf if (left := deadline_seconds(one)) is None else left for one in each]
    return torch.tensor(values, dtype=torch.float64).reshape(shape)


def deadline_curve(
    trace: Trace,
    profile: Profile,
    batch_size: int = 1,
    quantile: str = "p99",
    guard: float | str | Tensor = 0.0,
    prior: Any = None,
    combiner: Combiner | None = None,
    interrupt: str | None = None,
) -> DeadlineCurve:
    """The accuracy that `Predictor` reaches under every deadline, if steps take their median time.

    d_t, from which on it gives answer t, is `Profile.shortest_deadlines`.

    Args:
        trace: The answers.
        profile: The latencies of the same model.
        batch_size: Images per request.
        quantile: The quantile of the profile that must fit; with hard deadlines nothing has to fit.
        guard: Time to keep free before the deadline, as `Predictor` takes it.
        prior: The answer if no step fits, probabilities `[K]`. None: a miss counts as wrong.
        combiner: How answers are made from several steps; default: only the last step counts.
        interrupt: "operator" for hard deadlines or "step", as `Predictor` takes it (default: "step").

    Raises:
        ValueError: If trace and profile are of different models, there are several label levels, the prior is not K
            probabilities, or the profile is of an engine that cannot cancel a step.
    """
    if tuple(trace.macs.tolist()) != tuple(profile.macs):
        raise ValueError(
            f"trace and profile are of different models or image sizes: MACs {trace.macs.tolist()} and {list(profile.macs)}"
        )
    trace = labelled(trace)
    expected = None if prior is None else probabilities(prior, (trace.num_classes,))[0]
    needed = profile.shortest_deadlines(batch_size, quantile, guard, interrupt)
    labels = (trace.logits if combiner is None else combiner(trace.logits)).argmax(2)
    right = (labels == trace.labels).double().mean(1)
    missed = 0.0 if expected is None else float((trace.labels == expected.argmax()).double().mean())
    return DeadlineCurve(torch.tensor(needed, dtype=torch.float64), torch.cat([right.new_tensor([missed]), right]))
