"""Weights from a sample of deadlines, against a count by hand."""

from __future__ import annotations

import json
import math
import warnings
from itertools import pairwise
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


def profile_of(times: list[float], slow: float = 1.0, **other: Any) -> Profile:
    """A profile whose answers take these seconds at the median, and whose steps take `slow` times as long at p99."""
    reached = tuple(Latency(10, *[time] * 5) for time in times)
    pairs = ((late, slow * late) for late in (after - before for before, after in pairwise([0.0, *times])))
    steps = tuple(Latency(10, median, median, tail, tail, tail) for median, tail in pairs)
    slower = tuple(Latency(10, *[1e3] * 5) for _ in times)
    macs = tuple(range(1, len(times) + 1))
    batches = {1: BatchProfile(steps, reached, slower), 8: BatchProfile(slower, slower, slower)}
    return Profile("model", (3, 8, 8), {}, batches, macs, macs, **other)


class Given(list[float]):
    """A profile that says exactly these shortest deadlines."""

    def shortest_deadlines(self, *, quantile: str, interrupt: str | None) -> list[float]:
        return self


def by_hand(times: list[float], deadlines: list[float]) -> list[float]:
    """For each deadline, look at every answer; the last one that is given under it serves it."""
    served = [[t for t, time in enumerate(times) if time <= deadline] for deadline in deadlines]
    counts = [sum(bool(fits) and fits[-1] == t for fits in served) for t in range(len(times))]
    return [count / sum(counts) for count in counts]


SECONDS = st.floats(1e-6, 10)


@given(st.lists(SECONDS, min_size=1, max_size=8).map(sorted), st.data())
def test_shares_are_those_counted_by_hand(times: list[float], data: Any) -> None:
    """With deadlines exactly at the times."""
    deadlines = data.draw(
        st.lists(st.one_of(SECONDS, st.sampled_from(times), st.just(math.inf), st.floats(-1, 0)), min_size=1)
    )
    early = sum(deadline < min(times) for deadline in deadlines)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if early == len(deadlines):
            with pytest.raises(ValueError, match=f"all {early} deadlines are before the first answer"):
                from_deadlines(Given(times), deadlines)
            return
        weights = from_deadlines(Given(times), deadlines)
    assert weights == by_hand(times, deadlines)
    assert sum(weights) == pytest.approx(1)
    assert len(caught) == bool(early)


def test_deadlines_between_two_answers_serve_the_first_of_them() -> None:
    profile = profile_of([0.001, 0.002, 0.004])
    assert from_deadlines(profile, [0.001, "1.5ms", "1999us", 0.002, 0.0039, "4ms", None, math.inf]) == [3 / 8, 2 / 8, 3 / 8]
    assert from_deadlines(profile, np.array([0.003, 0.005])) == from_deadlines(profile, torch.tensor([0.003, 0.005]).double())


def test_what_falls_before_the_first_answer_is_left_out_and_said() -> None:
    said = r"2 of 4 deadlines are before the first answer, which needs 2 ms, and are left out"
    with pytest.warns(UserWarning, match=said):
        assert from_deadlines(profile_of([0.002, 0.004]), [0, "1ms", "3ms", "5ms"]) == [0.5, 0.5]


def test_the_quantile_decides_when_an_answer_is_there() -> None:
    profile = profile_of([0.001, 0.002], slow=2)
    assert from_deadlines(profile, ["2500us"]) == [1, 0], "the second step may take 2 ms, after 1 ms"
    assert from_deadlines(profile, ["3ms"]) == [0, 1]
    assert from_deadlines(profile, ["2500us"], quantile="p50") == [0, 1]


def test_hard_deadlines_serve_what_is_there_in_time() -> None:
    profile = profile_of([0.001, 0.002], slow=2, interrupt="operator")
    deadlines = ["900us", "1.3ms", "2100us", "2.3ms"]
    with pytest.warns(UserWarning, match="1 of 4 deadlines are before the first answer, which needs 1 ms"):
        assert from_deadlines(profile, deadlines, interrupt="operator") == [2 / 3, 1 / 3]
    with pytest.warns(UserWarning, match="2 of 4 deadlines are before the first answer, which needs 2 ms"):
        assert from_deadlines(profile, deadlines) == [1, 0]


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
        (["1ms", -1], r"all 2 deadlines are before the first answer, which needs 2 ms: no answer serves them"),
    ],
)
def test_wrong_deadlines(deadlines: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_deadlines(profile_of([0.002, 0.004]), deadlines)


def test_wrong_quantile_and_rule() -> None:
    with pytest.raises(ValueError, match="interrupt must be 'operator' or 'step', got 'layer'"):
        from_deadlines(profile_of([0.002]), [1], interrupt="layer")
    with pytest.raises(ValueError, match="interrupt='operator' needs an engine that can cancel a step"):
        from_deadlines(profile_of([0.002]), [1], interrupt="operator")
    with pytest.raises(ValueError, match="quantile must be one of p50, p90, p99, p999, max, got 'median'"):
        from_deadlines(profile_of([0.002]), [1], quantile="median")
