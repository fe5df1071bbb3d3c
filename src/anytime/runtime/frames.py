"""Frames at a fixed rate: each is answered until the next one comes, with the last frame's answer as the prior."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from torch import Tensor

from anytime.runtime.answer import PRIOR, Answer
from anytime.runtime.predictor import Predictor
from anytime.support.units import real_number


@dataclass(frozen=True)
class Frame:
    """What became of one frame.

    Attributes:
        number: 0, 1, ...
        answer: The predictor's answer; the last frame's answer with step -1 if there was no time for any step.
        held: The answer in hand when the next frame came: `answer`, or the previous one if that came late; None if there was
            no previous one.
    """

    number: int
    answer: Answer
    held: Answer | None

    @property
    def missed(self) -> bool:
        """Whether no step answered this frame in time."""
        return self.answer.missed or self.answer.step == PRIOR


def frames(
    predictor: Predictor, images: Iterable[Tensor], fps: float | Tensor, sleep: Callable[[float], None] = time.sleep
) -> Iterator[Frame]:
    """Answers frame n, which comes at n / fps, until (n + 1) / fps; time starts when the first image is there.

    A frame whose time is over before its turn is dropped: its answer is the last frame's.

    Args:
        predictor: Its clock is the camera's.
        images: One image `[C, H, W]` or `[1, C, H, W]` per frame, on the model's device, such as `model.prepare(frame)`.
        fps: Frames per second: a number, or a numpy or torch scalar.
        sleep: Waits for some seconds; replaced in tests.

    Raises:
        ValueError: The rate is NaN, infinite, or not above zero.
        TypeError: It is a bool or of another type.
    """
    wanted = "fps must be a number of frames per second above zero"
    rate = real_number(fps, wanted)
    if not 0 < rate < math.inf:
        raise ValueError(f"{wanted}, got {fps!r}")
    return _frames(predictor, images, rate, sleep)


def _frames(predictor: Predictor, images: Iterable[Tensor], fps: float, sleep: Callable[[float], None]) -> Iterator[Frame]:
    start, last = math.nan, None
    for number, image in enumerate(images):
        start = start if number else predictor.clock()
        due, end = start + number / fps, start + (number + 1) / fps
        if (early := due - predictor.clock()) > 0:
            sleep(early)
        answer = predictor(image, until=end, prior=last)
        held = last if answer.missed else answer
        last = answer
        yield Frame(number, answer, held)
