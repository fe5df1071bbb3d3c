"""Learning-rate schedules as pure functions of progress."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from anytime.training.schedules import Constant, Cosine, MultiStep, OneCycle, Schedule

PROGRESS = st.floats(0, 1)
SCHEDULES = st.one_of(
    st.builds(Constant),
    st.builds(Cosine, st.floats(0, 0.99)),
    st.builds(OneCycle, st.floats(0.01, 0.99), st.floats(0, 1)),
    st.builds(MultiStep, st.lists(st.floats(0.01, 0.99), unique=True, max_size=4).map(sorted), st.floats(0, 1)),
)


@given(SCHEDULES, PROGRESS)
def test_factors_lie_between_0_and_1(schedule: Schedule, progress: float) -> None:
    assert 0 <= schedule(progress) <= 1


def test_constant() -> None:
    assert [Constant()(p) for p in (0.0, 0.5, 1.0)] == [1, 1, 1]


@given(st.floats(0, 0.99))
def test_cosine_end_points(warmup: float) -> None:
    schedule = Cosine(warmup)
    assert schedule(0) == (0 if warmup > 0 else 1)
    assert schedule(warmup) == 1
    assert schedule((1 + warmup) / 2) == pytest.approx(0.5, abs=1e-12)
    assert schedule(1) == pytest.approx(0, abs=1e-15)


@given(st.floats(0.01, 0.99), st.floats(0, 1))
def test_one_cycle_end_points(peak: float, start: float) -> None:
    schedule = OneCycle(peak, start)
    assert schedule(0) == start
    assert schedule(peak) == 1
    assert schedule(peak / 2) == pytest.approx((1 + start) / 2, abs=1e-12)
    assert schedule((1 + peak) / 2) == pytest.approx(0.5, abs=1e-12)
    assert schedule(1) == 0


@given(PROGRESS, PROGRESS, st.floats(0.01, 0.99))
def test_up_before_the_peak_and_down_after_it(first: float, second: float, peak: float) -> None:
    low, high = sorted((first, second))
    for schedule in (Cosine(peak), OneCycle(peak, 0.1)):
        if high < peak:
            assert schedule(low) <= schedule(high)
        if low >= peak:
            assert schedule(low) >= schedule(high)


@given(PROGRESS, PROGRESS)
def test_multi_step_never_rises(first: float, second: float) -> None:
    low, high = sorted((first, second))
    assert MultiStep()(low) >= MultiStep()(high)


def test_milestones_are_the_papers() -> None:
    schedule = MultiStep()
    epochs = [0, 99, 100, 149, 150, 199]
    assert [schedule(epoch / 200) for epoch in epochs] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    assert schedule(1) == pytest.approx(0.01)


@given(st.lists(st.floats(0.01, 0.99), unique=True, max_size=4).map(sorted), st.floats(0.1, 0.9))
def test_multi_step_falls_exactly_at_its_milestones(milestones: list[float], gamma: float) -> None:
    schedule = MultiStep(milestones, gamma)
    for passed, milestone in enumerate(milestones):
        assert schedule(math.nextafter(milestone, 0)) == gamma**passed
        assert schedule(milestone) == gamma ** (passed + 1)


@given(PROGRESS, st.floats(0, 0.99))
def test_cosine_is_continuous(progress: float, warmup: float) -> None:
    assume(warmup == 0 or warmup > 1e-6)
    nearby = min(1.0, progress + 1e-9)
    steepest = max(1 / warmup if warmup else 0.0, 0.5 * math.pi / (1 - warmup))
    assert abs(Cosine(warmup)(nearby) - Cosine(warmup)(progress)) <= 1.001e-9 * steepest + 1e-12


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Cosine(1.0), r"warmup must lie in \[0, 1\), got 1.0"),
        (lambda: Cosine(-0.1), "warmup"),
        (lambda: OneCycle(peak=0.0), r"peak must lie in \(0, 1\) and start in \[0, 1\], got peak=0.0, start=0.1"),
        (lambda: OneCycle(peak=1.0), "peak"),
        (lambda: OneCycle(start=1.5), "start=1.5"),
        (lambda: MultiStep((0.75, 0.5)), r"milestones must increase within \(0, 1\), got \(0.75, 0.5\)"),
        (lambda: MultiStep((0.0,)), "milestones"),
        (lambda: MultiStep((0.5, 1.0)), "milestones"),
        (lambda: MultiStep(gamma=-1), r"gamma must lie in \[0, 1\], got -1"),
        (lambda: MultiStep(gamma=math.nan), r"gamma must lie in \[0, 1\], got nan"),
        (lambda: MultiStep(gamma="x"), r"gamma must lie in \[0, 1\], got 'x'"),  # type: ignore[arg-type]
    ],
)
def test_wrong_arguments(build: Callable[[], Schedule], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
