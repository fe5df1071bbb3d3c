"""A trace small enough to compute every metric by hand: 3 steps, 4 samples, 3 classes, labels 0 1 2 0."""

import pytest
import torch

from anytime.trace import Trace

PROBABILITIES = [
    [[0.5, 0.3, 0.2], [0.6, 0.3, 0.1], [0.4, 0.35, 0.25], [0.7, 0.2, 0.1]],  # right, wrong, wrong, right
    [[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.5, 0.2, 0.3], [0.3, 0.6, 0.1]],  # right, right, wrong, wrong
    [[0.9, 0.05, 0.05], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6], [0.2, 0.7, 0.1]],  # right, right, right, wrong
]


@pytest.fixture
def trace() -> Trace:
    return Trace(
        logits=torch.tensor(PROBABILITIES).log(),
        labels=torch.tensor([0, 1, 2, 0]),
        macs=torch.tensor([10, 40, 100]),
        contract_macs=torch.tensor([10, 30, 60]),
        seconds=torch.tensor([0.001, 0.003, 0.004], dtype=torch.float64),
        class_names=("ant", "bee", "cat"),
        meta={"model": "by hand", "dataset": "four", "parameters": 5, "seconds_low": [0.0, 0.002, 0.003]},
    )


@pytest.fixture
def levels(trace: Trace) -> Trace:
    """Two label levels: three classes and two."""
    coarse = torch.zeros(3, 4, 2)
    coarse[..., 1] = 1
    return Trace(
        logits=torch.cat([trace.logits, coarse], dim=2),
        labels=torch.tensor([[0, 1], [1, 1], [2, 0], [0, 1]]),
        macs=trace.macs,
        contract_macs=None,
        seconds=None,
        class_names=("ant", "bee", "cat", "no", "yes"),
        class_weights=torch.arange(10.0).reshape(5, 2),
        meta={"levels": [3, 2]},
    )
