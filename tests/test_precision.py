"""Answers and costs are those of the model's own precision, whatever autocast the caller has set."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anytime.cost import recomputed, step_macs, step_seconds
from anytime.model import AnytimeModel
from anytime.support.precision import own_precision
from anytime.trace import record


class Watched(AnytimeModel):
    """One convolution and a head; notes the precision of every feature."""

    num_steps = 2

    def __init__(self) -> None:
        super().__init__(3, 1)
        self.conv, self.head = nn.Conv2d(1, 8, 3), nn.Linear(8, 3)
        self.seen: set[torch.dtype] = set()

    def initial_state(self, x: Tensor) -> Any:
        return self.conv(x).mean((2, 3))

    def step(self, state: Any) -> tuple[Tensor, Any]:
        self.seen.add(state.dtype)
        return self.head(state), state + 1


@pytest.fixture
def model() -> Watched:
    torch.manual_seed(0)
    return Watched()


def test_a_trace_is_the_same_under_autocast(model: Watched) -> None:
    batches = [(torch.rand(4, 1, 8, 8), torch.zeros(4, dtype=torch.int64))]
    alone = record(model, batches, progress=False, seconds=False).logits
    with torch.autocast("cpu", torch.bfloat16):
        assert model(batches[0][0]).dtype is torch.bfloat16
        within = record(model, batches, progress=False, seconds=False).logits
        assert torch.is_autocast_enabled("cpu")
    assert torch.equal(within, alone)


@pytest.mark.parametrize(
    "measure",
    [
        lambda model: step_macs(model, (1, 8, 8)),
        lambda model: step_macs(model, (1, 8, 8), contract=True),
        lambda model: step_seconds(model, (1, 8, 8), repeats=1, warmup=0),
        lambda model: recomputed(model, torch.rand(1, 1, 8, 8)),
    ],
    ids=["macs", "contract macs", "seconds", "recomputed"],
)
def test_costs_are_measured_in_the_models_precision(model: Watched, measure: Any) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        measure(model)
        assert torch.is_autocast_enabled("cpu")
    assert model.seen == {torch.float32}


def test_devices_without_autocast_have_nothing_to_turn_off() -> None:
    with torch.autocast("cpu", torch.bfloat16), own_precision(torch.device("meta")):
        assert torch.is_autocast_enabled("cpu")
