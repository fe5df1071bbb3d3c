"""How alike representations are, between steps and layers of a network: RSA and linear CKA.

Activations are rows `[N, ...]` of the same N images; everything after the first dimension counts as one vector.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from anytime.analysis.needs import require_layers
from anytime.support.arrays import as_tensor
from anytime.trace import Trace

__all__ = ["dissimilarities", "linear_cka", "rsa", "similarity"]

_ROUNDING = 1e-12  # of float64, relative


def linear_cka(x: Tensor, y: Tensor) -> float:
    """|Y'X|² / (|X'X| |Y'Y|), X and Y centred over the images, |.| the Frobenius norm.

    It lies in [0, 1] and is 1 if one is the other up to a rotation, a shift and a factor; nan if x or y is the same for all
    images. It is computed from products F x F, or N x N if there are more features than images.

    Args:
        x, y: `[N, ...]`, of any two sizes.

    Raises:
        ValueError: The numbers of images differ or are below 2, or a value is NaN.

    Source: Kornblith, Norouzi, Lee, Hinton, ICML 2019.
    """
    x, y = _rows(x, y, 2, "linear CKA")
    sizes = x.norm(), y.norm()
    x, y = x - x.mean(0), y - y.mean(0)
    if any(part.norm() <= _ROUNDING * size for part, size in zip((x, y), sizes, strict=True)):
        return math.nan
    if max(x.shape[1], y.shape[1]) <= len(x):
        products, own = (y.T @ x).norm() ** 2, (x.T @ x).norm() * (y.T @ y).norm()
    else:
        k, m = x @ x.T, y @ y.T
        products, own = (k * m).sum(), k.norm() * m.norm()
    return float(products / own)


def rsa(x: Tensor, y: Tensor) -> float:
    """Spearman's rho of the dissimilarities 1 - r of all pairs of images, r being Pearson's correlation of two vectors.

    nan if all pairs of x or of y are equally far apart.

    Args:
        x, y: `[N, ...]`, of any two sizes.

    Raises:
        ValueError: The numbers of images differ or are below 3, a value is NaN, or a vector has no variance.

    Source: Kriegeskorte, Mur, Bandettini 2008 (representational similarity analysis).
    """
    from scipy.stats import rankdata

    x, y = _rows(x, y, 3, "RSA")
    # Rounding errors would order pairs that are equally far apart.
    exact = [dissimilarities(part).numpy().round(12) for part in (x, y)]
    ranks = torch.stack([torch.from_numpy(rankdata(part)) for part in exact])
    ranks = ranks - ranks.mean(1, keepdim=True)
    lengths = ranks.norm(dim=1).prod()
    return float(ranks.prod(0).sum() / lengths) if lengths > 0 else math.nan


def dissimilarities(x: Tensor) -> Tensor:
    """1 - r of all pairs i < j of rows of x `[N, ...]`, in the order (1, 2), (1, 3), ..., float64 `[N (N - 1) / 2]`.

    Raises:
        ValueError: A row has no variance, so that its correlations do not exist.
    """
    rows = x.double().flatten(1)
    rows = rows - rows.mean(1, keepdim=True)
    lengths = rows.norm(dim=1, keepdim=True)
    if bool((flat := lengths[:, 0] <= _ROUNDING * x.double().flatten(1).norm(dim=1)).any()):
        count, first = int(flat.sum()), int(flat.nonzero()[0])
        raise ValueError(f"RSA correlates vectors, but {count} of {len(rows)} have no variance, the first at {first}")
    rows = rows / lengths
    i, j = torch.triu_indices(len(rows), len(rows), 1)
    return 1 - (rows @ rows.T)[i, j]


def similarity(
    trace: Trace,
    layers: Sequence[str] = (),
    measure: Callable[[Tensor, Tensor], float] = linear_cka,
    steps: Sequence[int] | None = None,
) -> tuple[list[tuple[str, int]], Tensor]:
    """The similarity of every layer at every step with every other.

    Args:
        trace: With activations of the layers, `anytime.record(model, data, layers=[...])`.
        layers: Their names. Default: all that the trace has.
        measure: `linear_cka`, `rsa` or another symmetric function of two activations.
        steps: Numbers of the steps, from 1. Default: all.

    Returns:
        The pairs (layer, step), and their similarities, float64 `[pairs, pairs]`: nan for a layer that has not run yet, or
        whose output is the same for all images.

    Raises:
        ValueError: The trace has no activations of a layer, or fewer steps than asked for.
    """
    names = list(layers) or list(trace.activations)
    if not names:
        raise ValueError("this trace has no activations: record them with anytime.record(model, data, layers=[...])")
    values = dict(zip(names, require_layers(trace, names), strict=True))
    wanted = range(1, trace.num_steps + 1) if steps is None else list(steps)
    for step in wanted:
        if not 1 <= step <= trace.num_steps:
            raise ValueError(f"steps must lie in 1..{trace.num_steps}, got {step!r}")
    for name, value in values.items():
        if value.shape[1:2] != (trace.num_steps,):
            raise ValueError(f"activations of {name!r} must be [N, {trace.num_steps}, ...], got {list(value.shape)}")
    pairs = [(name, step) for name in names for step in wanted]
    known = [i for i, (name, step) in enumerate(pairs) if _comparable(values[name][:, step - 1])]
    found = torch.full((len(pairs), len(pairs)), torch.nan, dtype=torch.float64)
    for place, i in enumerate(known):
        for j in known[place:]:
            x, y = (values[name][:, step - 1] for name, step in (pairs[i], pairs[j]))
            found[i, j] = found[j, i] = measure(x, y)
    return pairs, found


def _comparable(x: Tensor) -> bool:
    """Whether a layer has run, and its outputs differ between images."""
    return bool(x.isfinite().all() and (x != x[:1]).any())


def _rows(x: Tensor, y: Tensor, least: int, what: str) -> tuple[Tensor, Tensor]:
    x, y = (as_tensor(values, "activations") for values in (x, y))
    if len(x) != len(y):
        raise ValueError(f"{what} compares activations of the same images, got {len(x)} and {len(y)}")
    if len(x) < least:
        raise ValueError(f"{what} needs at least {least} images, got {len(x)}")
    for values in (x, y):
        if not bool(values.isfinite().all()):
            raise ValueError(f"{what} needs finite activations, but {int((~values.isfinite()).sum())} are NaN or infinite")
    return x.double().flatten(1), y.double().flatten(1)
