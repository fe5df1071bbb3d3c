"""Rules with a guarantee that holds for any network and any data distribution; see docs/guarantees.md.

The loss of a sample is L = max(0, correct_T - correct_stopped), in {0, 1}: stopping early lost an answer that the full
network gets right. Its mean bounds the loss of accuracy against the full network. The only assumptions are that calibration
and future samples are exchangeable (for `certified`: independent and identically distributed), and that neither network,
combiner nor candidates were fitted on the calibration trace. One trace certifies one rule: if several are fitted to it,
with different `epsilon` or `combiner`, the best of them has no guarantee.

Samples that belong together, such as the frames of a track, are one sample. If `trace.meta["groups"]` holds a number or a
name for each sample, L is averaged within each group first, so that E[L] is the loss of a random sample of a random group,
and the groups are what must be exchangeable. None says that each sample is independent. Traces of the loaders of
`anytime.data` say either; a trace that says neither is taken for one of independent samples, with a warning.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from anytime.combine import Combiner
from anytime.stopping.choose import Answers, Outcome
from anytime.stopping.rules import Confidence, Never, Rule
from anytime.support.arrays import numbered
from anytime.trace import Trace, labelled

CANDIDATES = tuple(Confidence(threshold) for threshold in torch.linspace(12, -4, 257).sigmoid().tolist())
"""Confidence thresholds from 0.999994 to 0.018, evenly spaced in log odds, the most cautious first."""


def certified(
    trace: Trace, epsilon: float, alpha: float = 0.1, candidates: Sequence[Rule] = CANDIDATES, combiner: Combiner | None = None
) -> Outcome:
    """The boldest candidate with P(E[L] <= epsilon) >= 1 - alpha over the draw of the calibration samples.

    Learn then Test (Angelopoulos et al. 2021) with fixed-sequence testing: candidates are tested in order, each with a p-value
    of the hypothesis E[L] > epsilon, up to the first p > alpha. p is the exact P(Bin(N, epsilon) <= sum_n L_n), or for groups
    the bound of Hoeffding and Bentkus. L need not grow along the candidates. With N < log(alpha) / log(1 - epsilon) samples,
    or groups, nothing can be certified.

    Args:
        trace: The answers on a calibration split; samples are grouped by `trace.meta["groups"]`, if given.
        epsilon: The allowed loss of accuracy, in (0, 1).
        alpha: The allowed probability of exceeding it, in (0, 1).
        candidates: From cautious to bold, in an order fixed without looking at `trace`; for example the rules of
            `budgeted_curve` on another split, reversed.
        combiner: How answers are made from several steps; default `Last()`.

    Returns:
        The outcome on `trace`; its rule is `Never()` if not even the first candidate passes.

    Raises:
        ValueError: epsilon or alpha is out of range, or there is not one group for each sample.
    """
    _require_share(epsilon, "epsilon")
    _require_share(alpha, "alpha")
    trace = labelled(trace)
    groups = _declared_groups(trace)
    by_group, p_value = _means(groups), _exact if groups is None else _hoeffding_bentkus

    def passes(losses: Tensor) -> bool:
        return not p_value(by_group(losses), epsilon) > alpha

    return _boldest(Answers.of(trace, combiner), candidates, passes)


def conformal(
    trace: Trace, epsilon: float, candidates: Sequence[Rule] = CANDIDATES, combiner: Combiner | None = None
) -> Outcome:
    """The boldest candidate m with (sum_n L'_nm + 1) / (N + 1) <= epsilon: then E[L] <= epsilon for the next sample.

    Conformal risk control (Angelopoulos et al. 2024). It needs a loss that grows along the candidates, so L is replaced by
    L'_nm = max_{i <= m} L_ni. The mean is also over the draw of the calibration samples: cheaper than `certified`, which
    holds for nearly every single draw. n runs over samples or groups, as in `certified`.

    Arguments and result are those of `certified`.
    """
    _require_share(epsilon, "epsilon")
    trace = labelled(trace)
    by_group = _means(_declared_groups(trace))
    worst = torch.zeros(trace.num_samples, dtype=torch.bool)

    def passes(losses: Tensor) -> bool:
        worst.logical_or_(losses)
        grouped = by_group(worst)
        return (float(grouped.sum()) + 1) / (len(grouped) + 1) <= epsilon

    return _boldest(Answers.of(trace, combiner), candidates, passes)


def group_numbers(trace: Trace) -> Tensor | None:
    """The group of each sample, numbered from 0, int64 `[N]`; None if `trace.meta["groups"]` declares none."""
    groups = trace.meta.get("groups")
    return None if groups is None else numbered(groups)


def mean_loss(trace: Trace, rule: Rule, combiner: Combiner | None = None) -> float:
    """The mean of L on a trace: the share of samples that are right at the last step, but not where they stop.

    The trace should hold samples that the rule was not chosen on; `combiner` defaults to `Last()`.
    """
    return float(_losses(Answers.of(trace, combiner), rule).double().mean())


def _boldest(answers: Answers, candidates: Sequence[Rule], passes: Callable[[Tensor], bool]) -> Outcome:
    """The outcome of the last candidate before the first whose losses, bool `[N]`, do not pass."""
    chosen: Rule = Never()
    for rule in candidates:
        if not passes(_losses(answers, rule)):
            break
        chosen = rule
    return answers.outcome(chosen)


def _losses(answers: Answers, rule: Rule) -> Tensor:
    """Whether each sample is right at the last step but not where it stops, bool `[N]`."""
    steps = rule.stops(answers.trace, answers.probabilities)
    return answers.right[-1] & ~answers.right.gather(0, steps[None])[0]


def _declared_groups(trace: Trace) -> Tensor | None:
    """`group_numbers`, with a warning if the trace does not say whether samples belong together."""
    if "groups" not in trace.meta:
        warnings.warn(
            "this trace does not say which samples belong together, such as the frames of a track, so each counts as "
            "independent; say it in meta['groups']: a number or a name for each sample, or None if each is independent",
            stacklevel=3,
        )
    return group_numbers(trace)


def _means(groups: Tensor | None) -> Callable[[Tensor], Tensor]:
    """Turns losses `[N]` into their means by group, float64 `[G]`; without groups each sample is one."""
    if groups is None:
        return Tensor.double
    sizes = groups.bincount()
    return lambda losses: torch.bincount(groups, losses.double(), minlength=len(sizes)) / sizes


def _exact(losses: Tensor, epsilon: float) -> float:
    """P(Bin(N, epsilon) <= sum L) for losses of 0 and 1."""
    from scipy.stats import binom

    return float(binom.cdf(round(float(losses.sum())), len(losses), epsilon))


def _hoeffding_bentkus(losses: Tensor, epsilon: float) -> float:
    """min(exp(-n kl(mean L, epsilon)), e P(Bin(n, epsilon) <= ceil(sum L))) for losses in [0, 1] (Bates et al. 2021)."""
    from scipy.stats import binom

    n, mean = len(losses), float(losses.mean())
    if mean >= epsilon:
        return 1.0
    kl = (1 - mean) * math.log((1 - mean) / (1 - epsilon)) + (mean * math.log(mean / epsilon) if mean else 0.0)
    return min(math.exp(-n * kl), math.e * float(binom.cdf(math.ceil(n * mean - 1e-9), n, epsilon)))


def _require_share(value: float, name: str) -> None:
    if not 0 < value < 1:
        raise ValueError(f"{name} must lie between 0 and 1, got {value!r}")
