"""What has arrived of one run: the newest finite answer of each sample."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from anytime.runtime.answer import Answer

Levels = tuple[Tensor, ...]  # one tensor for each label level
Packed = (
    Tensor | tuple[Levels, Levels]
)  # one tensor to transfer from a device; on the host, probabilities and logits as they are


def pack(probabilities: Levels, logits: Levels) -> Packed:
    """What says the probabilities `[B, K_d]` of each label level, and which samples' logits `[B, K_d]` are finite.

    On a device it is one new tensor with the probabilities and `peaks(logits)`, because each transfer costs time.
    """
    if probabilities[0].device.type == "cpu":
        return probabilities, logits
    return torch.cat([*(level.reshape(-1) for level in probabilities), peaks(logits)])


def peaks(logits: Levels) -> Tensor:
    """max_k z_k of each level and sample, `[D * B]`; NaN or infinite if no probabilities follow from the logits."""
    return torch.cat([level.amax(1) for level in logits])


class Gathered:
    """The newest finite answers of one run, on the host; tensors are replaced, never changed.

    As long as all samples are finite and in the batch, one number stands for their steps and one for their MACs.

    Args:
        prior: Makes the answer of samples for which no step was finite yet.
        sizes: Classes K_d of each label level.
        macs: Cumulative MACs of each step.

    Attributes:
        levels: Probabilities `[B, K_d]` of each level.
        steps: The step of each sample's answer, int64 `[B]` or one for all.
        macs: MACs spent on each sample, int64 `[B]` or one for all.
        not_finite: Steps whose logits were NaN or infinite for some sample.
        finite: The samples of the last step that were finite, bool; None if all were.
    """

    levels: Levels
    steps: Tensor | int
    macs: Tensor | int

    def __init__(self, prior: Callable[[], Answer], sizes: Sequence[int], macs: Sequence[int]) -> None:
        self._prior, self._sizes, self._costs = prior, sizes, macs
        self._empty, self._shared = True, True
        self.not_finite: tuple[int, ...] = ()
        self.finite: Tensor | None = None

    def add(self, step: int, packed: Packed, places: Tensor | None) -> None:
        """Takes the packed answers after a step, of the samples at `places` (None: of all)."""
        if isinstance(packed, Tensor):
            batch = packed.numel() // (sum(self._sizes) + len(self._sizes))
            *parts, highest = packed.split([batch * size for size in (*self._sizes, len(self._sizes))])
            levels, logits = tuple(part.view(batch, -1) for part in parts), highest.view(-1, batch, 1).unbind(0)
        else:
            levels, logits = packed
        cost, self.finite, self._shared = self._costs[step - 1], None, not isinstance(packed, Tensor)
        # Finite if all logits are; the sum of finite ones may also be infinite, and -infinity is no fault in a class.
        if places is None and all(math.isfinite(level.sum().item()) for level in logits):
            self.levels, self.steps, self.macs, self._empty = levels, step, cost, False
            return
        self._merge(step, levels, peaks(logits), places, cost)

    def _merge(self, step: int, levels: Levels, highest: Tensor, places: Tensor | None, cost: int) -> None:
        """Takes the answers of the samples at `places` that are finite, which `peaks(logits)` says."""
        if self._empty:
            prior = self._prior()
            self.levels, self.steps, self.macs, self._empty = prior.levels, prior.steps, prior.macs, False
        whole, batch = len(self.levels[0]), len(levels[0])
        steps, macs = (_each(values, whole) for values in (self.steps, self.macs))
        finite = highest.view(-1, batch).isfinite().all(0)
        places = torch.arange(batch) if places is None else places
        found = places[finite]
        self.levels = tuple(
            old.to(new.dtype).index_put((found,), new[finite]) for old, new in zip(self.levels, levels, strict=True)
        )
        self.steps = steps.index_fill(0, found, step)
        self.macs = macs.index_fill(0, places, cost)
        if not finite.all():
            self.finite, self.not_finite = finite, (*self.not_finite, step)

    def answer(self, elapsed: float, deadline: float | None) -> Callable[[str], Answer]:
        """Makes the answer as it is now, given its reason, in tensors of its own."""
        return partial(_answer, self.levels, self._shared, self.steps, self.macs, self.not_finite, elapsed, deadline)


def _answer(
    levels: Levels,
    shared: bool,
    steps: Tensor | int,
    macs: Tensor | int,
    not_finite: tuple[int, ...],
    elapsed: float,
    deadline: float | None,
    reason: str,
) -> Answer:
    batch = len(levels[0])
    own = tuple(level.clone() for level in levels) if shared else levels  # the state of a combiner may share them
    made = Answer(own, _each(steps, batch), elapsed, deadline, _each(macs, batch), not_finite=not_finite)
    return made.because(reason) if reason else made


def _each(values: Tensor | int, batch: int) -> Tensor:
    """One value for each sample, in a tensor of its own."""
    return torch.full((batch,), values) if isinstance(values, int) else values.clone()
