"""Stopping rules: small composable objects that decide, sample by sample, whether the answer is good enough."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from anytime.analysis.latency import selected
from anytime.model import State
from anytime.support.tagged import Tagged
from anytime.trace import Trace, require_one_level

Verdict = tuple[Tensor, State]
_ROUNDED_ONE = 1 + 1e-4  # a weighted sum of float32 probabilities may slightly exceed 1


class Rule(Tagged):
    """Decides after each step but the last which samples stop; after the last step all do.

    `a | b` stops a sample when either rule does, `a & b` when both do at the same step. `update` is pure; a state is a
    pytree of tensors with the batch in dimension 0, so `anytime.select_samples` compacts it.

    Attributes:
        num_steps: T if the rule was fitted to networks of T steps; None if it fits any.
        needs: The costs of the next step that `update` reads, "macs" or "seconds" or both.
        reads_probabilities: Whether `update` looks at the answers: then only a classifier can be stopped by the rule.
    """

    @property
    def num_steps(self) -> int | None:
        return None

    @property
    def needs(self) -> frozenset[str]:
        return frozenset()

    reads_probabilities = True

    def start(self, num_steps: int) -> State:
        """The state before the first step of a network of `num_steps` steps.

        Raises ValueError if thresholds were never fitted, or fitted to another number of steps.
        """
        if self.num_steps not in (None, num_steps):
            raise ValueError(f"this {self.kind!r} rule was fitted to {self.num_steps} steps, the model has {num_steps}")
        return None

    def update(self, state: State, step: int, probabilities: Tensor, next_macs: float, next_seconds: float) -> Verdict:
        """Which samples stop after this step, bool `[B]`, and the state after it.

        Args:
            state: From `start` or the last `update`.
            step: 1..T-1.
            probabilities: Combined answer after it, `[B, K]`.
            next_macs: Cumulative MACs per sample up to and including the next step.
            next_seconds: Seconds from the start until the expected end of the next step.
        """
        raise NotImplementedError

    def exhausted(self, next_macs: float, next_seconds: float) -> bool:
        """Whether it stops every sample for the cost of the next step, whatever the answer is: asked where that is NaN."""
        return False

    def stops(self, trace: Trace, probabilities: Tensor) -> Tensor:
        """Index 0..T-1 of the step after which each sample stops, int64 `[N]`.

        Args:
            trace: Holds the MACs and seconds of the steps.
            probabilities: `combiner(trace.logits)`, `[T, N, K]`.

        Raises:
            ValueError: As `start`; the trace has several label levels, the probabilities have another shape, or the trace
                lacks seconds that the rule needs.
        """
        require_one_level(trace)
        if probabilities.shape != trace.logits.shape:
            raise ValueError(f"probabilities must be {list(trace.logits.shape)}, got {list(probabilities.shape)}")
        if "seconds" in self.needs and trace.seconds is None:
            raise ValueError(f"the rule {self.kind!r} needs seconds, which this trace does not hold; record it with seconds")
        macs = trace.macs.tolist()
        seconds = [math.nan] * len(macs) if trace.seconds is None else trace.seconds.tolist()
        state, flags = self.start(len(macs)), []
        for step in range(1, len(macs)):
            flag, state = self.update(state, step, probabilities[step - 1], macs[step], seconds[step])
            flags.append(flag)
        flags.append(torch.ones_like(probabilities[0, :, 0], dtype=torch.bool))
        return torch.stack(flags).int().argmax(0)

    def __or__(self, other: Rule) -> AnyOf:
        return AnyOf((self, other))

    def __and__(self, other: Rule) -> AllOf:
        return AllOf((self, other))


@dataclass(frozen=True)
class Never(Rule, kind="never"):
    """Runs all steps."""

    reads_probabilities = False

    def update(self, state: State, step: int, probabilities: Tensor, next_macs: float, next_seconds: float) -> Verdict:
        return _everyone(probabilities, False), None


@dataclass(frozen=True)
class _Threshold(Rule):
    """A rule on one number per sample, with one threshold or one per step; None before they are fitted."""

    threshold: float | Sequence[float] | None = None
    largest: ClassVar[float] = math.inf
    """Largest meaningful threshold; beyond it only infinity is valid."""

    def __post_init__(self) -> None:
        if self.threshold is None:
            return
        alone = isinstance(given := _plain(self.threshold), (int, float, str))
        numbers = tuple(float(value) for value in ((given,) if alone else given))
        if not numbers or not all(number >= 0 for number in numbers):
            raise ValueError(f"thresholds of {self.kind!r} must be at least 0, one or one per step, got {given!r}")
        if wrong := [number for number in numbers if self.largest < number < math.inf]:
            raise ValueError(f"thresholds of {self.kind!r} are shares of 1, or infinity to never stop; got {wrong[0]:g}")
        object.__setattr__(self, "threshold", numbers[0] if alone else numbers)

    @property
    def num_steps(self) -> int | None:
        return len(self.threshold) if isinstance(self.threshold, tuple) else None

    def start(self, num_steps: int) -> State:
        if self.threshold is None:
            raise ValueError(
                f"the threshold of {self.kind!r} was never fitted: give one, {type(self).__name__}(0.8), "
                "or choose it on a validation trace, anytime.stopping.best_threshold(trace, budget)"
            )
        if self.num_steps == 1 < num_steps:
            raise ValueError(f"{self!r} was fitted to 1 step, the model has {num_steps}; a number without a list fits any")
        return super().start(num_steps)

    def _at(self, step: int) -> Any:
        return self.threshold[step - 1] if isinstance(self.threshold, tuple) else self.threshold


@dataclass(frozen=True)
class Confidence(_Threshold, kind="confidence"):
    """Stops where max_k p_k >= θ_t (MSDNet, Huang et al. 2018; Shallow-Deep Networks, Kaya et al. 2019).

    Args:
        threshold: θ, or θ_t for t = 1..T (the last is ignored); infinity never stops.
    """

    largest = _ROUNDED_ONE

    def update(self, state: State, step: int, probabilities: Tensor, next_macs: float, next_seconds: float) -> Verdict:
        return probabilities.amax(1) >= self._at(step), None


@dataclass(frozen=True)
class Margin(_Threshold, kind="margin"):
    """Stops where the largest probability exceeds the second by at least θ_t; of one class the second is 0.

    Args:
        threshold: θ, or θ_t for t = 1..T (the last is ignored); infinity never stops.
    """

    largest = _ROUNDED_ONE

    def update(self, state: State, step: int, probabilities: Tensor, next_macs: float, next_seconds: float) -> Verdict:
        first, second = two_largest(probabilities)[0].unbind(1)
        return first - second >= self._at(step), None


@dataclass(frozen=True)
class Entropy(_Threshold, kind="entropy"):
    """Stops where -sum_k p_k log p_k < θ_t, in nats (BranchyNet, Teerapittayanon et al. 2016); 0 never stops."""

    def update(self, state: State, step: int, probabilities: Tensor, next_macs: float, next_seconds: float) -> Verdict:
        return torch.special.entr(probabilities).sum(1) < self._at(step), None


@dataclass(frozen=True)
class Patience(Rule, kind="patience"):
    """Stops where the label was the same for `times` steps in a row; an answer of NaN has no label.

    The patience t of PABEE (Zhou et al. 2020) counts agreements between neighbouring steps: `times = t + 1`.
    """

    times: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "times", _count(self.times, "times"))

    def update(self, state: State, step: int, probabilities: Tensor, next_macs: float, next_seconds: float) -> Verdict:
        known, label = ~probabilities.isnan().any(1), probabilities.argmax(1)
        count = known.long() if state is None else ((label == state[0]) * state[1] + 1) * known
        return count >= self.times, (label, count)


@dataclass(frozen=True)
class SelectionLatency(Rule, kind="selection_latency"):
    """Stops where the same most probable class was above θ for `hold` steps in a row.

    The selection latency of Iuzzolino et al. 2021 requires that the class stays above θ to the end, which is known only in
    hindsight (`latency`); `hold` approximates it while the network runs.

    Args:
        threshold: θ in [0, 1); 0.83 in the paper, a value that a tenth of the images never reach.
        hold: At least 1.
    """

    threshold: float = 0.83
    hold: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.threshold < 1:
            raise ValueError(f"threshold must lie in [0, 1), got {self.threshold!r}")
        object.__setattr__(self, "threshold", float(self.threshold))
        object.__setattr__(self, "hold", _count(self.hold, "hold"))

    def update(self, state: State, step: int, probabilities: Tensor, next_macs: float, next_seconds: float) -> Verdict:
        confidence, label = probabilities.max(1)
        above = confidence > self.threshold
        run = above.long() if state is None else ((label == state[0]) * state[1] + 1) * above
        return run >= self.hold, (label, run)

    def latency(self, probabilities: Tensor) -> tuple[Tensor, Tensor]:
        """min{t | some class j has p_t'(j) > θ for all t' >= t}, right or wrong (Iuzzolino et al. 2021).

        Args:
            probabilities: `[T, N, K]`.

        Returns:
            The latency in steps, 1..T, int64 `[N]` (T if there is none), and whether there is one, bool `[N]`.
        """
        return selected(probabilities, self.threshold)[:2]


@dataclass(frozen=True)
class _Budget(Rule):
    """Stops all samples before the step that would exceed a budget; the first step always runs."""

    cost: ClassVar[Literal["macs", "seconds"]]

    def __post_init__(self) -> None:
        if not 0 < (value := getattr(self, self.cost)) < math.inf:
            raise ValueError(f"{self.cost} must be finite and above zero, got {value!r}")
        object.__setattr__(self, self.cost, _plain(value))

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({self.cost})

    reads_probabilities = False

    def exhausted(self, next_macs: float, next_seconds: float) -> bool:
        return (next_macs if self.cost == "macs" else next_seconds) > getattr(self, self.cost)

    def update(self, state: State, step: int, probabilities: Tensor, next_macs: float, next_seconds: float) -> Verdict:
        return _everyone(probabilities, self.exhausted(next_macs, next_seconds)), None


@dataclass(frozen=True)
class MacBudget(_Budget, kind="mac_budget"):
    """Stops all samples before the step that would exceed a budget; the first step always runs.

    Args:
        macs: Multiply-adds per sample, above zero.
    """

    cost = "macs"
    macs: float


@dataclass(frozen=True)
class Deadline(_Budget, kind="deadline"):
    """Stops all samples before the step that is expected to end late; the first step always runs.

    Args:
        seconds: Seconds from the start, above zero.
    """

    cost = "seconds"
    seconds: float


@dataclass(frozen=True)
class ConfidenceBands(Rule, kind="confidence_bands"):
    """Stops where low <= max_k p_k < high for one of the step's bands: sure answers, and those that more steps cannot improve.

    Args:
        bands: The bands `(low, high)` of each step t = 1..T; those of the last are ignored. See `value_of_computation`.
    """

    bands: Sequence[Sequence[tuple[float, float]]]

    def __post_init__(self) -> None:
        bands = tuple(tuple((float(low), float(high)) for low, high in step) for step in self.bands)
        if not bands or not all(low < high for step in bands for low, high in step):
            raise ValueError(f"bands must be (low, high) with low < high, one list per step, got {self.bands!r}")
        object.__setattr__(self, "bands", bands)

    @property
    def num_steps(self) -> int | None:
        return len(self.bands)

    def update(self, state: State, step: int, probabilities: Tensor, next_macs: float, next_seconds: float) -> Verdict:
        bands = self.bands[step - 1]
        if not bands:
            return _everyone(probabilities, False), None
        confidence = probabilities.amax(1)
        inside = [confidence >= low if high == math.inf else (confidence >= low) & (confidence < high) for low, high in bands]
        return reduce(torch.logical_or, inside), None


@dataclass(frozen=True)
class _Several(Rule):
    rules: Sequence[Rule]

    def __post_init__(self) -> None:
        if not self.rules or not all(isinstance(rule, Rule) for rule in self.rules):
            raise TypeError(f"stopping rules can only be combined with stopping rules, got {self.rules!r}")
        parts = (rule.rules if type(rule) is type(self) else (rule,) for rule in self.rules)
        object.__setattr__(self, "rules", tuple(rule for part in parts for rule in part))

    @property
    def num_steps(self) -> int | None:
        return next((rule.num_steps for rule in self.rules if rule.num_steps is not None), None)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset().union(*(rule.needs for rule in self.rules))

    @property
    def reads_probabilities(self) -> bool:  # type: ignore[override]
        return any(rule.reads_probabilities for rule in self.rules)

    def start(self, num_steps: int) -> State:
        return tuple(rule.start(num_steps) for rule in self.rules)

    def exhausted(self, next_macs: float, next_seconds: float) -> bool:
        found = (rule.exhausted(next_macs, next_seconds) for rule in self.rules)
        return any(found) if isinstance(self, AnyOf) else all(found)

    def update(self, state: State, step: int, probabilities: Tensor, next_macs: float, next_seconds: float) -> Verdict:
        given = step, probabilities, next_macs, next_seconds
        stops, states = zip(*(rule.update(part, *given) for rule, part in zip(self.rules, state, strict=True)), strict=True)
        return reduce(torch.logical_or if isinstance(self, AnyOf) else torch.logical_and, stops), states


@dataclass(frozen=True)
class AnyOf(_Several, kind="any"):
    """Stops a sample when one of the rules does; `a | b` builds it."""


@dataclass(frozen=True)
class AllOf(_Several, kind="all"):
    """Stops a sample when all the rules do at the same step; `a & b` builds it."""


def rule(name: str, **arguments: Any) -> Rule:
    """A stopping rule by name; raises ValueError if a name or argument is unknown (it names the nearest) or out of range.

    Example:
        >>> from anytime.stopping import rule
        >>> rule("confidence", threshold=0.9)
        Confidence(threshold=0.9)
    """
    return Rule.from_dict({"kind": name, **arguments})


def _everyone(probabilities: Tensor, stop: bool) -> Tensor:
    return torch.full(probabilities.shape[:1], stop, device=probabilities.device)


def two_largest(probabilities: Tensor) -> tuple[Tensor, Tensor]:
    """The two largest of the probabilities `[B, K]` and their classes, `[B, 2]`; a single class is followed by 0."""
    padded = F.pad(probabilities, (0, 1)) if probabilities.shape[1] == 1 else probabilities
    return padded.topk(2, 1)


def _plain(value: Any) -> Any:
    """Scalars and arrays of numpy and torch as numbers and lists."""
    return value.tolist() if hasattr(value, "tolist") else value


def _count(value: Any, name: str) -> int:
    value = _plain(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 1 or value // 1 != value:
        raise ValueError(f"{name} must be a whole number of steps, at least 1, got {value!r}")
    return int(value)
