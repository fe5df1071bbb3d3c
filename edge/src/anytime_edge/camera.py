"""Frames at a fixed rate: each is answered until the next one comes, with the last frame's answer as the prior."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from anytime_edge.answer import PRIOR, Answer
from anytime_edge.predictor import Predictor


class Frame(NamedTuple):
    """Number 0, 1, ... of a frame, its answer, and `held`: the answer in hand when the next one came, or None."""

    number: int
    answer: Answer
    held: Answer | None

    @property
    def missed(self) -> bool:
        """Whether no step answered this frame in time."""
        return self.answer.missed or self.answer.step == PRIOR


def frames(predictor: Predictor, images: Iterable, fps: float, sleep: Any = time.sleep, bgr: bool = False) -> Iterator[Frame]:
    """Answers frame n, which comes at n / fps, until (n + 1) / fps; time starts when the first image is there."""
    if not 0 < fps < math.inf:
        raise ValueError(f"fps must be a number of frames per second above zero, got {fps!r}")
    start, last = math.nan, None
    for number, image in enumerate(images):
        start = start if number else predictor.clock()
        if (early := start + number / fps - predictor.clock()) > 0:
            sleep(early)
        answer = predictor(image, until=start + (number + 1) / fps, prior=last, bgr=bgr)
        held, last = last if answer.missed else answer, answer
        yield Frame(number, answer, held)
