"""Tables that a network makes and then writes into: the writing is part of what is cut, whatever the weights are later."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import anytime


def ones_after_zeros(net: Tables, x: Tensor) -> Tensor:
    table = torch.zeros(8, 1, 1)
    table[:4] = 1
    return table


def one_for_each_image(net: Tables, x: Tensor) -> Tensor:
    table = torch.zeros(x.shape[0], 8, 1, 1)
    table[:, :4] = 1
    return table


def sines(net: Tables, x: Tensor) -> Tensor:
    table = torch.zeros(8, 1, 1)
    table[0::2] = torch.sin(torch.arange(4.0)).view(4, 1, 1)
    table[1::2] = torch.cos(torch.arange(4.0)).view(4, 1, 1)
    return table


def filled(net: Tables, x: Tensor) -> Tensor:
    table = torch.ones(8, 1, 1)
    table[2:5].fill_(3.0)
    return table


def part_of_a_weight(net: Tables, x: Tensor) -> Tensor:
    weight = net.bias.clone()
    weight[2:5] = 0
    return weight.view(8, 1, 1)


class Tables(nn.Module):
    """Adds one table after each of its four blocks."""

    def __init__(self, table: Callable[[Tables, Tensor], Tensor]) -> None:
        super().__init__()
        self.table, self.bias = table, nn.Parameter(0.02 * torch.randn(8))
        self.blocks = nn.ModuleList(nn.Conv2d(3 if i == 0 else 8, 8, 3, padding=1) for i in range(4))
        self.fc = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        table = self.table(self, x)
        for block in self.blocks:
            x = block(x).relu() + table
        return self.fc(x.mean((2, 3)))


@pytest.mark.filterwarnings("ignore:exit 1 is at")
@pytest.mark.parametrize("exits", [2, 4])
@pytest.mark.parametrize("table", [ones_after_zeros, one_for_each_image, sines, filled, part_of_a_weight])
def test_a_table_is_written_where_the_network_writes_it(table: Callable[[Tables, Tensor], Tensor], exits: int) -> None:
    network = Tables(table).eval()
    model = anytime.attach_exits(network, exits=exits, input_size=8).eval()
    with torch.no_grad():
        for weight in network.parameters():
            weight.mul_(3)  # small weights hide what is lost
    x = torch.rand(3, 3, 8, 8)
    assert torch.equal(model(x)[-1], network(x))
    model.train()
    ours, theirs = (
        torch.autograd.grad(logits.sum(), [*network.parameters()], allow_unused=True) for logits in (model(x)[-1], network(x))
    )
    assert all(a is b is None or torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
