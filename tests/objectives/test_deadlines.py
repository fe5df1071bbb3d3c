"""Weights from a sample of deadlines, against a count by hand."""

from __future__ import annotations

import json
import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from anytime.objectives import Weighted
from anytime.objectives.weighting import from_deadlines
from anytime.runtime.profile import BatchProfile, Latency, Profile
from anytime.training.config import find, parse


def profile_of(times: list[float], slow: float = 1.0) -> Profile:
    """A profile whose answers take these seconds, and `slow` times as many at p99."""
    rows = tuple(Latency(10, time, time, time * slow, time * slow, time * slow) for time in times)
    other = tuple(Latency(10, *[1e3] * 5) for _ in times)
    macs = tuple(range(1, len(times) + 1))
    return Profile(
        "model", (3, 8, 8), {}, {1: BatchProfile(other, rows, other), 8: BatchProfile(other, other, other)}, macs, macs
    )


def by_hand(times: list[float], deadlines: list[float]) -> list[float]:
    """For each deadline, look at every answer; the last one that is there in time serves it."""
    served = [[t for t, time in enumerate(times) if time <= deadline] for deadline in deadlines]
    counts = [sum(bool(fits) and fits[-1] == t for fits in served) for t in range(len(times))]
    return [count / sum(counts) for count in counts]


SECONDS = st.floats(1e-6, 10)


@given(st.lists(SECONDS, min_size=1, max_size=8), st.data())
def test_shares_are_those_counted_by_hand(times: list[float], data: Any) -> None:
    """In any order of times, with deadlines exactly at them."""
    deadlines = data.draw(
        st.lists(st.one_of(SECONDS, st.sampled_from(times), st.just(math.inf), st.floats(-1, 0)), min_size=1)
    )
    early = sum(deadline < min(times) for deadline in deadlines)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if early == len(deadlines):
            with pytest.raises(ValueError, match=f"all {early} deadlines are before the first answer"):
                from_deadlines(profile_of(times), deadlines)
            return
        weights = from_deadlines(profile_of(times), deadlines)
    assert weights == by_hand(times, deadlines)
    assert sum(weights) == pytest.approx(1)
    assert len(caught) == bool(early)


def test_deadlines_between_two_answers_serve_the_first_of_them() -> None:
    profile = profile_of([0.001, 0.002, 0.004])
    assert from_deadlines(profile, [0.001, "1.5ms", "1999us", 0.002, 0.0039, "4ms", None, math.inf]) == [3 / 8, 2 / 8, 3 / 8]
    assert from_deadlines(profile, np.array([0.003, 0.005])) == from_deadlines(profile, torch.tensor([0.003, 0.005]).double())


def test_what_falls_before_the_first_answer_is_left_out_and_said() -> None:
    said = r"2 of 4 deadlines are before the first answer, which takes 2 ms \(p99\), and are left out"
    with pytest.warns(UserWarning, match=said):
        assert from_deadlines(profile_of([0.002, 0.004]), [0, "1ms", "3ms", "5ms"]) == [0.5, 0.5]


def test_the_quantile_decides_when_an_answer_is_there() -> None:
    profile = profile_of([0.001, 0.002], slow=2)
    assert from_deadlines(profile, ["3ms"]) == [1, 0], "at p99 the second answer takes 4 ms"
    assert from_deadlines(profile, ["3ms"], quantile="p50") == [0, 1]


def test_on_the_command_line() -> None:
    weights = from_deadlines(profile_of([0.001, 0.002, 0.003]), ["1ms", "2ms", "2ms", "5ms"])
    flags = ["--model", "anytimenet", "--data", "digits", "--objective.weights", json.dumps(weights)]
    config = parse(flags)["objective"]
    objective: Any = find("objective", config["class_path"])(**config["init_args"])
    assert type(objective) is Weighted
    losses = objective.step_weights(torch.zeros(3))
    torch.testing.assert_close(losses, torch.tensor([0.25, 0.5, 0.25]))


@pytest.mark.parametrize(
    ("deadlines", "message"),
    [
        ([], "deadlines must hold at least one, got none"),
        ("5ms", r"deadlines must be a sample such as \[0.005, '8ms'\], got '5ms'"),
        (0.005, r"deadlines must be a sample such as \[0.005, '8ms'\], got 0.005"),
        (b"5ms", r"deadlines must be a sample such as \[0.005, '8ms'\], got b'5ms'"),
        ({"5ms": 3, "8ms": 1}, r"deadlines must be a sample such as \[0.005, '8ms'\], got {'5ms': 3, '8ms': 1}"),
        ({0.005, 0.008}, r"deadlines must be a sample such as \[0.005, '8ms'\], got {"),
        (torch.tensor(0.005), r"deadlines must be a sample such as \[0.005, '8ms'\], got tensor"),
        (np.array(0.005), r"deadlines must be a sample such as \[0.005, '8ms'\], got array"),
        ([0.1, math.nan], "each of the deadlines must be a number of seconds, or text with a unit .*, got nan"),
        (["5 minutes"], "each of the deadlines must be a number of seconds, or text with a unit .*, got '5 minutes'"),
        (["1ms", -1], r"all 2 deadlines are before the first answer, which takes 2 ms \(p99\): no answer serves them"),
    ],
)
def test_wrong_deadlines(deadlines: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_deadlines(profile_of([0.002, 0.004]), deadlines)


def test_wrong_quantile() -> None:
    with pytest.raises(ValueError, match="quantile must be one of p50, p90, p99, p999, max, got 'median'"):
        from_deadlines(profile_of([0.002]), [1], quantile="median")
