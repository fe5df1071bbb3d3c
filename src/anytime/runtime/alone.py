"""Answers that are computed alone: the newest of some steps that is finite, combined with no other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace

import torch
from torch import Tensor

from anytime.combine import Combiner
from anytime.runtime.answer import Answer
from anytime.runtime.execution import Reader
from anytime.runtime.gathered import by_sample, finite_samples
from anytime.runtime.transfer import Arrival


def read_newest(
    readers: Sequence[Reader],
    nothing: Answer,
    combiner: Combiner,
    levels: Sequence[int],
    num_steps: int,
    conditions: Callable[[], AbstractContextManager[None]],
    send: Callable[[Tensor], Arrival],
    clock: Callable[[], float],
) -> Answer:
    """The newest finite answer of each sample, on the host.

    Args:
        readers: The steps that can be read, the newest first; an older one is read only where a newer one is not finite.
        nothing: The answer of samples for which none is finite.
        combiner: Makes probabilities of the logits of a step.
        levels: Classes K_d of each label level; none unless the model is a classifier.
        num_steps: T.
        conditions: In which logits are computed.
        send: Starts the transfer of a tensor to the host.
        clock: Returns seconds.

    Returns:
        `nothing` with other levels, outputs and steps, and with the steps that were not finite.
    """
    not_finite = list[int]()
    values, steps = [*nothing.levels, nothing.outputs], nothing.steps
    missing = torch.ones_like(steps, dtype=torch.bool)
    for step, logits in readers:
        with conditions():
            outputs, state = logits().float(), combiner.start(num_steps)
            parts = outputs.split(list(levels), 1) if levels else ()
            news = [combiner.update(state, part, step)[0] for part in parts]
            arrivals = [send(new) for new in (*news, outputs)]
        for arrival in arrivals:
            arrival.wait(clock, None)
        finite = finite_samples(arrivals[-1].value, levels)
        found = missing & finite
        pairs = ((arrival.value, old) for arrival, old in zip(arrivals, values, strict=True))
        values = [torch.where(by_sample(found, new), new, old.to(new.dtype)) for new, old in pairs]
        steps, missing = steps.where(~found, torch.tensor(step)), missing & ~finite
        if not missing.any():
            break
        not_finite.insert(0, step)
    *parts_found, outputs = values
    return replace(nothing, levels=tuple(parts_found), outputs=outputs, steps=steps, not_finite=tuple(not_finite))
