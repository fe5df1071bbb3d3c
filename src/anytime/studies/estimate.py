"""How long a training takes here, judged by one of its steps."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable

import torch

from anytime.training.build import build
from anytime.training.config import Config, UsageError

IMAGES = 16  # in the first steps that are timed
LONG = 2.0  # seconds of such a step from which on a batch takes as long per image


def training_seconds(config: Config, clock: Callable[[], float] | None = None) -> float | None:
    """Epochs * steps per epoch * seconds of a step: forward, loss and backward on a batch, uncompiled, the second of two.

    Where a step on 16 images takes longer than 2 s, it is not repeated on a batch, but counted for each 16 images. The seconds
    are those of a GPU if there is one, or else of one core, whatever else the machine does. Validation, augmentation and what
    more cores, a compiler or lower precision save are not counted.

    Args:
        config: The resolved configuration.
        clock: Returns seconds; replaced in tests.

    Returns:
        Seconds; None if the data cannot be read, or the loss needs more than one step.

    Raises:
        UsageError: As the training itself.
    """
    lightning = logging.getLogger("lightning.pytorch")
    level, threads = lightning.level, torch.get_num_threads()
    lightning.setLevel(logging.WARNING)  # it would list the hardware for each training
    torch.set_num_threads(1)
    try:
        return _seconds(config, clock or (time.perf_counter if torch.cuda.is_available() else time.thread_time))
    except UsageError:
        raise
    except (OSError, ValueError):
        return None
    finally:
        lightning.setLevel(level)
        torch.set_num_threads(threads)


def _seconds(config: Config, clock: Callable[[], float]) -> float | None:
    job = build(config)
    split = job.data.split("train")
    place = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = job.model.to(place).train()
    images = min(len(split), job.data.batch_size)
    job.objective.set_length(job.regime.objective_epochs(job.settings.epochs), math.ceil(len(split) / images))
    seconds = 0.0
    for size in (min(IMAGES, images), images):
        target = split.targets[:size].to(place)
        x = torch.rand(size, *job.data.input_size, device=place)
        for _ in range(2):
            begin = clock()
            try:
                job.objective(model(x), target).backward()
            except (RuntimeError, NotImplementedError):
                return None
            model.zero_grad()
            if place.type == "cuda":
                torch.cuda.synchronize()
            seconds = clock() - begin
        if seconds > LONG:
            break
    return job.settings.epochs * len(split) / size * seconds
