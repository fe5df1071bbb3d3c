"""How much the early answers of a network disagree with its last one (Kaya, Hong, Dumitras, ICML 2019)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from anytime.support.arrays import as_tensor
from anytime.trace import Trace, require_one_level

__all__ = ["Confusion", "disagreement", "separation"]


def disagreement(trace: Trace) -> Tensor:
    """d = sum_{t<T} sum_k |p_T(k) - p_t(k)| with p = softmax(z), of each sample, float64 `[N]`; needs no labels.

    Raises:
        ValueError: The trace has several label levels.
    """
    require_one_level(trace)
    last = trace.logits[-1].double().softmax(1)
    total = last.new_zeros(len(last))
    for logits in trace.logits[:-1]:  # one step at a time, because the probabilities of a large trace may not fit into memory
        total += (last - logits.double().softmax(1)).abs().sum(1)
    return total


@dataclass(frozen=True)
class Confusion:
    """confusion = (d - mean) / std, with d of `disagreement`: the higher, the more often the last answer is wrong.

    Args:
        mean: Mean of d.
        std: Standard deviation of d, above 0.

    Example:
        >>> import torch
        >>> from anytime import Trace
        >>> from anytime.analysis.confusion import Confusion
        >>> logits = torch.tensor([[[9.0, 0.0], [0.0, 0.0]], [[9.0, 0.0], [0.0, 9.0]]])  # the second differs
        >>> trace = Trace.from_logits(logits, [0, 1], macs=[1, 2])
        >>> Confusion.of(trace)(trace)
        tensor([-1.,  1.], dtype=torch.float64)
    """

    mean: float
    std: float

    def __post_init__(self) -> None:
        if not self.std > 0:
            raise ValueError(f"std must be above 0, got {self.std!r}: the answers of some steps must differ between samples")

    @classmethod
    def of(cls, trace: Trace) -> Confusion:
        """Standardised on a trace: in the paper that of the training images, without augmentation.

        Raises:
            ValueError: The answers disagree equally on all samples, or there is only one answer; the trace has several label
                levels.
        """
        values = disagreement(trace)
        return cls(float(values.mean()), float(values.std(correction=0)))

    def __call__(self, trace: Trace) -> Tensor:
        """The confusion of each sample, float64 `[N]`."""
        return (disagreement(trace) - self.mean) / self.std


def separation(scores: Tensor, wrong: Tensor) -> float:
    """The probability that a wrong last answer scores above a right one, equals counted half (the area under the ROC curve).

    Args:
        scores: `[N]`, such as a confusion or an uncertainty.
        wrong: Whether the last answer is wrong, bool `[N]`.

    Raises:
        ValueError: All answers are right, or all wrong; a score is NaN; or there is not one bool for each score.
    """
    scores, wrong = as_tensor(scores, "scores"), as_tensor(wrong, "wrong")
    if wrong.dtype != torch.bool or scores.ndim != 1 or scores.shape != wrong.shape:
        given = f"{wrong.dtype} {list(wrong.shape)}"
        raise ValueError(f"wrong must be a bool for each score [N], got {given} for scores {list(scores.shape)}")
    if unknown := int(scores.isnan().sum()):
        raise ValueError(f"{unknown} of {len(scores)} scores are NaN, so they have no order")
    bad, good = scores[wrong], scores[~wrong].sort().values
    if not len(bad) or not len(good):
        raise ValueError(f"separation needs right and wrong answers, got {len(good)} right and {len(bad)} wrong")
    below, upto = torch.searchsorted(good, bad), torch.searchsorted(good, bad, right=True)
    return float((below + upto).double().mean() / (2 * len(good)))
