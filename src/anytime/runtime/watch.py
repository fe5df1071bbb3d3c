"""Frames that a network follows: its state stays from one frame to the next, and each frame costs only a few steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from anytime.combine import Combiner, Last, Temperature
from anytime.model import AnytimeModel, State
from anytime.runtime.answer import Answer
from anytime.runtime.door import admit_like
from anytime.runtime.engines.pytorch import EagerSteps
from anytime.runtime.gathered import Gathered, pack
from anytime.runtime.transfer import send
from anytime.stopping import Rule


class _Follower(Protocol):
    """A model whose state takes new images, with `follows_frames = True`."""

    num_steps: int

    def first_frame(self, x: Tensor) -> State: ...

    def observe(self, state: State, x: Tensor) -> State: ...

    def step(self, state: State) -> tuple[Tensor, State]: ...


def check_watch(model: AnytimeModel, rule: Rule | None, combiner: Combiner, updates: Any) -> None:
    """Raises ValueError unless a model can follow frames, and its newest answer, after `updates` steps, is the one to give."""
    if not getattr(model, "follows_frames", False):
        raise ValueError(
            f"watch keeps the state between frames, and that of this {type(model).__name__} cannot take new frames for ever: "
            "use anytime.runtime.frames, which answers each frame anew"
        )
    if rule is not None:
        raise ValueError(f"watch never stops, and answers after every frame: leave out the rule {rule!r}")
    if not isinstance(combiner, Last | Temperature):
        raise ValueError(
            f"watch gives the newest answer, the others are to earlier frames: combine='last', not {combiner.kind!r}"
        )
    if isinstance(updates, bool) or not isinstance(updates, int) or updates < 1:
        raise ValueError(f"updates must be a whole number of at least 1 for each frame, got {updates!r}")


def watched(
    run: EagerSteps,
    combiner: Combiner,
    sizes: Sequence[int],
    images: Iterable[Tensor],
    updates: int,
    admit: Callable[[Tensor], Tensor],
    prior: Callable[[Tensor, float, Answer | None], Answer],
    clock: Callable[[], float],
) -> Iterator[Answer]:
    """Answers each frame after `updates` steps on the state that the frames before it have left.

    Args:
        run: The steps of the model.
        combiner: Makes probabilities of the newest logits.
        sizes: Classes of each label level; none unless the model is a classifier.
        images: The frames.
        updates: Steps for each frame.
        admit: Checks and copies a frame.
        prior: What stands if no step was finite, from the frame, the time of the call and the answer to the frame before.
        clock: Returns seconds.
    """
    model, state, first, last, done = cast(_Follower, run.model), None, None, None, 0
    free = (0,) * model.num_steps
    for number, image in enumerate(images):
        start = clock()
        with run.conditions(update=not number):
            x = None if first is None else admit_like(image, first)
            x = admit(image) if x is None else x
            first = x if first is None else first
            if x.shape != first.shape:
                raise ValueError(f"frame {number} has shape {list(x.shape)}, the first had {list(first.shape)}")
            state = model.observe(state, x) if number else model.first_frame(x)
            for _ in range(updates):
                logits, state = model.step(state)
            done = min(done + updates, model.num_steps)
            outputs = logits.float()
            parts = () if not sizes else (outputs,) if len(sizes) == 1 else outputs.split(list(sizes), 1)
            memory = combiner.start(model.num_steps)
            levels = tuple([combiner.update(memory, part, done)[0] for part in parts])
            here = outputs.device.type == "cpu" and math.isfinite(outputs.sum().item())
            arrival = None if here else send(pack(levels, outputs))
        if arrival is None:  # what the general way below makes of finite outputs on the host, in a third of the time
            levels, steps = tuple([level.clone() for level in levels]), torch.full((len(x),), done)
            last = Answer(levels, steps, clock() - start, None, torch.zeros_like(steps), outputs=outputs.clone())
        else:
            arrival.wait(clock, None)
            gathered = Gathered(partial(prior, x, start, last), sizes, free)
            gathered.add(done, arrival.value, None)
            last = gathered.answer(clock() - start, None)("")
        yield last
