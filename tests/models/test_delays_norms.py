"""Batch norm of delayed networks: separate running statistics for each time step."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anytime import add_delays
from anytime.models.common.step_norm import StepBatchNorm2d
from anytime.models.surgery.delays.model import DelayedNetwork

STEPS = 4  # for three blocks under a one-step delay


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, stride, 1)
        self.norm = nn.BatchNorm2d(outputs, eps=1e-3, momentum=0.3)
        self.short = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs)) if stride > 1 else None
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.norm(self.conv(x)) + (x if self.short is None else self.short(x)))


class Net(nn.Module):
    """Three blocks, and norms of other kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, 1, 1), nn.BatchNorm2d(4))
        self.blocks = nn.Sequential(Block(4, 4), Block(4, 6, 2), Block(6, 6))
        self.plain = nn.BatchNorm2d(6, affine=False)
        self.batch = nn.BatchNorm2d(6, track_running_stats=False)
        self.flat = nn.BatchNorm1d(6)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.batch(self.plain(self.blocks(self.stem(x))))
        return self.head(self.flat(x.mean((2, 3))))


BRANCHES = [f"blocks.{i}.norm" for i in range(3)]
ROWS = {"stem.1": 1, "blocks.0.norm": 1, "blocks.1.norm": 2, "blocks.1.short.1": 2, "blocks.2.norm": 3}


def images(*size: int, seed: int = 0) -> Tensor:
    return torch.rand(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def largest(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return (a - b).abs().max().item()


def make() -> Net:
    """A network with updated running statistics, in float64."""
    torch.manual_seed(0)
    network = Net().double().train()
    for seed in range(3):
        network(3 * images(8, 3, 8, 8, seed=seed))
    return network


def per_step(network: nn.Module, **arguments: Any) -> DelayedNetwork:
    return add_delays(copy.deepcopy(network), BRANCHES, num_classes=5, statistics="per_step", **arguments)


def simulated(network: Net, train: bool, frames: list[Tensor]) -> tuple[list[Tensor], list[Net]]:
    """The answers at t = 0, 1, ..., each from a separate network, and these networks. They share their weights; in training,
    each has its own statistics."""
    lines: dict[str, list[Tensor]] = {name: [] for name in BRANCHES}
    copies, answers = [], []
    for t, frame in enumerate(frames):
        memo: Any = {id(p): p for p in network.parameters()}
        copies.append(copy.deepcopy(network, memo).train(train))
        for name in BRANCHES:

            def late(module: nn.Module, _: Any, out: Tensor, name: str = name, t: int = t) -> Tensor:
                lines[name].append(out)
                return lines[name][t - 1] if t else torch.zeros_like(out)

            copies[-1].get_submodule(name).register_forward_hook(late)
        answers.append(copies[-1](frame))
    return answers, copies


def rows(model: DelayedNetwork) -> dict[str, int]:
    return {name: norm.rows for name, norm in model.network.named_modules() if isinstance(norm, StepBatchNorm2d)}


def test_fresh_networks_answer_as_before(simulate: Any) -> None:
    network, x = make().eval(), images(2, 3, 8, 8)
    expected = torch.stack(simulate(network, BRANCHES, (0.0, 1.0), [x] * STEPS))
    model = per_step(network).eval()
    assert rows(model) == ROWS
    assert largest(model(x), expected) < 1e-12
    assert torch.equal(per_step(network, kernel="instant").eval()(x)[0], network(x))
    assert model.network.blocks[0].norm.eps == 1e-3
    assert model.network.blocks[0].norm.momentum == 0.3
    assert type(model.network.plain) is type(model.network.batch) is nn.BatchNorm2d
    assert type(model.network.flat) is nn.BatchNorm1d


def test_training() -> None:
    """Answers, gradients and statistics are those of one network per time; shared statistics would fit none of them."""
    network, x = make(), images(6, 3, 8, 8, seed=5)
    model, other = per_step(network).train(), per_step(network).train()
    answers = model(x)
    expected, copies = simulated(network, True, [x] * STEPS)
    assert largest(answers, torch.stack(expected)) < 1e-10
    push = torch.randn_like(answers)
    (answers * push).sum().backward()
    (torch.stack(expected) * push).sum().backward()
    for (name, p), q in zip(model.network.named_parameters(), network.parameters(), strict=True):
        assert largest(p.grad, q.grad) < 1e-10 * max(1, q.grad.abs().max().item()), name
    for name, count in ROWS.items():
        norm = model.network.get_submodule(name)
        for row in range(count):
            mine = copies[row].get_submodule(name)
            assert largest(norm.running_mean[row], mine.running_mean) < 1e-12, (name, row)
            assert largest(norm.running_var[row], mine.running_var) < 1e-12, (name, row)
    assert largest(*model.network.blocks[1].norm.running_mean) > 1e-3
    assert largest(torch.stack(list(other.stream(x))), answers) < 1e-10
    for (name, a), b in zip(model.named_buffers(), other.buffers(), strict=True):
        assert largest(a.double(), b.double()) < 1e-12, name


def trained() -> DelayedNetwork:
    model = per_step(make()).train()
    for seed in range(3):
        model(2 * images(6, 3, 8, 8, seed=seed) - seed)
    return model.eval()


def test_evaluation_is_the_same_on_every_path(simulate: Any) -> None:
    model, x = trained(), images(2, 3, 8, 8)
    frames = images(7, 2, 3, 8, 8)
    plain = copy.deepcopy(model.network)
    expected = torch.stack(simulate(plain, BRANCHES, (0.0, 1.0), [x] * STEPS))
    moving = torch.stack(simulate(plain, BRANCHES, (0.0, 1.0), list(frames)))
    for mode in (torch.enable_grad, torch.no_grad):
        with mode():
            assert largest(model(x), expected) < 1e-10
            assert largest(torch.stack(list(model.stream(x))), expected) < 1e-10
            for step in range(1, STEPS + 1):
                assert largest(model(x, step=step), expected[step - 1]) < 1e-10
            assert largest(model(frames), moving) < 1e-10
            assert largest(torch.stack(list(model.stream(frames.unbind()))), moving) < 1e-10


def test_settled_answers_have_the_statistics_of_training() -> None:
    """With statistics per step, evaluation on the only training batch gives the answers of training."""
    x = images(16, 3, 8, 8)
    network = make()
    network.plain = network.batch = network.flat = nn.Identity()  # type: ignore[assignment]
    for statistics, least, most in (("per_step", 0.0, 0.02), ("shared", 0.1, 9.0)):
        model = add_delays(copy.deepcopy(network), BRANCHES, num_classes=5, statistics=statistics).train()  # type: ignore
        for norm in model.modules():
            if hasattr(norm, "momentum"):
                norm.momentum = 0.5
        with torch.no_grad():
            for _ in range(20):
                expected = model(x)
            answers = model.eval()(x)
        assert least <= largest(answers, expected) / expected.abs().max().item() <= most, statistics


def test_numbers_of_rows() -> None:
    network = make()
    assert set(rows(per_step(network, num_steps=2)).values()) == {1, 2}
    assert rows(per_step(network, num_steps=1)) == dict.fromkeys(ROWS, 1)
    assert rows(per_step(network, kernel="ews", num_steps=5)) == ROWS | {name: 5 for name in ROWS if "blocks" in name} | {
        "blocks.0.norm": 1
    }
    taps = rows(per_step(network, kernel=(0.5, 0.0, 0.5)))
    assert taps == {name: 2 * count - 1 for name, count in ROWS.items()}
    default = DelayedNetwork(copy.deepcopy(network), BRANCHES, num_classes=5, statistics=None)
    assert rows(default) == ROWS
    assert rows(DelayedNetwork(copy.deepcopy(network), BRANCHES, "ews", num_classes=5, statistics=None)) == {}
    assert rows(DelayedNetwork(copy.deepcopy(network), BRANCHES, num_classes=5)) == {}


def test_state_dicts() -> None:
    """Ordinary weights are loaded into every row, without shared memory; another number of rows is rejected."""
    network, x = make().eval(), images(2, 3, 8, 8)
    weights = {f"network.{key}": value for key, value in network.state_dict().items()}
    for assign in (False, True):
        model = trained()
        model.load_state_dict(model.state_dict() | weights, assign=assign)
        assert largest(model(x)[-1], network(x)) < 1e-12
        model.network.blocks[2].norm.running_mean[0].add_(1)
        assert torch.equal(model.network.blocks[2].norm.running_mean[1], network.blocks[2].norm.running_mean)
    model.network.load_state_dict(network.state_dict())
    other = trained()
    model.load_state_dict(other.state_dict())
    assert torch.equal(model(x), other(x))
    with pytest.raises(RuntimeError, match=r"size mismatch for network.blocks.1.norm.running_mean"):
        per_step(network, num_steps=1).load_state_dict(other.state_dict())


def test_a_norm_that_is_used_twice() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(3)
            self.again = nn.Sequential(self.norm)
            self.a, self.b = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = x + self.a(self.norm(x))
            x = x + self.b(self.again(x))
            return x.mean((2, 3))

    model = add_delays(Twice(), num_classes=3, statistics="per_step")
    assert model.network.norm is model.network.again[0]
    assert model.network.norm.rows == 2
    assert model(torch.rand(2, 3, 4, 4)).shape == (3, 2, 3)
