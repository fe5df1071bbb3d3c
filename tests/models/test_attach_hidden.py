"""What a tensor of zeros hides when exits are attached is found: the check gives every tensor ordinary values meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import anytime


class Gated(nn.Module):
    """Two layers, and a gate that begins at `start` and lets nothing of the second one through as long as that is zero."""

    def __init__(self, start: float, kind: str) -> None:
        super().__init__()
        gate = torch.full((8, 1, 1), start)
        if kind == "parameter":
            self.gate = nn.Parameter(gate)
        elif kind == "frozen":
            self.gate = nn.Parameter(gate, requires_grad=False)
        else:
            self.register_buffer("gate", gate)
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1)
        self.norm, self.fc = nn.BatchNorm2d(8), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x)).relu()
        return self.fc((x + self.gate * self.second(x)).mean((2, 3)))


@pytest.mark.parametrize("kind", ["buffer", "parameter", "frozen"])
@pytest.mark.parametrize("start", [0.0, 1e-6, -1e-6])
def test_stages_that_forget_what_a_closed_gate_hides_are_found(kind: str, start: float) -> None:
    network = Gated(start, kind)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    stages = [lambda net, x: net.norm(net.first(x)).relu(), lambda net, x: net.fc(x.mean((2, 3)))]
    with pytest.raises(ValueError, match="do not give what Gated gives"):
        anytime.attach_exits(network, stages=stages, input_size=8)
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


class Logarithm(nn.Module):
    """Fails, or gives no number, with a shift other than its own."""

    def __init__(self, raises: bool) -> None:
        super().__init__()
        self.raises = raises
        self.register_buffer("shift", torch.zeros(()))
        self.first, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        if self.raises and float(self.shift) != 0:
            raise RuntimeError("another shift")
        return self.fc(self.first(x).mean((2, 3))) + torch.log(0.1 - self.shift)


@pytest.mark.parametrize("raises", [True, False])
def test_a_network_that_takes_only_weights_like_its_own_is_checked_with_them(raises: bool) -> None:
    network = Logarithm(raises).eval()
    right = [lambda net, x: net.first(x), lambda net, x: net.fc(x.mean((2, 3))) + torch.log(0.1 - net.shift)]
    model = anytime.attach_exits(network, stages=right, input_size=8).eval()
    assert float(network.shift) == 0
    x = torch.rand(2, 3, 8, 8)
    assert torch.equal(model(x)[-1], network(x))
    wrong = [right[0], lambda net, x: net.fc(x.mean((2, 3)))]
    with pytest.raises(ValueError, match="do not give what Logarithm gives"):
        anytime.attach_exits(network, stages=wrong, input_size=8)


class Own(nn.Module):
    """A part of one function, which stays whole."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *given: Any) -> Any:
        return self.function(*given)


class Blocks(nn.Module):
    """Four blocks, a part of its own and a table in an attribute; what it does with them is a function."""

    def __init__(self, function: Callable[[Blocks, Tensor], Tensor], part: Callable[..., Any] = abs) -> None:
        super().__init__()
        self.function, self.part, self.table = function, Own(part), torch.zeros(8, 1, 1)
        self.blocks = nn.ModuleList(nn.Conv2d(3 if i == 0 else 8, 8, 3, padding=1) for i in range(4))
        self.fc = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)

    def rest(self, x: Tensor, table: Tensor | float = 0.0) -> Tensor:
        for block in self.blocks:
            x = block(x).relu() + table
        return self.fc(x.mean((2, 3)))


def note_if_bright(x: Tensor, flag: Tensor) -> Tensor:
    flag.copy_(x.mean() > 0.5)
    return x


def decide_by_a_note(net: Blocks, x: Tensor) -> Tensor:
    flag = torch.zeros(())
    x = net.part(x, flag)
    return net.rest(x if flag.item() > 0 else -x)


def write_by_numpy(net: Blocks, x: Tensor) -> Tensor:
    table = torch.zeros(8, 1, 1)
    table.numpy()[:4] = 1
    return net.rest(x, table)


def from_an_array(net: Blocks, x: Tensor) -> Tensor:
    return net.rest(x, torch.as_tensor(np.arange(8, dtype=np.float32)).view(8, 1, 1))


@pytest.mark.parametrize(
    ("function", "why"),
    [(decide_by_a_note, "decides by the values"), (write_by_numpy, "values of a tensor"), (from_an_array, "constant tensor")],
)
def test_what_a_graph_would_hold_as_a_constant_is_an_error(function: Callable[[Blocks, Tensor], Tensor], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        anytime.attach_exits(Blocks(function, note_if_bright), exits=3, input_size=8)


def scale_by_numpy(net: Blocks, x: Tensor) -> Tensor:
    return net.rest(x * np.sqrt(2.0), torch.full((8, 1, 1), np.float32(0.1)) + np.int64(3))


@pytest.mark.filterwarnings("ignore:exit 1 is at")
def test_numbers_of_numpy_are_numbers() -> None:
    network = Blocks(scale_by_numpy).eval()
    model = anytime.attach_exits(network, exits=3, input_size=8).eval()
    x = torch.rand(2, 3, 8, 8)
    assert torch.equal(model(x)[-1], network(x))


def add_if_very_bright(x: Tensor, table: Tensor) -> Tensor:
    if x.mean() > 2:
        table.add_(1)
    return x * 1


def table_for_a_part(net: Blocks, x: Tensor) -> Tensor:
    table = torch.zeros(8, 1, 1)
    return net.rest(net.part(x, table), table)


def test_a_part_that_writes_for_some_images_only_is_an_error_when_it_does() -> None:
    network = Blocks(table_for_a_part, add_if_very_bright).eval()
    model = anytime.attach_exits(network, exits=3, input_size=8).eval()
    x = torch.rand(2, 3, 8, 8)
    assert torch.equal(model(x)[-1], network(x))
    for guard in (torch.no_grad(), torch.inference_mode()):
        with guard, pytest.raises(ValueError, match="'part' writes into a tensor that the network makes"):
            model(9 * x)


def temperature(net: Blocks, x: Tensor) -> Tensor:
    warm = torch.ones(1)
    warm.mul_(2)
    return net.rest(x) / warm


def test_a_written_table_may_be_needed_after_a_new_classifier() -> None:
    network = Blocks(temperature).eval()
    model = anytime.attach_exits(network, exits=3, input_size=8, num_classes=5, reset=True).eval()
    x = torch.rand(2, 3, 8, 8)
    assert torch.equal(model(x)[-1], network(x))
    assert torch.equal(model.head_answers(model.trunk_features(x)), model(x))


def count_in_an_attribute(net: Blocks, x: Tensor) -> Tensor:
    net.table += 1
    return net.rest(x, 1e-7 * net.table)


def test_attributes_are_as_they_were() -> None:
    network = Blocks(count_in_an_attribute)
    with suppress(ValueError):
        anytime.attach_exits(network, exits=2, input_size=8)
    assert not network.table.any()


class Sequence(nn.Module):
    """Reads an image as a sequence of its pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.ModuleList(nn.Conv1d(8, 8, 3, padding=1) for _ in range(4))
        self.fc = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2)
        for block in self.blocks:
            x = block(x).relu()
        return self.fc(x.mean(2))


def test_a_head_whose_width_would_be_that_of_the_image_fixes_the_size() -> None:
    model = anytime.attach_exits(Sequence(), exits=3, input_size=8)
    with pytest.raises(ValueError, match="was cut for images of 8x8 pixels, got 12x12"):
        model(torch.rand(2, 3, 12, 12))
