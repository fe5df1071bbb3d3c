"""Frames at a fixed rate, on a clock that only steps and waiting advance."""

import itertools
from collections.abc import Callable

import pytest
import torch

from anytime.runtime import Predictor, frames

FRAMES = [torch.full((3, 2, 2), 0.5)] * 4


def answer_frames(timed_case: Callable, seconds: list[float], fps: float, factor: float = 1.0, images=FRAMES):
    clock, model, profile = timed_case(seconds, factor)
    start = clock.now

    def sleep(seconds: float) -> None:
        clock.now += seconds

    for frame in frames(Predictor(model, profile, clock=clock), images, fps, sleep):
        yield frame, clock.now - start, model, clock


def test_every_frame_has_until_the_next_one(timed_case: Callable) -> None:
    seen = [
        (frame.number, frame.answer.step, frame.missed, at)
        for frame, at, *_ in answer_frames(timed_case, [0.25, 0.25, 0.25, 0.5], fps=1.0)
    ]
    assert seen == [(n, 3, False, n + 0.75) for n in range(4)]


def test_all_steps_at_a_slow_rate(timed_case: Callable) -> None:
    for frame, *_ in answer_frames(timed_case, [0.25, 0.25], fps=1.0):
        assert (frame.answer.step, frame.answer.reason, frame.answer.deadline) == (2, "complete", 1.0)
        assert frame.held is frame.answer


def test_if_no_step_fits_the_last_frames_answer_stands(timed_case: Callable) -> None:
    seen = []
    for frame, _, _, clock in answer_frames(timed_case, [0.5, 0.25], fps=1.0):
        seen.append(frame)
        if frame.number == 0:
            clock.now += 1.0  # until 1.75: something else used up the next frame's time
    assert [frame.answer.step for frame in seen] == [2, -1, 2, 2]
    assert [frame.missed for frame in seen] == [False, True, False, False]
    assert torch.equal(seen[1].held.probabilities, seen[0].answer.probabilities)


def test_a_frame_that_is_over_before_its_turn_is_dropped(timed_case: Callable) -> None:
    seen = []
    for frame, _, _, clock in answer_frames(timed_case, [0.25], fps=1.0):
        seen.append((frame.answer.step, frame.missed))
        if frame.number == 0:
            clock.now += 2.0  # until 2.25: frame 1 is over, frame 2 has 0.75 left
            first = frame.answer
        if frame.number == 1:
            assert torch.equal(frame.held.probabilities, first.probabilities)
            assert frame.answer.macs.tolist() == [0]
    assert seen == [(1, False), (-1, True), (1, False), (1, False)]


def test_an_answer_that_came_late_is_not_in_hand(timed_case: Callable) -> None:
    """Profiled at a quarter of the truth: the first step takes 1.25 frames."""
    seen = [frame for frame, *_ in answer_frames(timed_case, [1.25], fps=1.0, factor=0.25, images=FRAMES[:2])]
    assert [frame.missed for frame in seen] == [True, True]
    assert seen[0].held is None
    assert seen[0].answer.step == 1
    assert seen[1].held is seen[0].answer


@pytest.mark.parametrize("at", range(1, 12))
def test_a_clock_that_jumps_past_the_end_of_a_frame_at_any_reading(timed_case: Callable, at: int) -> None:
    """The process is suspended for three frames at any clock reading: frames are missed, but no error is raised."""
    clock, model, profile = timed_case([0.25])
    readings = itertools.count(1)

    def jumpy() -> float:
        if next(readings) == at:
            clock.now += 3.0
        return clock.now

    def sleep(seconds: float) -> None:
        clock.now += seconds

    predictor = Predictor(model, profile, clock=jumpy)
    seen = [frame.answer.step for frame in frames(predictor, FRAMES * 3, 1.0, sleep)]
    assert len(seen) == 12
    assert set(seen) <= {-1, 1}
    assert seen[-1] == 1


@pytest.mark.parametrize("fps", [0, -1, float("nan"), float("inf")])
def test_bad_rates(timed_case: Callable, fps: float) -> None:
    clock, model, profile = timed_case([0.01])
    with pytest.raises(ValueError, match="fps must be a number of frames per second above zero, got"):
        frames(Predictor(model, profile, clock=clock), FRAMES, fps)
