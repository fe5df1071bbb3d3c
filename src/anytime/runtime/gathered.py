"""What has arrived of one run: the newest finite answer of each sample."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from anytime.runtime.answer import Answer


def pack(probabilities: Sequence[Tensor], logits: Sequence[Tensor]) -> Tensor:
    """Probabilities `[B, K_d]` of each label level, and whether its logits `[B, K_d]` are finite, in one new tensor.

    It holds max_k z_k of each level and sample, which is NaN or infinite if no probabilities follow from the logits.
    """
    return torch.cat([*(level.reshape(-1) for level in probabilities), *(level.amax(1) for level in logits)])


class Gathered:
    """The newest finite answers of one run, on the host; tensors are replaced, never changed.

    Args:
        prior: Makes the answer of samples for which no step was finite yet.
        sizes: Classes K_d of each label level.
        macs: Cumulative MACs of each step.

    Attributes:
        levels: Probabilities `[B, K_d]` of each level.
        steps: The step of each sample's answer, int64 `[B]`.
        macs: MACs spent on each sample, int64 `[B]`.
        not_finite: Steps whose logits were NaN or infinite for some sample.
        finite: The samples of the last step that were finite, bool; None if all were.
    """

    levels: tuple[Tensor, ...]
    steps: Tensor
    macs: Tensor

    def __init__(self, prior: Callable[[], Answer], sizes: Sequence[int], macs: Sequence[int]) -> None:
        self._prior, self._sizes, self._costs = prior, sizes, macs
        self._empty = True
        self.not_finite: tuple[int, ...] = ()
        self.finite: Tensor | None = None

    def add(self, step: int, packed: Tensor, places: Tensor | None) -> None:
        """Takes the packed answers after a step, of the samples at `places` (None: of all)."""
        batch = packed.numel() // (sum(self._sizes) + len(self._sizes))
        *parts, peaks = packed.split([batch * size for size in (*self._sizes, len(self._sizes))])
        levels = tuple(part.view(batch, -1) for part in parts)
        cost, all_finite = self._costs[step - 1], math.isfinite(float(peaks.sum()))
        self.finite = None
        if all_finite and places is None:
            self.levels = levels
            self.steps, self.macs = torch.full((batch,), step), torch.full((batch,), cost)
            self._empty = False
            return
        if self._empty:
            prior = self._prior()
            self.levels, self.steps, self.macs, self._empty = prior.levels, prior.steps, prior.macs, False
        finite = peaks.view(-1, batch).isfinite().all(0)
        places = torch.arange(batch) if places is None else places
        found = places[finite]
        self.levels = tuple(
            old.to(new.dtype).index_put((found,), new[finite]) for old, new in zip(self.levels, levels, strict=True)
        )
        self.steps = self.steps.index_fill(0, found, step)
        self.macs = self.macs.index_fill(0, places, cost)
        if not finite.all():
            self.finite, self.not_finite = finite, (*self.not_finite, step)
