"""Answers under a deadline: steps run one by one, as long as the next is expected to finish in time."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from anytime.cost import StepSeconds
from anytime.model import AnytimeModel

_UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6}


def parse_seconds(text: str) -> float:
    """Seconds from `"5ms"`, `"0.2s"`, `"800us"` or plain seconds `"0.005"`.

    Raises:
        ValueError: Not a time, or not above zero.
    """
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+(?:e-?[0-9]+)?)\s*(s|ms|us)?\s*", text)
    seconds = float(match[1]) * _UNITS[match[2] or "s"] if match else 0.0
    if seconds <= 0 or not math.isfinite(seconds):
        raise ValueError(f"a deadline must be a time above zero like 5ms, 0.2s or 800us, got {text!r}")
    return seconds


@dataclass(frozen=True)
class Answer:
    """One answer of a model about a batch.

    Attributes:
        probabilities: Softmax of the logits, `[B, K]` (one label level).
        step: Number of the step, 1..T.
        elapsed: Seconds from the call to this answer.
        deadline: Seconds that were given; None for none.
        reason: Why no later answer: `"complete"`, `"deadline"`, or `""` in the middle of a stream.
    """

    probabilities: Tensor
    step: int
    elapsed: float
    deadline: float | None
    reason: str

    @property
    def label(self) -> Tensor:
        """The most probable class of each sample, int64 `[B]`."""
        return self.probabilities.argmax(1)

    @property
    def confidence(self) -> Tensor:
        """The largest probability of each sample, `[B]`."""
        return self.probabilities.amax(1)

    @property
    def missed(self) -> bool:
        """Whether the answer came after the deadline."""
        return self.deadline is not None and self.elapsed > self.deadline


class Predictor:
    """The best answer by a deadline.

    The first step always runs, so there always is an answer. A further step is started only if it is expected to finish in
    time: by `seconds.high`, the 90th percentile measured for it, or without a measurement as soon as time is left.

    Args:
        model: An anytime model; put into eval mode.
        seconds: Measured cumulative seconds per step, `anytime.cost.step_seconds(model, input_size)`.
        clock: Returns seconds; replaced in tests.

    Example:
        >>> predictor = Predictor(model, step_seconds(model, (3, 32, 32)))
        >>> predictor(image[None], deadline=0.005).label
        tensor([3])
    """

    def __init__(
        self, model: AnytimeModel, seconds: StepSeconds | None = None, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        steps = model.num_steps
        if seconds is not None and len(seconds.high) != steps:
            raise ValueError(f"seconds were measured for {len(seconds.high)} steps, the model has {steps}")
        self.model = model.eval()
        self._clock = clock
        high = seconds.high if seconds is not None else [0.0] * steps
        self._expected = [max(b - a, 0.0) for a, b in zip([0.0, *high], high, strict=False)]

    def stream(self, x: Tensor, deadline: float | None = None) -> Iterator[Answer]:
        """The answers about images `[B, C, H, W]` in [0, 1], one by one, as long as the deadline allows.

        Args:
            x: Images on the model's device.
            deadline: Seconds from now; None runs all steps.
        """
        start = self._clock()
        if deadline is not None and not (deadline > 0 and math.isfinite(deadline)):
            raise ValueError(f"deadline must be a number of seconds above zero, got {deadline!r}")
        return self._answers(x, start, deadline)

    def _answers(self, x: Tensor, start: float, deadline: float | None) -> Iterator[Answer]:
        with torch.inference_mode():
            stream = self.model.stream(x)
        steps = self.model.num_steps
        for step in range(1, steps + 1):
            with torch.inference_mode():
                probabilities = next(stream).float().softmax(1)
            if probabilities.is_cuda:
                torch.cuda.synchronize(probabilities.device)
            elapsed = self._clock() - start
            late = deadline is not None and step < steps and elapsed + self._expected[step] >= deadline
            yield Answer(probabilities, step, elapsed, deadline, "complete" if step == steps else "deadline" if late else "")
            if late:
                return

    def __call__(self, x: Tensor, deadline: float | None = None) -> Answer:
        """The last answer of `stream(x, deadline)`."""
        for answer in self.stream(x, deadline):
            last = answer
        return last
