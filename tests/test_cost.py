"""MACs and seconds per step."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anytime.cost import hardware, step_macs, step_seconds
from anytime.model import AnytimeModel


class Toy(AnytimeModel):
    """Two steps: a 3x3 convolution without padding, then the head; then only the head on its rectified output."""

    num_steps = 2

    def __init__(self) -> None:
        super().__init__(5, 2)
        self.conv = nn.Conv2d(2, 4, 3)
        self.head = nn.Linear(4, 5)
        self.modes: list[bool] = []
        self.batches: list[int] = []

    def initial_state(self, x: Tensor) -> Any:
        self.check_input(x)
        self.batches.append(len(x))
        return 0, x

    def step(self, state: Any) -> tuple[Tensor, Any]:
        self.modes.append(self.training)
        t, h = state
        h = self.conv(h).mean((2, 3)) if t == 0 else h.relu()
        return self.head(h), (t + 1, h)

    def answer(self, x: Tensor, step: int) -> Tensor:
        _, h = self.initial_state(x)
        return self.head(self.conv(h).mean((2, 3)))


class Failing(Toy):
    def step(self, state: Any) -> tuple[Tensor, Any]:
        raise RuntimeError("no")


def clock(durations: Iterable[float]) -> Callable[[], float]:
    """A clock whose calls are these many seconds apart."""
    now, durations = 0.0, iter(durations)

    def read() -> float:
        nonlocal now
        now += next(durations)
        return now

    return read


CONV, HEAD = 4 * 2 * 9 * 5 * 6, 4 * 5  # MACs at 7x8 images


def test_step_macs() -> None:
    model = Toy()
    assert step_macs(model, (2, 7, 8)) == [CONV + HEAD, CONV + 2 * HEAD]
    assert step_macs(model, (2, 7, 8), contract=True) == [CONV + HEAD, CONV + HEAD]
    assert step_macs(model.double(), (2, 7, 8)) == [CONV + HEAD, CONV + 2 * HEAD]
    assert set(model.batches) == {1}


@pytest.mark.parametrize("training", [True, False])
def test_training_flag_is_restored(training: bool) -> None:
    model = Toy().train(training)
    step_macs(model, (2, 5, 5))
    step_seconds(model, (2, 5, 5), repeats=1, warmup=0)
    assert not any(model.modes)
    assert all(module.training == training for module in model.modules())
    failing = Failing().train(training)
    for measure in (step_macs, step_seconds):
        with pytest.raises(RuntimeError, match="no"):
            measure(failing, (2, 5, 5))
        assert failing.training == training


def test_step_seconds_are_quantiles_of_cumulative_times() -> None:
    # Each stream reads the clock at its start and after both steps. One warm-up, then five measured streams.
    warmup = [0, 100, 100]
    streams = [[0, 1, 10], [0, 5, 10], [0, 2, 10], [0, 4, 10], [0, 3, 40]]
    times = step_seconds(Toy(), (2, 5, 5), 3, 5, 1, clock([*warmup, *(d for stream in streams for d in stream)]))
    assert times.median == [3, 14]  # of 1 2 3 4 5, and of 11 12 14 15 43
    assert times.low == pytest.approx([1.4, 11.4], abs=1e-12)
    assert times.high == pytest.approx([4.6, 31.8], abs=1e-12)
    assert (times.batch_size, times.repeats) == (3, 5)


def test_step_seconds_pause_between_streams_is_not_counted() -> None:
    times = step_seconds(Toy(), (2, 5, 5), repeats=2, warmup=0, clock=clock([0, 1, 1, 1000, 1, 1]))
    assert times.median == [1, 2]
    assert times.low == times.high == times.median


def test_step_seconds_measure_the_batch_in_eval_mode() -> None:
    model = Toy().train()
    times = step_seconds(model, (2, 5, 5), batch_size=4, repeats=2, warmup=1)
    assert model.batches == [4] * 3
    assert 0 < times.median[0] < times.median[1]


@pytest.mark.parametrize("measure", [step_macs, step_seconds])
@pytest.mark.parametrize(
    ("input_size", "message"),
    [((5, 5), r"input_size must be \(channels, height, width\), .*, got \(5, 5\)"), ((3, 5, 5), r"must be \[B, 2, H, W\]")],
)
def test_wrong_input_size(measure: Callable[..., Any], input_size: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        measure(Toy(), input_size)


def test_wrong_repeats() -> None:
    with pytest.raises(ValueError, match="repeats must be at least 1, got 0"):
        step_seconds(Toy(), (2, 5, 5), repeats=0)


def test_hardware() -> None:
    assert f"{torch.get_num_threads()} threads" in hardware(torch.device("cpu"))
