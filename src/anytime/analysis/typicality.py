"""Do networks decide sooner on typical images? Centrality, held-out measures, and rank correlations with selection latency.

Source: Iuzzolino, Mozer, Bengio 2021, section 4.3 and Table 1; C-scores: Jiang et al. 2021.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from anytime.analysis.latency import Selection
from anytime.analysis.needs import require_count, require_features
from anytime.data.splits import folds, hold_out_by_lot
from anytime.support.arrays import as_labels, as_tensor
from anytime.trace import Trace, require_one_level

__all__ = [
    "Correlation",
    "RhoDifference",
    "Typicality",
    "centrality",
    "cross_validated",
    "difference",
    "estimated_cscores",
    "spearman",
    "typicality",
]

_ROUNDING = 1e-12  # of a correlation
LEAST = 4  # pairs that a correlation needs: its standard error is 1 / sqrt(N - 3)


def centrality(trace: Trace, step: int = -1) -> Tensor:
    """cos(f, w_y): the angle between the features of a step and the weights of the image's class, float64 `[N]`.

    The larger, the closer is the image to the middle of its class. (The paper calls it a distance, but it is a similarity.) It
    is nan where an image has no label or all its features are 0.

    Args:
        trace: The answers, with features and class weights.
        step: 1..T, or -1 for the last.

    Raises:
        ValueError: The trace lacks features, has several label levels, or there is no such step.
    """
    require_one_level(trace)
    features, weights = require_features(trace)
    if step != -1 and not 1 <= step <= trace.num_steps:
        raise ValueError(f"step must lie in 1..{trace.num_steps}, or be -1 for the last, got {step!r}")
    f = features[step - 1 if step > 0 else -1].double()
    w = weights[step - 1 if step > 0 else -1].double()[trace.labels.clamp(min=0)]
    cosine = (f * w).sum(1) / (f.norm(dim=1) * w.norm(dim=1))
    return cosine.masked_fill(trace.labels < 0, math.nan)


@dataclass(frozen=True)
class Correlation:
    """Spearman's rank correlation of N pairs.

    Attributes:
        rho: The correlation.
        low, high: Its percentile interval by bootstrap.
        p_value: That of rho = 0, two-sided: by Student's t, or exact where |rho| is 1.
        samples: N, without the pairs of which a number is unknown (nan).
    """

    rho: float
    low: float
    high: float
    p_value: float
    samples: int


def spearman(x: Tensor, y: Tensor, resamples: int = 1000, level: float = 0.95, seed: int = 0) -> Correlation:
    """Spearman's rho, the correlation of the ranks (the mean rank of equal values), with a bootstrap interval over the pairs.

    Args:
        x, y: `[N]`; pairs with a nan are left out.
        resamples: Bootstrap samples.
        level: The interval's level.
        seed: Draws the bootstrap's samples.

    Raises:
        ValueError: The numbers of values differ, fewer than 4 pairs are known, or all values are equal.
    """
    from scipy.stats import spearmanr

    (x, y), known = _known(x, y)
    result = spearmanr(x.numpy(), y.numpy())
    low, high = _interval(_resampled(lambda i: _rho(x[i], y[i]), known, resamples, seed), level)
    rho = float(result.statistic)
    return Correlation(rho, low, high, _exact_p_value(x) if _is_perfect(rho) else float(result.pvalue), known)


@dataclass(frozen=True)
class Typicality:
    """How a measure of typicality goes with fast decisions: Spearman's rho between it and the negative selection latency.

    Attributes:
        tied: Over all samples; those that never select a class are tied at the end.
        reached: Over those that select a class; nan if these are fewer than 4, or all have the same latency or measure.
        never: Share of the samples that never do.
    """

    tied: Correlation
    reached: Correlation
    never: float


def typicality(measure: Tensor, measured: Selection, resamples: int = 1000, level: float = 0.95, seed: int = 0) -> Typicality:
    """Correlation of typicality with negative latency: positive if typical images are decided sooner (Table 1).

    Args:
        measure: Larger for more typical images, `[N]`; nan where it is unknown.
        measured: Selection latencies of the same images.
        resamples, level, seed: As for `spearman`.

    Raises:
        ValueError: As `spearman` of all samples.
    """
    measure = as_tensor(measure, "measure")
    _same_length(measure, measured.steps)
    speed, there = -measured.steps.double(), measured.reached
    every = spearman(measure, speed, resamples, level, seed)
    kept, _ = _without_nan(measure[there], speed[there])
    if _lacks(kept):
        return Typicality(every, Correlation(math.nan, math.nan, math.nan, math.nan, len(kept[0])), measured.never)
    return Typicality(every, spearman(kept[0], kept[1], resamples, level, seed), measured.never)


@dataclass(frozen=True)
class RhoDifference:
    """The difference of two Spearman correlations over the same N samples.

    Attributes:
        difference: First rho - second rho.
        low, high: Its percentile interval by bootstrap over the samples.
        p_value: That of equal correlations, two-sided; nan where one is 1 or -1 and they differ, because its z is infinite.
        samples: N, without those of which any of the numbers is unknown (nan).
    """

    difference: float
    low: float
    high: float
    p_value: float
    samples: int


def difference(
    one: tuple[Tensor, Tensor],
    other: tuple[Tensor, Tensor],
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> RhoDifference:
    """Whether two correlations over the same samples differ, such as of centrality and speed under two losses.

    They are dependent, with r_jk of the first pair and r_hm of the second; a variable may belong to both. With Fisher's
    z = atanh r, Z = (z_jk - z_hm) sqrt((N - 3) / (2 - 2 c)) is standard normal, where c (1 - r_jk²)(1 - r_hm²) is half of
    (r_jh - r_jk r_kh)(r_km - r_kh r_hm) + (r_jm - r_jh r_hm)(r_kh - r_jk r_jh)
    + (r_jh - r_jm r_hm)(r_km - r_jk r_jm) + (r_jm - r_jk r_km)(r_kh - r_km r_hm). All r are of ranks. The variance is that of
    Pearson's correlation, which for ranks is slightly too small; the bootstrap interval does not assume it.

    Args:
        one, other: Two pairs of variables, each `[N]`.
        resamples, level, seed: As for `spearman`.

    Raises:
        ValueError: As `spearman`.

    Source: Steiger 1980 (Psychological Bulletin 87), equations 3 and 12 without pooling.
    """
    from scipy.stats import norm, rankdata

    values, known = _known(*one, *other)
    j, k, h, m = (torch.from_numpy(rankdata(value.numpy())) for value in values)
    r = torch.corrcoef(torch.stack([j, k, h, m])).clamp(-1, 1).tolist()
    first, second = r[0][1], r[2][3]
    draws = _resampled(lambda i: _rho(values[0][i], values[1][i]) - _rho(values[2][i], values[3][i]), known, resamples, seed)
    spread = 2 - 2 * _covariance(r)
    if math.isclose(first, second, abs_tol=_ROUNDING):
        p_value = 1.0
    elif _is_perfect(first) or _is_perfect(second) or spread <= 0:
        p_value = math.nan
    else:
        z = (math.atanh(first) - math.atanh(second)) * math.sqrt((known - 3) / spread)
        p_value = float(2 * norm.sf(abs(z)))
    return RhoDifference(first - second, *_interval(draws, level), p_value, known)


def cross_validated(
    measure: Callable[[Tensor, Tensor], Mapping[str, Tensor]],
    labels: Tensor,
    k: int = 10,
    seed: int = 0,
    groups: Tensor | None = None,
) -> dict[str, Tensor]:
    """Measures each sample once, by a network that was not trained on it (k-fold cross-validation).

    Args:
        measure: Maps the indices of the training samples and of the held-out samples to measures of the latter, the same in
            every fold, each `[held out]`: it trains a network, records the held-out samples and gives, say, their latency and
            centrality.
        labels: int64 `[N]`; every fold has its share of each class.
        k: Number of folds; 10 in the paper.
        seed: Draws the folds.
        groups: int64 `[N]`; samples of one group stay together.

    Returns:
        The measures of all samples, float64 `[N]`, in their order.

    Raises:
        ValueError: k is out of range, a fold lacks a measure that another has, or a measure is not of the held-out samples.
    """
    labels, pooled = as_labels(labels), dict[str, Tensor]()
    for fold, (train, held_out) in enumerate(folds(labels, k, seed, groups), 1):
        measured = measure(train, held_out)
        if fold > 1 and (other := pooled.keys() ^ measured.keys()):
            name = min(other)
            raise ValueError(
                f"every fold needs the same measures, but fold {fold} {'lacks' if name in pooled else 'adds'} {name!r}"
            )
        for name, values in measured.items():
            whole = pooled.setdefault(name, torch.zeros(len(labels), dtype=torch.float64))
            whole[held_out] = _of_held_out(values, held_out, name)
    return pooled


def estimated_cscores(
    is_right: Callable[[Tensor, Tensor], Tensor],
    labels: Tensor,
    shares: tuple[float, ...] = (0.25, 0.5, 0.75),
    repeats: int = 4,
    seed: int = 0,
    groups: Tensor | None = None,
) -> Tensor:
    """An estimate of the C-score: the share of right answers of networks that were not trained on an image, float64 `[N]`.

    For each share, `repeats` networks learn a random part of that size. The images that were held out least often are held
    out first, so with repeats >= 1 / (1 - share) each is held out at least once, up to the rounding of class sizes. The score
    is the mean over shares of the mean over the networks that did not see the image, and nan if every network of a share saw
    it. (Jiang et al. train 2,000 networks for each of 9 shares.)

    Args:
        is_right: Maps the indices of the training samples and of the held-out samples to whether a network trained on the
            former is right about the latter, `[held out]`.
        labels: int64 `[N]`; each part has its share of each class.
        shares: The shares of the samples to train on, each in (0, 1).
        repeats: Networks for each share.
        seed: Draws the parts; other seeds give other parts.
        groups: int64 `[N]`; samples of one group stay together.

    Warns:
        UserWarning: Every network of a share saw some images; their number is given.

    Raises:
        ValueError: A share is out of range, or the answers are not of the held-out samples.
    """
    if not shares or not all(0 < share < 1 for share in shares) or repeats < 1:
        raise ValueError(f"shares must lie in (0, 1) and repeats be at least 1, got {shares!r} and {repeats!r}")
    labels, generator, rates = as_labels(labels), torch.Generator().manual_seed(seed), list[Tensor]()
    group = torch.arange(len(labels)) if groups is None else torch.unique(groups, return_inverse=True)[1]
    for share in shares:
        right, judged = torch.zeros(len(labels), dtype=torch.float64), torch.zeros(len(labels), dtype=torch.float64)
        for _ in range(repeats):
            lots = torch.rand(len(labels), dtype=torch.float64, generator=generator)[group]
            ties = int(torch.randint(2**31, (), generator=generator))
            train, held_out = hold_out_by_lot(labels, 1 - share, ties, (judged + lots) / repeats, groups, exact=True)
            right[held_out] += _of_held_out(is_right(train, held_out), held_out, "right answers")
            judged[held_out] += 1
        rates.append(right / judged)  # nan: 0 / 0
    scores = torch.stack(rates).mean(0)
    if unknown := int(scores.isnan().sum()):
        warnings.warn(
            f"{unknown} of {len(scores)} images have no C-score (nan), because every network of a share saw them; "
            f"more than {repeats} repeats hold out more",
            stacklevel=2,
        )
    return scores


def _of_held_out(values: Tensor, held_out: Tensor, name: str) -> Tensor:
    """The values in float64 on the CPU; raises ValueError unless there is one for each held-out sample."""
    found = as_tensor(values, name).double()
    if found.shape != held_out.shape:
        raise ValueError(f"{name} must be of the {len(held_out)} held-out samples, got {list(found.shape)}")
    return found


def _same_length(*values: Tensor) -> None:
    lengths = [len(value) if value.ndim == 1 else list(value.shape) for value in values]
    if any(value.ndim != 1 for value in values) or len(set(lengths)) > 1:
        raise ValueError(f"a correlation needs values of the same samples, got {' and '.join(map(str, lengths))}")


def _known(*values: Tensor) -> tuple[list[Tensor], int]:
    """The values in float64 without the samples that have a nan, and their number."""
    tensors = [as_tensor(value, "the values of a correlation") for value in values]
    _same_length(*tensors)
    kept, count = _without_nan(*tensors)
    if reason := _lacks(kept):
        raise ValueError(f"a correlation needs {reason}")
    return kept, count


def _without_nan(*values: Tensor) -> tuple[list[Tensor], int]:
    exact = [value.double() for value in values]
    known = ~torch.stack(exact).isnan().any(0)
    return [value[known] for value in exact], int(known.sum())


def _lacks(kept: list[Tensor]) -> str:
    """What known values lack for a correlation; empty if nothing."""
    count = len(kept[0])
    if count < LEAST:
        return f"at least {LEAST} samples with known values, got {count}"
    same = next((value for value in kept if bool((value == value[0]).all())), None)
    return "" if same is None else f"values that differ, and all {count} are {float(same[0]):g}"


def _is_perfect(rho: float) -> bool:
    """Whether a correlation is 1 or -1, up to rounding."""
    return abs(rho) > 1 - _ROUNDING


def _exact_p_value(x: Tensor) -> float:
    """2 / n, at most 1, with the n different orders of the values: one of them has the correlation 1."""
    ties = torch.unique(x, return_counts=True)[1].double()
    return min(1.0, 2 * math.exp(float(torch.lgamma(ties + 1).sum()) - math.lgamma(len(x) + 1)))


def _rho(x: Tensor, y: Tensor) -> float:
    from scipy.stats import rankdata

    ranks = torch.from_numpy(rankdata(torch.stack([x, y]).numpy(), axis=1))
    return float(torch.corrcoef(ranks)[0, 1])


def _resampled(statistic: Callable[[Tensor], float], samples: int, resamples: int, seed: int) -> list[float]:
    """The statistic of bootstrap samples, drawn with replacement, in which it exists."""
    require_count(resamples, "resamples")
    generator = torch.Generator().manual_seed(seed)
    draws = [statistic(torch.randint(samples, (samples,), generator=generator)) for _ in range(resamples)]
    return [draw for draw in draws if not math.isnan(draw)]


def _interval(draws: list[float], level: float) -> tuple[float, float]:
    if not 0 < level < 1:
        raise ValueError(f"level must lie in (0, 1), got {level!r}")
    if not draws:
        return math.nan, math.nan
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = torch.tensor(draws, dtype=torch.float64).quantile(ends).tolist()
    return low, high


def _covariance(r: list[list[float]]) -> float:
    """The correlation of two Fisher z of dependent correlations r_jk and r_hm, from those of (j, k, h, m)."""
    jk, jh, jm, kh, km, hm = r[0][1], r[0][2], r[0][3], r[1][2], r[1][3], r[2][3]
    if _is_perfect(jk) or _is_perfect(hm):
        return 0.0
    total = (
        (jh - jk * kh) * (km - kh * hm)
        + (jm - jh * hm) * (kh - jk * jh)
        + (jh - jm * hm) * (km - jk * jm)
        + (jm - jk * km) * (kh - km * hm)
    )
    return total / 2 / ((1 - jk**2) * (1 - hm**2))
