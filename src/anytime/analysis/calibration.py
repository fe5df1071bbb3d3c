"""Does confidence match accuracy? Over samples (Guo et al. 2017) and over classes (Kim et al. 2020)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from anytime.analysis.curves import correct, max_probability, true_probability
from anytime.trace import Trace, labelled

__all__ = ["PerClass", "Reliability", "ece", "pearson", "per_class", "reliability", "worst_classes"]


@dataclass(frozen=True)
class Reliability:
    """Samples of each step in M equal-width bins of their max softmax, bin m = ((m-1)/M, m/M].

    Attributes:
        counts: int64 `[T, M]`, samples per bin.
        confidence: float64 `[T, M]`, mean max softmax; nan in empty bins.
        accuracy: float64 `[T, M]`, share of right answers; nan in empty bins.
        ece: float64 `[T]`, expected calibration error.
    """

    counts: Tensor
    confidence: Tensor
    accuracy: Tensor
    ece: Tensor


def reliability(trace: Trace, bins: int = 15) -> Reliability:
    """ECE = sum_m |B_m| / N * |accuracy(B_m) - confidence(B_m)|, and its bins B_m (Guo et al. 2017, eq. 3).

    Raises:
        ValueError: There is less than one bin.
    """
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
    trace = labelled(trace)
    confident, right = max_probability(trace), correct(trace).double()
    index = ((confident * bins).ceil().long() - 1).clamp(0, bins - 1)

    def total(values: Tensor) -> Tensor:
        return values.new_zeros(trace.num_steps, bins).scatter_add_(1, index, values)

    counts, confidences, rights = total(torch.ones_like(index)), total(confident), total(right)
    ece = (rights - confidences).abs().sum(1) / trace.num_samples
    return Reliability(counts, confidences / counts, rights / counts, ece)


def ece(trace: Trace, bins: int = 15) -> Tensor:
    """Expected calibration error over equal-width bins (Guo et al. 2017, eq. 3), float64 `[T]`."""
    return reliability(trace, bins).ece


@dataclass(frozen=True)
class PerClass:
    """Mean confidence and accuracy of each class, over the samples with that label.

    Attributes:
        confidence: float64 `[T, K]`, nan for classes without samples.
        accuracy: float64 `[T, K]`, nan for classes without samples.
        pearson: float64 `[T]`, Pearson's r over classes; nan for fewer than two classes, or if either does not vary.
    """

    confidence: Tensor
    accuracy: Tensor
    pearson: Tensor


def per_class(trace: Trace, confidence: Literal["true", "max"] = "true") -> PerClass:
    """Confidence against accuracy per class at every step (Kim et al. 2020, Fig. 4).

    Args:
        confidence: "true": probability of the correct class (eq. 5 there); "max": max softmax, known without labels.

    Raises:
        ValueError: The confidence is unknown.
    """
    if confidence not in ("true", "max"):
        raise ValueError(f"unknown confidence {confidence!r}: use 'true' (probability of the correct class) or 'max'")
    trace = labelled(trace)
    values = true_probability(trace) if confidence == "true" else max_probability(trace)
    counts = torch.bincount(trace.labels, minlength=trace.num_classes)

    def mean(samples: Tensor) -> Tensor:
        return samples.new_zeros(trace.num_steps, trace.num_classes).index_add_(1, trace.labels, samples) / counts

    means, accuracies = mean(values), mean(correct(trace).double())
    present = counts > 0
    return PerClass(means, accuracies, pearson(means[:, present], accuracies[:, present]))


def worst_classes(trace: Trace) -> tuple[list[str], Tensor]:
    """The class with the least accuracy after each step, and that accuracy, float64 `[T]`; empty classes do not count."""
    values = per_class(trace).accuracy.nan_to_num(nan=torch.inf)
    least, classes = values.min(1)
    return [trace.class_names[k] for k in classes.tolist()], least


def pearson(x: Tensor, y: Tensor) -> Tensor:
    """Pearson's r over the last dimension; nan if it has fewer than two values or if x or y does not vary."""
    if x.shape[-1] < 2:
        return x.new_full(x.shape[:-1], torch.nan)
    varies = (x.amax(-1) - x.amin(-1) > 1e-12) & (y.amax(-1) - y.amin(-1) > 1e-12)
    x, y = x - x.mean(-1, keepdim=True), y - y.mean(-1, keepdim=True)
    r = (x * y).sum(-1) / (x.norm(dim=-1) * y.norm(dim=-1))
    return r.clamp(-1, 1).where(varies, torch.nan)
