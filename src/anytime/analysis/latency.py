"""Selection latency: when a network has chosen a class for good, and which images are chosen first and last.

Source: Iuzzolino, Mozer, Bengio 2021, section 4.3 and Fig. 2.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from anytime.analysis.curves import max_probability
from anytime.analysis.needs import require_count, require_steps
from anytime.trace import Trace, labelled, require_one_level

__all__ = ["Extremes", "Selection", "extremes", "latency", "selected", "threshold_for"]


@dataclass(frozen=True, eq=False)
class Selection:
    """Selection latencies of N samples.

    A sample that never selects a class has no latency. Where it must be ordered, it ties with the others at the end (`steps`
    is T); or it is left out (`reached`). A result that depends on this is given for both.

    Attributes:
        threshold: θ.
        steps: Latency 1..T, T where no class is selected, int64 `[N]`.
        reached: Whether a class is selected, bool `[N]`.
        classes: The class that stayed above θ from then on, int64 `[N]`; the most probable at the end if several did, which
            needs θ < 0.5; -1 where none is selected.
    """

    threshold: float
    steps: Tensor
    reached: Tensor
    classes: Tensor

    @property
    def never(self) -> float:
        """Share of samples that never select a class."""
        return float((~self.reached).double().mean())


def selected(probabilities: Tensor, threshold: float) -> tuple[Tensor, Tensor, Tensor]:
    """min{t | some class j has p_t'(j) > θ for all t' >= t}, right or wrong.

    Args:
        probabilities: `[T, N, K]`.
        threshold: θ.

    Returns:
        The latency in steps, 1..T, int64 `[N]` (T if there is none), whether there is one, bool `[N]`, and the class, int64
        `[N]`, -1 if there is none; of several the most probable at the end.
    """
    above = probabilities > threshold
    stays, first = above[-1], torch.full_like(above[0, :, 0], len(above), dtype=torch.int64)
    reached = stays.any(1)
    classes = _likeliest(probabilities[-1], stays)
    for step in range(len(above) - 1, 0, -1):
        stays = stays & above[step - 1]
        first = torch.where(stays.any(1), step, first)
        classes = torch.where(stays.any(1), _likeliest(probabilities[-1], stays), classes)
    return first, reached, classes


def _likeliest(probabilities: Tensor, among: Tensor) -> Tensor:
    """The most probable of some classes, int64 `[N]`, -1 if there are none."""
    return probabilities.masked_fill(~among, -1).argmax(1).masked_fill(~among.any(1), -1)


def threshold_for(trace: Trace, never: float = 0.1) -> float:
    """The threshold that a given share of the samples never reaches; the paper wants 10 %, and there it is 0.83.

    A sample selects a class if max_k p_T(k) > θ, so θ is the largest of these values that shall not. If the share cannot be
    met, because values are equal or the samples are few, the nearest is taken.

    Args:
        trace: The answers; labels are not needed.
        never: Share of the samples, at least 0 and below 1.

    Raises:
        ValueError: The share is out of range, or the trace has several label levels or one step.
    """
    if not 0 <= never < 1:
        raise ValueError(f"never is a share of the samples, at least 0 and below 1, got {never!r}")
    require_one_level(trace)
    require_steps(trace, 2, "a selection latency")
    last = trace.logits[-1].double().softmax(1).amax(1)
    values, counts = last.unique(return_counts=True)  # ascending
    below = torch.cat([counts.new_zeros(1), counts.cumsum(0)[:-1]])  # samples that a threshold below each value leaves out
    index = int((below - never * trace.num_samples).abs().argmin())
    return float(values[index - 1]) if index else float(values[0]) / 2


def latency(trace: Trace, threshold: float | None = None, never: float = 0.1) -> Selection:
    """Selection latencies by the softmax of each step.

    Args:
        trace: The answers; labels are not needed.
        threshold: θ in [0, 1). Default: that of `threshold_for(trace, never)`.
        never: The share of the samples that it should leave without a class.

    Raises:
        ValueError: As `threshold_for`, or the threshold is out of range.
    """
    require_one_level(trace)
    require_steps(trace, 2, "a selection latency")
    threshold = threshold_for(trace, never) if threshold is None else float(threshold)
    if not 0 <= threshold < 1:
        raise ValueError(f"a threshold of probability lies in [0, 1), got {threshold!r}")
    return Selection(threshold, *selected(trace.logits.double().softmax(2), threshold))


@dataclass(frozen=True, eq=False)
class Extremes:
    """Samples that are selected first and last; lists are shorter where there are fewer samples.

    Attributes:
        fastest: For each class, positions of its samples, the fastest first.
        slowest: For each class, positions of its samples, the slowest first.
        latency: The latency of all samples.
    """

    fastest: list[list[int]]
    slowest: list[list[int]]
    latency: Selection


def extremes(trace: Trace, measured: Selection, count: int = 8, never: bool = True) -> Extremes:
    """The `count` fastest and slowest samples of each labelled class (Fig. 2).

    Equal latencies are ordered by the mean over the steps of max_k p_t(k): the surer sample is the faster one.

    Args:
        trace: The answers, at least one with a label.
        measured: Their latencies.
        count: Samples of each kind and class.
        never: Whether samples that never select a class count as the slowest; else they are left out.

    Raises:
        ValueError: The latencies are of another number of samples, or no sample has a label.
    """
    require_count(count, "count")
    if len(measured.steps) != trace.num_samples:
        raise ValueError(f"there are latencies of {len(measured.steps)} samples, but the trace has {trace.num_samples}")
    require_one_level(trace)
    if bool((trace.labels < 0).all()):
        labelled(trace)  # says that there are none
    sure = max_probability(trace).mean(0).tolist()
    steps, reached = measured.steps.tolist(), measured.reached.tolist()
    fastest, slowest = [], []
    for k in range(trace.num_classes):
        mine = (trace.labels == k).nonzero()[:, 0].tolist()
        order = sorted((i for i in mine if never or reached[i]), key=lambda i: (not reached[i], steps[i], -sure[i]))
        fastest.append(order[:count])
        slowest.append(order[::-1][:count])
    return Extremes(fastest, slowest, measured)
