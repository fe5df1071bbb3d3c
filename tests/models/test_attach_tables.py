"""Tables that a network makes and then writes into: the writing is part of what is cut, whatever the weights are later."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

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


def several_at_once(net: Tables, x: Tensor) -> Tensor:
    tables = [torch.zeros(8, 1, 1), torch.ones(8, 1, 1)]
    torch._foreach_add_(tables, 1.0)
    return tables[0] * tables[1]


def part_of_a_weight(net: Tables, x: Tensor) -> Tensor:
    weight = net.bias.clone()
    weight[2:5] = 0
    return weight.view(8, 1, 1)


def copy_in_the_precision_of_images(net: Tables, x: Tensor) -> Tensor:
    table = torch.zeros(8, 1, 1)
    same = table.to(x.dtype)
    same[:4] = 1
    return same + 2 * table


def copy_for_each_image(net: Tables, x: Tensor) -> Tensor:
    table = torch.zeros(1, 8, 1, 1)
    each = table.expand(x.shape[0], 8, 1, 1).contiguous()
    each[:, :4] = 1
    return each + 2 * table


def joined_in_place(net: Tables, x: Tensor) -> Tensor:
    table = torch.empty(0)
    torch.cat((torch.ones(4), torch.zeros(4)), out=table)
    return table.view(8, 1, 1)


def drawn(net: Tables, x: Tensor) -> Tensor:
    return torch.rand(8, 1, 1)


def drawn_like_a_weight(net: Tables, x: Tensor) -> Tensor:
    return torch.rand_like(net.bias).view(8, 1, 1)


def in_another_order(net: Tables, x: Tensor) -> Tensor:
    return net.bias[torch.randperm(8)].view(8, 1, 1)


def soft_choice(net: Tables, x: Tensor) -> Tensor:
    return F.gumbel_softmax(net.bias, dim=0).view(8, 1, 1)


def weight_with_dropout(net: Tables, x: Tensor) -> Tensor:
    return F.dropout(net.bias, 0.5, net.training).view(8, 1, 1)


def count_before_it_rises(net: Tables, x: Tensor) -> Tensor:
    return net.count.seen.view(8, 1, 1) + 1


class Count(nn.Module):
    """Counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1
        return x * 1


class Tables(nn.Module):
    """Adds one table after each of its four blocks, if the gate is open."""

    def __init__(self, table: Callable[[Tables, Tensor], Tensor]) -> None:
        super().__init__()
        self.table, self.bias = table, nn.Parameter(0.02 * torch.randn(8))
        self.register_buffer("gate", torch.ones(()))
        self.count = Count()
        self.blocks = nn.ModuleList(nn.Conv2d(3 if i == 0 else 8, 8, 3, padding=1) for i in range(4))
        self.fc = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        table = self.table(self, x)
        x = self.count(x)
        for block in self.blocks:
            x = block(x).relu() + self.gate * table
        return self.fc(x.mean((2, 3)))


@pytest.mark.filterwarnings("ignore:exit 1 is at")
@pytest.mark.parametrize("exits", [2, 4])
@pytest.mark.parametrize("table", [ones_after_zeros, one_for_each_image, sines, filled, part_of_a_weight, several_at_once])
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


HIDDEN = [
    drawn,
    drawn_like_a_weight,
    in_another_order,
    soft_choice,
    weight_with_dropout,
    joined_in_place,
    count_before_it_rises,
]


@pytest.mark.filterwarnings("ignore:exit 1 is at")
@pytest.mark.parametrize("table", HIDDEN)
def test_what_is_drawn_or_changed_is_computed_once_also_if_nothing_shows_it(
    table: Callable[[Tables, Tensor], Tensor],
) -> None:
    network = Tables(table).eval()
    network.gate.zero_()
    model = anytime.attach_exits(network, exits=4, input_size=8)
    network.gate.fill_(1)
    network.bias.data.mul_(30)
    for x in (torch.rand(3, 3, 8, 8), torch.rand(1, 3, 8, 8)):
        for training in (False, True):
            model.train(training)
            answers = []
            for answer in (network, lambda x: model(x)[-1], lambda x: list(model.stream(x))[-1]):
                network.count.seen.zero_()
                torch.manual_seed(1)
                answers.append(answer(x))
            assert torch.equal(answers[0], answers[1])
            assert torch.equal(answers[0], answers[2])


def test_a_table_that_is_the_same_memory_as_a_copy_only_for_one_image_is_an_error() -> None:
    network = Tables(copy_for_each_image)
    network.gate.zero_()
    with pytest.raises(ValueError, match="exits must lie in"):
        anytime.attach_exits(network, exits=3, input_size=8)


@pytest.mark.filterwarnings("ignore:exit 1 is at")
def test_a_copy_that_is_the_same_memory_in_another_precision_is_written_once() -> None:
    network = Tables(copy_in_the_precision_of_images).eval().double()
    model = anytime.attach_exits(network, exits=3, input_size=8).eval().float()
    for batch in (1, 3):
        x = torch.rand(batch, 3, 8, 8)
        assert torch.equal(model(x)[-1], network(x))
