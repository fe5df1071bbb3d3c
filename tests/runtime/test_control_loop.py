"""A control loop at 30 Hz under load: every frame is answered, misses are counted, nothing is raised."""

import random
from collections.abc import Callable

import pytest
import torch

from anytime.runtime import Answer, Predictor

PERIOD, FRAMES = 1 / 30, 90


@pytest.mark.parametrize("contract", [False, True])
@pytest.mark.parametrize("profiled", [True, False])
def test_every_frame_of_a_late_loop_is_answered(timed_case: Callable, profiled: bool, contract: bool) -> None:
    clock, model, profile = timed_case([0.004, 0.004, 0.004, 0.004])
    predictor = Predictor(model, profile if profiled or contract else None, clock=clock)
    load, start, x = random.Random(0), clock.now, torch.full((1, 3, 2, 2), 0.5)
    answers: list[Answer] = []
    last: Answer | None = None
    for number in range(FRAMES):
        clock.now = max(clock.now, start + number * PERIOD)
        left = start + (number + 1) * PERIOD - clock()
        before = len(model.started)
        answer = predictor(x, deadline=left, prior=last, contract=contract)
        if left <= 0:
            assert (answer.step, answer.missed, answer.reason) == (-1, True, "deadline")
            assert len(model.started) == before  # no time is lost
            expected = torch.full((1, 5), 0.2) if last is None else last.probabilities
            assert torch.equal(answer.probabilities, expected)
        answers.append(answer)
        last = answer
        clock.now += load.choice([0.0, 0.01, 0.03, 0.08])  # what else the loop does
    late = sum(answer.deadline is not None and answer.deadline <= 0 for answer in answers)
    assert len(answers) == FRAMES
    assert late >= 20
    assert sum(answer.missed for answer in answers) >= late
    assert sum(answer.step >= 1 for answer in answers) >= 20
    assert all(answer.label.shape == (1,) for answer in answers)


def test_a_loop_that_starts_late_has_the_default_prior(timed_case: Callable) -> None:
    clock, model, profile = timed_case([0.004])
    given = torch.tensor([0.6, 0.1, 0.1, 0.1, 0.1])
    for prior, expected in ((None, torch.full((1, 5), 0.2)), (given, given[None])):
        answer = Predictor(model, profile, prior=prior, clock=clock)(torch.full((1, 3, 2, 2), 0.5), deadline=-0.01)
        assert (answer.step, answer.missed) == (-1, True)
        assert torch.equal(answer.probabilities, expected)
