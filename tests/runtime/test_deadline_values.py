"""What users give as a deadline, and what it means: the same in calls, streams, contract mode, sessions, curves and frames."""

import math
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch

from anytime import Answer
from anytime.runtime import Predictor, frames
from anytime.runtime.deadline_curve import DeadlineCurve
from anytime.support.units import deadline_seconds, typed_seconds

X = torch.full((1, 3, 2, 2), 0.5)
LAST = Answer((torch.tensor([[0.1, 0.1, 0.1, 0.1, 0.6]]),), torch.tensor([2]), 0.01, None, torch.tensor([20]))
WAYS: dict[str, Callable] = {
    "call": lambda predictor, **given: predictor(X, **given),
    "stream": lambda predictor, **given: list(predictor.stream(X, **given))[-1],
    "contract": lambda predictor, **given: predictor(X, contract=True, **given),
}
POSITIVE = [
    0.025,
    np.float64(0.025),
    np.float32(0.025),
    np.array(0.025),
    torch.tensor(0.025),
    torch.tensor(0.025, dtype=torch.float64),
    Fraction(1, 40),
    "25ms",
    " 25 ms ",
    "+.025s",
    "25000us",
    "2.5e1ms",
]
PASSED = [0, 0.0, -0.0, -1, -1.0, -math.inf, np.int64(0), np.float32(-1), torch.tensor(0), torch.tensor(-0.5), "0ms", "-5ms"]
PASSED += [-(10**400), np.array(-math.inf)]
NONE = [None, math.inf, 1.1e9, 10**10, 10**400, np.float64(math.inf), torch.tensor(math.inf), torch.tensor(2 * 10**9), "1e10s"]
NAN = [math.nan, np.float32(math.nan), torch.tensor(math.nan), np.array(math.nan)]
TEXT = [
    "",
    "5",
    "0.005",
    "ms",
    "5 minutes",
    "5MS",
    "nan",
    "inf",
    "nan s",
    "inf s",
    "soon",
    "5ms 3us",
    "\u0665ms",
    "1e9",
    "--5ms",
]
TYPES = [True, False, np.bool_(True), torch.tensor(True), 1j, b"5ms", [0.005], (0.005,), {}, object(), Decimal("0.005")]
TYPES += [np.array([0.005]), torch.tensor([0.005]), torch.tensor(1j), np.timedelta64(5, "ms")]


CURVE = DeadlineCurve(torch.tensor([0.01, 0.02, 0.03, 0.04], dtype=torch.float64), torch.arange(5, dtype=torch.float64) / 4)
ASKS: dict[str, tuple[str, Callable]] = {  # the name in errors
    **{way: ("deadline", lambda predictor, given, ask=ask: ask(predictor, deadline=given)) for way, ask in WAYS.items()},
    "curve of one": ("deadline", lambda _, given: CURVE.steps([given])),
    "curve of several": ("deadline", lambda _, given: CURVE.accuracy([0.01, given])),
    "curve of objects": ("deadline", lambda _, given: CURVE.expected(objects(given))),
    "shortest": ("shortest", lambda _, given: CURVE.area(given, 1.0)),
    "longest": ("longest", lambda _, given: CURVE.area(0.0, given)),
    "guard": ("guard", lambda predictor, given: Predictor(predictor.model, guard=given)),
    "session": ("seconds", lambda predictor, given: predictor.session(X).wait(given)),
}


def objects(*values: object) -> np.ndarray:
    array = np.empty(len(values), object)
    for place, value in enumerate(values):
        array[place] = value
    return array


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("deadline", POSITIVE, ids=repr)
def test_a_budget_from_the_moment_of_the_call(timed_case: Callable, deadline, way: str) -> None:
    clock, model, profile = timed_case([0.01] * 4)
    answer = WAYS[way](Predictor(model, profile, clock=clock), deadline=deadline)
    assert answer.deadline == pytest.approx(0.025)
    assert isinstance(answer.deadline, float)
    assert (answer.step, answer.reason, answer.missed) == (2, "deadline", False)


@pytest.mark.parametrize("profiled", [True, False])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("deadline", PASSED, ids=repr)
def test_a_deadline_that_has_passed_gives_the_prior(timed_case: Callable, deadline, way: str, profiled: bool) -> None:
    clock, model, profile = timed_case([0.01] * 4)
    predictor = Predictor(model, profile if profiled or way == "contract" else None, clock=clock)
    uniform = torch.full((1, 5), 0.2)
    for given, expected in ((None, uniform), (LAST, LAST.probabilities)):
        answer = WAYS[way](predictor, deadline=deadline, prior=given)
        assert (answer.step, answer.reason, answer.missed) == (-1, "deadline", True)
        assert (answer.steps.tolist(), answer.macs.tolist()) == ([-1], [0])
        assert answer.deadline <= 0
        assert torch.equal(answer.probabilities, expected)
    assert model.started == []


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("deadline", NONE, ids=lambda value: repr(value)[:20])
def test_no_deadline(timed_case: Callable, deadline, way: str) -> None:
    clock, model, profile = timed_case([0.01] * 4)
    answer = WAYS[way](Predictor(model, profile, clock=clock), deadline=deadline)
    assert (answer.step, answer.reason, answer.deadline, answer.missed) == (4, "complete", None, False)


@pytest.mark.parametrize("way", ASKS)
@pytest.mark.parametrize(
    ("values", "error"), [(NAN, ValueError), (TEXT, ValueError), (TYPES, TypeError)], ids=["nan", "text", "types"]
)
def test_what_is_no_deadline_is_repeated(timed_case: Callable, values, error: type[Exception], way: str) -> None:
    clock, model, profile = timed_case([0.01])
    predictor, (name, ask) = Predictor(model, profile, clock=clock), ASKS[way]
    for value in values:
        with pytest.raises(error, match=f"{name} must be a number of seconds, or text with a unit like '5ms'") as caught:
            ask(predictor, value)
        assert str(caught.value).endswith(f", got {value!r}")
    assert way == "session" or model.started == []


@pytest.mark.parametrize(("values", "step"), [(POSITIVE, 2), (PASSED, 0), (NONE, 4)], ids=["positive", "passed", "none"])
def test_a_curve_takes_the_same_values(values, step: int) -> None:
    for given in values:
        assert CURVE.steps(given).tolist() == step
        assert CURVE.accuracy(given).shape == ()
        assert CURVE.expected(given) == step / 4
    for several in (values, tuple(values), iter(values), objects(*values)):
        assert CURVE.steps(several).tolist() == [step] * len(values)


def test_a_curve_takes_arrays_of_any_type_and_shape() -> None:
    assert CURVE.steps(np.array([["5ms", "25ms"], ["1s", "-1s"]])).tolist() == [[0, 2], [4, 0]]
    assert CURVE.steps(np.array([None, "25ms"], object)).tolist() == [4, 2]
    assert CURVE.steps(np.array([0.0, 0.025, 1.0], np.float32)[::-1]).tolist() == [4, 2, 0]
    assert CURVE.steps(torch.tensor([[0, 1]], requires_grad=False)).tolist() == [[0, 4]]
    assert CURVE.steps(torch.tensor([0.0, 1.0], dtype=torch.bfloat16, requires_grad=True)).tolist() == [0, 4]
    assert CURVE.area("10ms", np.float64(0.03)) == CURVE.area(0.01, 0.03) == pytest.approx(0.375)
    for wrong in (np.array([True, False]), torch.tensor([True]), True, b"5ms", {0.01: 1}, torch.ones(2) * 1j, objects(True)):
        with pytest.raises(TypeError, match="deadline must be a number of seconds, or text with a unit"):
            CURVE.steps(wrong)
    for wrong in ("5", np.array(["5ms", "soon"]), math.nan, [0.01, math.nan], np.array(math.nan), torch.tensor([math.nan])):
        with pytest.raises(ValueError, match="seconds"):
            CURVE.accuracy(wrong)


def test_a_guard_is_a_time(timed_case: Callable) -> None:
    clock, model, profile = timed_case([0.01] * 4)
    for guard in ("15ms", "0.015s", np.float32(0.015), torch.tensor(0.015)):
        assert Predictor(model, profile, guard=guard, clock=clock)(X, "36ms").step == 2
    assert Predictor(model, profile, guard=math.inf, clock=clock)(X, 1e3).step == -1
    for guard, error in ((-1, ValueError), ("-1ms", ValueError), (-math.inf, ValueError), (None, TypeError)):
        with pytest.raises(error, match=f"guard must be at least 0 seconds, got {guard!r}"):
            Predictor(model, profile, guard=guard)


def test_a_rate_of_frames_is_a_number(timed_case: Callable) -> None:
    clock, model, profile = timed_case([0.01] * 4)
    predictor = Predictor(model, profile, clock=clock)
    for rate in (np.float32(32), np.float64(32), torch.tensor(32.0), torch.tensor(32), np.array(32), 32, Fraction(32)):
        clock.now = 2.0**30  # a float32 has 128 seconds there
        ends = [frame.answer.deadline for frame in frames(predictor, [X[0]] * 3, rate, lambda seconds: None)]
        assert ends[0] == 1 / 32
        assert type(ends[0]) is float
    for value in (*NAN, math.inf, 0, -1.0, torch.tensor(-1), np.float32(0)):
        with pytest.raises(ValueError, match="fps must be a number of frames per second above zero, got"):
            frames(predictor, [X[0]], value)
    for value in (*TEXT, *TYPES, None, "30"):
        with pytest.raises(TypeError, match="fps must be a number of frames per second above zero, got") as caught:
            frames(predictor, [X[0]], value)
        assert str(caught.value).endswith(f", got {value!r}")


@pytest.mark.parametrize("way", WAYS)
def test_an_absolute_time_may_have_passed_and_may_be_never(timed_case: Callable, way: str) -> None:
    clock, model, profile = timed_case([0.01] * 4)
    predictor = Predictor(model, profile, clock=clock)
    for until in (99.0, clock.now, -math.inf, np.float32(3)):
        answer = WAYS[way](predictor, until=until)
        assert (answer.step, answer.reason, answer.missed) == (-1, "deadline", True)
    for until in (math.inf, 1e10):
        answer = WAYS[way](predictor, until=until)
        assert (answer.step, answer.deadline) == (4, None)
    assert WAYS[way](predictor, until=torch.tensor(clock.now + 0.025, dtype=torch.float64)).step == 2
    for wrong, error in ((math.nan, ValueError), ("5ms", TypeError), (True, TypeError), ([1.0], TypeError)):
        with pytest.raises(error, match="until must be a time of the clock in seconds, got"):
            WAYS[way](predictor, until=wrong)


def test_a_session_waits_for_the_same_values(timed_case: Callable) -> None:
    clock, model, profile = timed_case([0.01] * 4)
    predictor = Predictor(model, profile, clock=clock)
    with predictor.session(X) as session:
        session.wait()
        for value in (*POSITIVE, *NONE, *PASSED):
            assert session.wait(value).step == 4
        for value in (*NAN, *TEXT):
            with pytest.raises(ValueError, match="seconds must be a number of seconds"):
                session.wait(value)
        for value in TYPES:
            with pytest.raises(TypeError, match="seconds must be a number of seconds"):
                session.wait(value)


def test_a_first_frame_whose_time_is_over_has_the_prior(timed_case: Callable) -> None:
    _, model, profile = timed_case([0.25])
    readings = iter([100.0, 100.0])
    predictor = Predictor(model, profile, clock=lambda: next(readings, 103.0))
    first = next(iter(frames(predictor, [X[0]], 1.0)))
    assert (first.answer.step, first.missed, first.held) == (-1, True, None)
    assert model.started == []


def test_a_number_that_was_typed_is_a_number() -> None:
    for text, seconds in (("5ms", 0.005), ("0.005", 0.005), ("5", 5.0), ("800us", 0.0008), ("-1", -1.0), ("-5ms", -0.005)):
        assert typed_seconds(text) == pytest.approx(seconds)
    assert typed_seconds("-inf") == -math.inf
    assert typed_seconds("inf") is typed_seconds("1e10") is None
    for text in ("", "soon", "5 minutes", "nan", "True", "5MS"):
        with pytest.raises(ValueError, match=f"deadline must be a number of seconds, .*, got '{text}'"):
            typed_seconds(text)


def test_a_deadline_in_seconds_is_exact() -> None:
    assert deadline_seconds("5ms") == 0.005
    assert deadline_seconds(1e9) == 1e9
    assert deadline_seconds(5e-324) == 5e-324
