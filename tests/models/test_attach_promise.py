"""What no function of torch shows to a trace is refused: gradients of its own, hooks, other random numbers, kept tensors."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from anytime.models.surgery.attach.build import attach_exits
from anytime.models.surgery.attach.checks import check_stages
from anytime.models.surgery.attach.model import AttachedExits

SIZE = (3, 8, 8)


class Net(nn.Module):
    """Does something between two parts that can be cut."""

    def __init__(self, how: Any) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.fc, self.how = nn.Linear(4, 5), how

    def forward(self, x: Tensor) -> Tensor:
        h = self.how(self, self.b(self.a(x)).relu())
        return self.fc(self.c(h).relu().mean((2, 3)))


class Part(nn.Module):
    """The same as a part of a network."""

    def __init__(self, how: Any) -> None:
        super().__init__()
        self.inner, self.how = nn.Conv2d(3, 3, 1), how

    def forward(self, x: Tensor) -> Tensor:
        return self.how(self, self.inner(x))


def attached(how: Any) -> AttachedExits:
    torch.manual_seed(0)
    return attach_exits(Net(how).eval(), exits=3, input_size=SIZE).eval()


class Sign(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h: Tensor) -> Tensor:
        return h.sign()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient


sign = Sign.apply


def hooked(net: nn.Module, h: Tensor) -> Tensor:
    if h.requires_grad:
        h.register_hook(lambda gradient: gradient.clamp(-1e-4, 1e-4))
    return h


def kept(net: nn.Module, h: Tensor) -> Tensor:
    net.aux = h.square().mean()
    return h


UNSEEN = {
    "function": (lambda net, h: Sign.apply(h), "calls Sign, a torch.autograd.Function, whose gradient a graph loses"),
    "its apply": (lambda net, h: sign(h), "calls Sign, a torch.autograd.Function, whose gradient a graph loses"),
    "hook": (hooked, r"puts a hook on a tensor in forward.*\(test_attach_promise\.py, line \d+\)"),
    "kept": (kept, "keeps a tensor as 'aux' in forward"),
    "random": (lambda net, h: h * random.uniform(0.9, 1.1) if net.training else h, "random numbers of Python or NumPy"),
    "numpy": (lambda net, h: h * np.random.rand() if net.training else h, "random numbers of Python or NumPy"),
    "reentrant": (lambda net, h: checkpoint(torch.tanh, h, use_reentrant=True), "must be use_reentrant=False"),
}


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("name", UNSEEN)
def test_what_a_graph_cannot_hold_is_refused(name: str) -> None:
    how, message = UNSEEN[name]
    with pytest.raises(ValueError, match=message):
        attached(how)


def test_a_hook_is_found_while_the_weights_are_frozen() -> None:
    with pytest.raises(ValueError, match="puts a hook on a tensor in forward"):
        attach_exits(Net(hooked).requires_grad_(False), exits=3, input_size=SIZE)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("name", ["function", "hook", "kept", "random", "reentrant"])
def test_a_part_that_does_what_a_graph_cannot_hold_stays_whole(name: str) -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 3, 1), Part(UNSEEN[name][0]), nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    model = attach_exits(layers, exits=["0", "1"], input_size=SIZE).train()
    first: Any = model.backbone[0]  # type: ignore[index]
    x, found = torch.rand(2, *SIZE), list[Tensor]()
    for run in (lambda: model(x)[-1], lambda: model.backbone(x)):
        random.seed(1)
        logits = run()
        model.zero_grad()
        logits.square().sum().backward()
        found += [logits, first.weight.grad, first.bias.grad]
    for one, two in zip(found[:3], found[3:], strict=True):
        assert torch.equal(one, two)


def test_stages_with_other_gradients_are_found_out() -> None:
    network = Net(lambda net, h: Sign.apply(h))
    stages: Any = [lambda net, x: net.b(net.a(x)).relu().sign(), lambda net, h: net.fc(net.c(h).relu().mean((2, 3)))]
    with pytest.raises(ValueError, match=r"in train mode they give another gradient of 'a\.weight'"):
        check_stages(network, stages, torch.rand(2, *SIZE))


def test_attaching_draws_no_random_numbers() -> None:
    random.seed(0)
    np.random.seed(0)
    expected = random.random(), np.random.rand()
    random.seed(0)
    np.random.seed(0)
    attach_exits([nn.Conv2d(3, 3, 1), Part(UNSEEN["random"][0]), nn.Flatten(), nn.Linear(192, 5)], 2, input_size=SIZE)
    assert (random.random(), np.random.rand()) == expected


def test_one_output_is_no_classification() -> None:
    layers = [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 1)]
    with pytest.raises(ValueError, match=r"gives one output, .* give task='regression' if it is a value"):
        attach_exits(layers, exits=2, input_size=SIZE)
    with pytest.raises(ValueError, match="task must be 'classification' or 'regression', got 'dense'"):
        attach_exits(layers, exits=2, input_size=SIZE, task="dense")
    model = attach_exits(layers, exits=2, input_size=SIZE, task="regression")
    assert model.info.task == "regression"


def test_a_compiled_network_is_refused() -> None:
    layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 5))
    compiled = nn.Sequential(*layers)
    compiled.compile(backend="eager")
    for network in (torch.compile(layers, backend="eager"), compiled):
        with pytest.raises(
            ValueError, match="is compiled: attach exits to the network itself, and compile the model with exits"
        ):
            attach_exits(network, exits=2, input_size=SIZE)


def test_parts_in_another_precision_are_one_sentence() -> None:
    class Mixed(Net):
        def forward(self, x: Tensor) -> Tensor:
            h = self.b(self.a(x).bfloat16()).relu()
            return self.fc(self.c(h).to(x.dtype).mean((2, 3)))

    network = Mixed(None)
    network.b.bfloat16()
    network.c.bfloat16()
    with pytest.raises(ValueError, match="the stages do not do what Mixed does: they fail with '"):
        attach_exits(network, exits=["b"], input_size=SIZE)
