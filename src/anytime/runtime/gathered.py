"""What has arrived of one run: the newest finite answer of each sample."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from anytime.runtime.answer import Answer

Levels = tuple[Tensor, ...]  # one tensor for each label level
Packed = Tensor | tuple[Levels, Tensor]  # one tensor to transfer from a device; on the host, both parts as they are


def pack(probabilities: Levels, outputs: Tensor) -> Packed:
    """The probabilities `[B, K_d]` of each label level of a classifier, and the outputs `[B, K, ...]`.

    On a device it is one tensor, because each transfer costs time.
    """
    if outputs.device.type == "cpu":
        return probabilities, outputs
    return torch.cat([part.reshape(-1) for part in (*probabilities, outputs)]) if probabilities else outputs


def finite_samples(outputs: Tensor, sizes: Sequence[int]) -> Tensor:
    """Samples whose outputs mean something, bool `[B]`: all are finite; of a classifier the largest logit of each level is."""
    if not sizes:
        return outputs.flatten(1).isfinite().all(1)
    return torch.stack([level.amax(1).isfinite() for level in outputs.split(list(sizes), 1)]).all(0)


def by_sample(mask: Tensor, like: Tensor) -> Tensor:
    """A mask `[B]` as `[B, 1, ...]`, with the dimensions of another tensor."""
    return mask.view(-1, *(1 for _ in like.shape[1:]))


class Gathered:
    """The newest finite answers of one run, on the host; tensors are replaced, never changed.

    As long as all samples are finite and in the batch, one number stands for their steps and one for their MACs.

    Args:
        prior: Makes the answer of samples for which no step was finite yet.
        sizes: Classes K_d of each label level; none unless the model is a classifier.
        macs: Cumulative MACs of each step.

    Attributes:
        levels: Probabilities `[B, K_d]` of each level.
        outputs: `[B, K, ...]`.
        sizes: As given.
        steps: The step of each sample's answer, int64 `[B]` or one for all.
        macs: MACs spent on each sample, int64 `[B]` or one for all.
        not_finite: Steps whose outputs were NaN or infinite for some sample.
        finite: The samples of the last step that were finite, bool; None if all were.
    """

    levels: Levels
    outputs: Tensor
    steps: Tensor | int
    macs: Tensor | int

    def __init__(self, prior: Callable[[], Answer], sizes: Sequence[int], macs: Sequence[int]) -> None:
        self._prior, self.sizes, self._costs = prior, sizes, macs
        self._empty, self._shared = True, True
        self.not_finite: tuple[int, ...] = ()
        self.finite: Tensor | None = None

    def add(self, step: int, packed: Packed, places: Tensor | None) -> None:
        """Takes the packed answers after a step, of the samples at `places` (None: of all)."""
        levels: Levels
        if not isinstance(packed, Tensor):
            levels, outputs = packed
        elif self.sizes:
            batch = packed.numel() // (2 * sum(self.sizes))
            *parts, rest = packed.split([batch * size for size in (*self.sizes, sum(self.sizes))])
            levels, outputs = tuple(part.view(batch, -1) for part in parts), rest.view(batch, -1)
        else:
            levels, outputs = (), packed
        cost, self.finite, self._shared = self._costs[step - 1], None, not isinstance(packed, Tensor)
        # Finite if all outputs are; the sum of finite ones may also be infinite, and -infinity is no fault in a class.
        if places is None and math.isfinite(outputs.sum().item()):
            self.levels, self.outputs, self.steps, self.macs, self._empty = levels, outputs, step, cost, False
            return
        self._merge(step, levels, outputs, places, cost)

    def _merge(self, step: int, levels: Levels, outputs: Tensor, places: Tensor | None, cost: int) -> None:
        """Takes the answers of the samples at `places` that are finite."""
        if self._empty:
            prior = self._prior()
            self.levels, self.outputs, self._empty = prior.levels, prior.outputs, False
            self.steps, self.macs = prior.steps, prior.macs
        whole, batch = len(self.outputs), len(outputs)
        steps, macs = (_each(values, whole) for values in (self.steps, self.macs))
        finite = finite_samples(outputs, self.sizes)
        places = torch.arange(batch) if places is None else places
        found = places[finite]
        olds, news = (*self.levels, self.outputs), (*levels, outputs)
        *merged, self.outputs = (
            old.to(new.dtype).index_put((found,), new[finite]) for old, new in zip(olds, news, strict=True)
        )
        self.levels = tuple(merged)
        self.steps = steps.index_fill(0, found, step)
        self.macs = macs.index_fill(0, places, cost)
        if not finite.all():
            self.finite, self.not_finite = finite, (*self.not_finite, step)

    def answer(self, elapsed: float, deadline: float | None) -> Callable[[str], Answer]:
        """Makes the answer as it is now, given its reason, in tensors of its own."""
        return partial(
            _answer, self.levels, self.outputs, self._shared, self.steps, self.macs, self.not_finite, elapsed, deadline
        )


def _answer(
    levels: Levels,
    outputs: Tensor,
    shared: bool,
    steps: Tensor | int,
    macs: Tensor | int,
    not_finite: tuple[int, ...],
    elapsed: float,
    deadline: float | None,
    reason: str,
) -> Answer:
    batch = len(outputs)
    if shared:  # the state of a combiner or of the model may share them
        levels, outputs = tuple(level.clone() for level in levels), outputs.clone()
    spent = _each(macs, batch)
    made = Answer(levels, _each(steps, batch), elapsed, deadline, spent, not_finite=not_finite, outputs=outputs)
    return made.because(reason) if reason else made


def _each(values: Tensor | int, batch: int) -> Tensor:
    """One value for each sample, in a tensor of its own."""
    return torch.full((batch,), values) if isinstance(values, int) else values.clone()
