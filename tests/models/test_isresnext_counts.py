"""IS-ResNeXt: multiply-adds, parameters, depths and caches of the published models."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from anytime.cost import step_macs
from anytime.models.slicing.isresnext import ISResNeXt, isresnext, isresnext_cub, isresnext_imagenet


def on_meta(factory: Callable[..., ISResNeXt], *arguments: Any) -> ISResNeXt:
    """Builds the model without numbers, so that counts of full size take no time."""
    with torch.device("meta"):
        return factory(*arguments)


class Paper:
    """A published model: its geometry, and in millions its MACs, those of each step of a stream, and its parameters."""

    def __init__(
        self, factory: Any, classes: int, geometry: tuple[int, int, int, int, int], layout: str, digits: int, rows: Any
    ) -> None:
        self.factory, self.classes, self.digits = factory, classes, digits
        self.each, self.scales, self.width, self.steps, self.cardinality = geometry
        self.kernel, self.stem_size, self.size = (9, 32, 32) if layout == "cifar" else (49, 112, 56)
        self.image = (3, 32, 32) if layout == "cifar" else (3, 224, 224)
        self.macs, self.stream, self.parameters, self.stored = rows

    def counts(self, k: int) -> dict[str, int]:
        """Parameters and MACs of sub-network k."""
        groups = self.steps
        row = Counter(conv=self.kernel * 3 * k * self.width // groups)
        row["macs"] = row["conv"] * self.stem_size**2
        for scale in range(self.scales):
            unit = 4 * 2**scale
            trunk, inner = self.width * 2**scale // groups, self.cardinality * unit // groups
            conv = k * (k + 1) // 2 * trunk * inner + 9 * k * inner * unit + k * inner * trunk
            row["conv"] += self.each * conv
            row["norm"] += self.each * k * (2 * trunk + 4 * inner)
            row["macs"] += self.each * conv * (self.size // 2**scale) ** 2
        last = k * trunk
        row["head macs"] = last * self.classes
        row["head"] = 2 * last + row["head macs"] + self.classes
        row["macs"] += row["head macs"]
        return row


CIFAR, IMAGENET, CUB = (5, 3, 96, 6, 18), (5, 4, 160, 5, 30), (4, 4, 192, 6, 36)
CIFAR_MACS = [13.0, 28.9, 47.8, 69.6, 94.4, 122.1]
CIFAR_STEPS = [12.98, 15.93, 18.88, 21.83, 24.78, 27.73]
PUBLISHED = {
    "CIFAR-10": Paper(
        *(isresnext, 10, CIFAR, "cifar", 3),
        (CIFAR_MACS, CIFAR_STEPS, {1: 0.090, 2: 0.200, 3: 0.330, 4: 0.480, 5: 0.650, 6: 0.840}, 0.852),
    ),
    "CIFAR-100": Paper(isresnext, 100, CIFAR, "cifar", 3, (None, None, {1: 0.096, 6: 0.875}, 0.974)),
    "ImageNet": Paper(
        *(isresnext_imagenet, 1000, IMAGENET, "imagenet", 2),
        (
            *([210, 468, 774, 1128, 1531], [209.8, 258.2, 306.6, 355.1, 403.5]),
            *({1: 1.29, 2: 2.91, 3: 4.86, 4: 7.13, 5: 9.73}, 12.30),
        ),
    ),
    "CUB": Paper(
        *(isresnext_cub, 200, CUB, "imagenet", 2),
        (
            *([179, 397, 654, 949, 1283, 1655], [179.5, 218.1, 256.7, 295.2, 333.8, 372.4]),
            *({1: 0.88, 2: 2.03, 3: 3.43, 4: 5.09, 5: 7.02, 6: 9.21}, 9.99),
        ),
    ),
}


@pytest.mark.parametrize("name", ["CIFAR-10", "ImageNet", "CUB"])
def test_macs_of_the_paper(name: str) -> None:
    """Exact counts, and in millions to the digits given."""
    paper = PUBLISHED[name]
    model, rows = on_meta(paper.factory, paper.classes), [paper.counts(k) for k in range(1, paper.steps + 1)]
    contract = step_macs(model, paper.image, contract=True)
    assert contract == [row["macs"] for row in rows]
    digits = 1 if name == "CIFAR-10" else 0
    assert [round(cost / 1e6, digits) for cost in contract] == paper.macs
    stream = step_macs(model, paper.image)
    heads = [row["head macs"] for row in rows]
    assert stream == [cost + sum(heads[:k]) for k, cost in enumerate(contract)]
    steps = [after - before for before, after in zip([0, *stream], stream, strict=False)]
    assert [round(step / 1e6, digits + 1) for step in steps] == paper.stream
    expected = {"CIFAR-10": (1.0001, 3.08), "ImageNet": (1.0017, 2.69), "CUB": (1.0005, 3.09)}[name]
    assert (round(stream[-1] / contract[-1], 4), round(sum(contract) / contract[-1], 2)) == expected
    assert stream[-1] <= 1.002 * contract[-1]


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_of_the_paper(name: str) -> None:
    """Exact counts, and in millions to the digits given; nothing is stored above the diagonal, and no weight twice."""
    paper = PUBLISHED[name]
    model, rows = on_meta(paper.factory, paper.classes), [paper.counts(k) for k in range(1, paper.steps + 1)]
    for k, size in paper.parameters.items():
        thin = sum(p.numel() for p in model.subnetwork(k).parameters())
        assert thin == rows[k - 1]["conv"] + rows[k - 1]["norm"] + rows[k - 1]["head"]
        assert round(thin / 1e6, paper.digits) == size
    total = rows[-1]["conv"] + rows[-1]["norm"] + sum(row["head"] for row in rows)
    assert sum(p.numel() for p in model.parameters()) == total
    assert round(total / 1e6, paper.digits) == paper.stored
    if name == "ImageNet":
        assert round(sum(row["head"] for row in rows) / 1e6, 2) == 3.85
    layers = sum(isinstance(module, nn.Conv2d | nn.Linear) for module in model.subnetwork(1).modules())
    assert layers == 3 * paper.each * paper.scales + 2 == {"ImageNet": 62, "CUB": 50}.get(name, 47)
    assert not any("places" in key for key in model.state_dict())


@pytest.mark.parametrize(("name", "millions"), [("CIFAR-10", 0.86), ("ImageNet", 4.70), ("CUB", 4.52)])
def test_caches_are_the_inputs_of_the_blocks(name: str, millions: float) -> None:
    paper = PUBLISHED[name]
    model = on_meta(paper.factory)
    state: Any = model.initial_state(torch.zeros(1, *paper.image, device="meta"))
    assert state.caches == ()
    with torch.no_grad():
        for _ in range(model.num_steps):
            _, state = model.step(state)
    assert len(state.caches) == len(model.blocks) + 1
    assert round(sum(cache.numel() for cache in state.caches[:-1]) / 1e6, 2) == millions
