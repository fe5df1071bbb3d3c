"""Synthetic traces: logits grow towards the label, sooner for easy samples."""

from collections.abc import Callable

import pytest
import torch

from anytime.trace import Trace


@pytest.fixture(scope="session")
def make_trace() -> Callable[..., Trace]:
    def make(samples: int, steps: int = 5, classes: int = 4, seed: int = 0) -> Trace:
        generator = torch.Generator().manual_seed(seed)
        labels = torch.randint(classes, (samples,), generator=generator)
        ease = torch.rand(samples, generator=generator) * 2
        noise = torch.randn(steps, samples, classes, generator=generator).cumsum(0)
        logits = noise / torch.arange(1, steps + 1)[:, None, None] ** 0.5
        logits[:, torch.arange(samples), labels] += ease * torch.arange(1, steps + 1)[:, None] ** 0.5
        macs = torch.arange(1, steps + 1) * 100
        names = tuple(map(str, range(classes)))
        return Trace(logits, labels, macs, None, macs.double() / 1e5, names, meta={"groups": None})

    return make


@pytest.fixture(scope="session")
def from_probabilities() -> Callable[..., Trace]:
    def make(probabilities: list, labels: list[int], macs: list[int]) -> Trace:
        logits = torch.tensor(probabilities).log()
        names = tuple(map(str, range(logits.shape[2])))
        return Trace(logits, torch.tensor(labels), torch.tensor(macs), None, None, names, meta={"groups": None})

    return make
