"""Weights of the answers in the loss: plain functions of the number n of answers that return one weight each.

Learning rates are fixed, so the scale matters, and published codes differ in it: each function states its own; `normalized`
unifies them. Recipes and the command line name a scheme, with the base of an exponential: `sieve`, `exponential:0.5`.
"""

from __future__ import annotations

import functools
import math
import warnings
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, Protocol, get_args

from anytime.support.names import nearest
from anytime.support.units import deadline_seconds, is_list

__all__ = [
    "constant",
    "exponential",
    "final_only",
    "from_deadlines",
    "half_end",
    "inverse_square",
    "linear",
    "normalized",
    "one_hot",
    "sdn_ramp",
    "sieve",
]

Normalization = Literal["none", "sum", "last"]
SDN_LARGEST = (0.15, 0.3, 0.45, 0.6, 0.75, 0.9)


class TimedAnswers(Protocol):
    """What `from_deadlines` needs of an `anytime.Profile`."""

    def shortest_deadlines(self, *, quantile: str, interrupt: str | None) -> list[float]:
        """The shortest deadline in seconds under which each answer is given, non-decreasing."""


def check_interval(name: str, value: float, interval: str) -> None:
    """Raises ValueError unless a value lies in an interval such as "[0, 1)" or "(0, inf)"."""
    low, high = map(float, interval[1:-1].split(","))
    above = low < value if interval[0] == "(" else low <= value
    below = value < high if interval[-1] == ")" else value <= high
    if not (above and below):
        raise ValueError(f"{name} must lie in {interval}, got {value!r}")


def _check(n: int) -> None:
    if n < 1:
        raise ValueError(f"the number of answers must be at least 1, got {n!r}")


def constant(n: int) -> list[float]:
    """w_t = 1 for every answer t = 1..n."""
    _check(n)
    return [1.0] * n


def final_only(n: int) -> list[float]:
    """w_n = 1, all others 0: only the last answer is trained."""
    _check(n)
    return [0.0] * (n - 1) + [1.0]


def inverse_square(n: int) -> list[float]:
    """w_t = 1 / (n - t + 1)^2: the last answer weighs 1, the one before 1/4, then 1/9 (Kim 2020, eq. 4).

    Example:
        >>> from anytime.objectives.weighting import inverse_square
        >>> inverse_square(3)
        [0.1111111111111111, 0.25, 1.0]
    """
    _check(n)
    return [1.0 / (n - t + 1) ** 2 for t in range(1, n + 1)]


def linear(n: int) -> list[float]:
    """w_t from 1/4 at the first answer to 1 at the last, in equal steps (published code of Hu 2017, where they sum to log2 n).

    Example:
        >>> from anytime.objectives.weighting import linear
        >>> linear(4)
        [0.25, 0.5, 0.75, 1.0]
    """
    _check(n)
    return [1 - 0.75 * (n - t) / (n - 1) for t in range(1, n)] + [1.0]


def half_end(n: int) -> list[float]:
    """w_n = 1 and w_t = 1 / (n - 1) for t < n: the last answer has half of the total weight (Hu 2017, section 4.3).

    Example:
        >>> from anytime.objectives.weighting import half_end
        >>> half_end(5)
        [0.25, 0.25, 0.25, 0.25, 1.0]
    """
    _check(n)
    return [1.0 / (n - 1) for _ in range(n - 1)] + [1.0]


def sieve(n: int) -> list[float]:
    """w_t = 1 + nu2(n - t) for t < n, where nu2(m) is how often 2 divides m, and w_n = their sum (Hu 2017, section 3.2).

    Halves, quarters, eighths of the depth, counted from the end, weigh more; the last answer has half of the total weight.

    Example:
        >>> from anytime.objectives.weighting import sieve
        >>> sieve(9)
        [4.0, 1.0, 2.0, 1.0, 3.0, 1.0, 2.0, 1.0, 15.0]
    """
    _check(n)
    early = [float((m & -m).bit_length()) for m in range(n - 1, 0, -1)]  # m & -m is the largest power of 2 that divides m
    return [*early, sum(early) or 1.0]


def exponential(n: int, base: float) -> list[float]:
    """w_t proportional to base^t, the largest 1 (Hu 2017: expb2, expb0.5); base > 1 favours late answers, base < 1 early ones.

    Example:
        >>> from anytime.objectives.weighting import exponential
        >>> exponential(3, 2.0), exponential(3, 0.5)
        ([0.25, 0.5, 1.0], [1.0, 0.5, 0.25])
    """
    _check(n)
    check_interval("base", base, "(0, inf)")
    return [base ** (t - n if base >= 1 else t - 1) for t in range(1, n + 1)]


def one_hot(n: int, exit: int) -> list[float]:
    """OPT: w_t = 1 for t = exit in 1..n, all others 0; the network is trained for only one of its answers (Hu 2017)."""
    _check(n)
    if not 1 <= exit <= n:
        raise ValueError(f"exit must lie in 1..{n}, got {exit!r}")
    return [float(t == exit) for t in range(1, n + 1)]


def sdn_ramp(n: int, epoch: int, epochs: int, largest: Sequence[float] | None = None) -> list[float]:
    """w_t = min(tau_t, 0.01 + tau_t epoch / epochs) for t < n, and w_n = 1 (Kaya, Hong, Dumitras 2019: SDN training).

    Args:
        n: Number of answers.
        epoch: 1 in the first epoch.
        epochs: Epochs of the whole training.
        largest: tau, the final weights of the n - 1 early answers; default 0.15, 0.3, ..., 0.9 as in the paper, whose networks
            have up to 6 of them, or even steps up to 0.9 for more.

    Example:
        >>> from anytime.objectives.weighting import sdn_ramp
        >>> [round(weight, 3) for weight in sdn_ramp(3, epoch=50, epochs=100)]
        [0.085, 0.16, 1.0]
    """
    _check(n)
    if not 0 <= epoch <= epochs or epochs < 1:
        raise ValueError(f"epoch must lie in 0..epochs and epochs must be at least 1, got {epoch!r} of {epochs!r}")
    if largest is None:
        early = n - 1
        largest = SDN_LARGEST[:early] if early <= len(SDN_LARGEST) else [SDN_LARGEST[-1] * t / early for t in range(1, n)]
    if not is_list(largest) or len(largest) != n - 1:
        given = list(largest) if is_list(largest) else repr(largest)
        raise ValueError(f"largest needs {n - 1} values, one for each answer before the last, got {given}")
    if not all(0 <= tau < math.inf for tau in largest):
        raise ValueError(f"largest must be at least 0 and finite, got {list(largest)}")
    return [min(tau, 0.01 + epoch * (tau / epochs)) for tau in largest] + [1.0]


def from_deadlines(
    profile: TimedAnswers, deadlines: Iterable[Any], quantile: str = "p99", interrupt: str | None = None
) -> list[float]:
    """w_t = the share of deadlines that answer t serves: d_t <= deadline < d_{t+1}; the sum is 1.

    d_t is the shortest deadline under which `Predictor` gives answer t to a batch of one (`Profile.shortest_deadlines`).
    Deadlines before the first answer are left out, and a warning says how many. An answer that serves none has weight 0: it is
    not trained.

    Args:
        profile: The model's profile, from `anytime.profile`.
        deadlines: A sample of deadlines, e.g. from a log, each as for `Predictor`: seconds, text such as "5ms", or None.
        quantile: The quantile of the profile that must fit: "p50", "p90", "p99", "p999" or "max"; with hard deadlines nothing
            has to fit.
        interrupt: "operator" for hard deadlines or "step", as `Predictor` takes it (default: "step").

    Raises:
        ValueError: Deadlines are no list or array, there are none, all are before the first answer, one is NaN or not
            understood, the quantile is unknown, or the profile is of an engine that cannot cancel a step.
        TypeError: A deadline is a bool or of another type.
    """
    if not is_list(deadlines):
        raise ValueError(f"deadlines must be a sample such as [0.005, '8ms'], got {deadlines!r}")
    soonest = profile.shortest_deadlines(quantile=quantile, interrupt=interrupt)
    seconds = [deadline_seconds(deadline, "each of the deadlines") for deadline in deadlines]
    if not seconds:
        raise ValueError("deadlines must hold at least one, got none")
    served = [bisect_right(soonest, math.inf if each is None else each) for each in seconds]
    early, counted = served.count(0), len(served) - served.count(0)
    first = f"before the first answer, which needs {soonest[0] * 1e3:.3g} ms"
    if not counted:
        raise ValueError(f"all {early} deadlines are {first}: no answer serves them")
    if early:
        warnings.warn(f"{early} of {len(served)} deadlines are {first}, and are left out", stacklevel=2)
    return [served.count(t) / counted for t in range(1, len(soonest) + 1)]


def normalized(weights: Sequence[float], how: Normalization) -> list[float]:
    """The weights unchanged ("none"), scaled to sum 1 ("sum"), or scaled to 1 for the last answer ("last").

    Raises:
        ValueError: The scale is unknown; weights are negative, infinite, NaN or all zero; the last is zero and `how` "last".
    """
    if how not in get_args(Normalization):
        raise ValueError(f"normalize must be 'none', 'sum' or 'last', got {how!r}")
    if not is_list(weights):
        raise ValueError(f"weights must be a list, one for each answer, got {weights!r}")
    weights = [float(weight) for weight in weights]
    if not weights or not all(0 <= weight < math.inf for weight in weights) or max(weights) == 0:
        raise ValueError(f"weights must be at least 0 and not all 0, got {weights}")
    scale = {"none": 1.0, "sum": sum(weights), "last": weights[-1]}[how]
    if scale == 0:
        raise ValueError(f"normalize='last' needs a last weight above 0, got {weights}")
    return [weight / scale for weight in weights]


SCHEMES: dict[str, Callable[[int], list[float]]] = {
    scheme.__name__: scheme for scheme in (constant, final_only, inverse_square, linear, half_end, sieve)
}


def find_scheme(name: str) -> Callable[[int], list[float]]:
    """The function of n that `sieve`, `exponential:0.5` and so on name.

    Raises:
        ValueError: The scheme is unknown, or its argument is superfluous, missing or not a number above 0.
    """
    scheme, _, argument = name.partition(":")
    if name in SCHEMES:
        return SCHEMES[name]
    if scheme != "exponential":
        raise ValueError(f"unknown weights {name!r}{nearest(name, [*SCHEMES, 'exponential:BASE'])}")
    try:
        base = float(argument)
        exponential(1, base)
    except ValueError:
        raise ValueError(f"weights are exponential:BASE with a number above 0, e.g. exponential:2, got {name!r}") from None
    return functools.partial(exponential, base=base)
