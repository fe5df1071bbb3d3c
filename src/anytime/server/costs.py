"""How long batches take: measured when a server starts, because plans of a server need other numbers than a profile holds."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial

import torch

from anytime.model import AnytimeModel
from anytime.runtime.engines.exported import engine_of
from anytime.server.scheduler import Costs
from anytime.support.units import ImageSize, image_size

LONGEST = 1.0  # seconds after which no batch size is timed again


def batch_sizes(most: int) -> list[int]:
    """1, 2, 4, ... up to `most`, which is the last."""
    return sorted({most, *(2**k for k in range(most.bit_length()))})


def measure(
    model: AnytimeModel,
    input_size: ImageSize,
    max_batch: int,
    repeats: int = 5,
    clock: Callable[[], float] = time.perf_counter,
) -> Costs:
    """The median seconds of every step and of a jump to it, for batches of 1, 2, 4, ... `max_batch` images.

    Args:
        model: On its device and in its precision.
        input_size: (channels, height, width), or the side of square colour images.
        max_batch: The largest batch.
        repeats: How often each is timed, after one run that is not; large networks less often, but at least once.
        clock: Returns seconds; replaced in tests.
    """
    run, reference = engine_of(model), next(model.parameters())
    jumps, steps = {}, {}

    def seconds(function: Callable[[], object]) -> float:
        start = clock()
        function()
        if reference.is_cuda:
            torch.cuda.synchronize(reference.device)
        return clock() - start

    with run.conditions():
        for size in batch_sizes(max_batch):
            x = torch.rand(size, *image_size(input_size), generator=torch.Generator().manual_seed(0)).to(reference)
            states = [run.model.initial_state(x)]
            for t in range(1, model.num_steps):
                states.append(run.step(t, states[-1], size)[1])
            by_jump: list[list[float]] = [[] for _ in states]
            by_step: list[list[float]] = [[] for _ in states]
            started = clock()
            for repeat in range(repeats + 1):
                if repeat > 1 and clock() - started > LONGEST:
                    break
                for t, state in enumerate(states, 1):
                    jumped = seconds(partial(run.model.jump, x, t))
                    stepped = seconds(partial(run.step, t, state, size))
                    if repeat:
                        by_jump[t - 1].append(jumped)
                        by_step[t - 1].append(stepped)
            jumps[size], steps[size] = [*map(statistics.median, by_jump)], [*map(statistics.median, by_step)]
    return Costs(jumps, steps)
