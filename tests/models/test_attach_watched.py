"""What is absent when exits are attached, the parts of containers, hooks and what only train mode reads: all are watched."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from anytime.models.surgery.attach.build import attach_exits
from anytime.models.surgery.attach.model import AttachedExits

SIZE = (3, 8, 8)


class Net(nn.Module):
    """Does something between two parts that can be cut."""

    def __init__(self, how: Any) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.fc, self.how, self.p, self.space = nn.Linear(4, 5), how, 0.0, SimpleNamespace()
        self.blocks = nn.ModuleList(nn.Conv2d(4, 4, 1) for _ in range(3))
        self.none = nn.ModuleList()
        self.register_buffer("mask", None)
        self.register_parameter("scale", None)
        self.add_module("adapter", None)

    def forward(self, x: Tensor) -> Tensor:
        h = self.how(self, self.b(self.a(x)).relu())
        return self.fc(self.c(h).relu().mean((2, 3)))


def attached(how: Any) -> AttachedExits:
    torch.manual_seed(0)
    return attach_exits(Net(how).eval(), exits=3, input_size=SIZE).eval()


def through(name: str) -> Callable[[Any, Tensor], Tensor]:
    """Runs a list of parts, one after the other."""

    def run(net: Any, h: Tensor) -> Tensor:
        for part in getattr(net, name):
            h = part(h).relu()
        return h

    return run


def dropped(net: Any, h: Tensor) -> Tensor:
    return functional.dropout(h, net.p) if net.training and net.p > 0 else h


def set_to(name: str, value: Any) -> Callable[[Any], None]:
    return lambda net: setattr(net, name, value)


def dotted(name: str) -> Callable[[Any, Tensor], Tensor]:
    return lambda net, h: h if (found := getattr(net, name)) is None else found(h) if callable(found) else h * found


LATER: dict[str, tuple[Any, Any, str]] = {
    "dropout": (dropped, set_to("p", 0.5), r"p = 0\.0, and has 0\.5 now"),
    "default": (lambda net, h: h * getattr(net, "x", 1.0), set_to("x", 3.0), r"x = nothing, and has 3\.0 now"),
    "hasattr": (
        lambda net, h: net.x(h) if hasattr(net, "x") else h,
        set_to("x", nn.ReLU()),
        "x = nothing, and has a ReLU now",
    ),
    "of an object": (
        lambda net, h: h * getattr(net.space, "k", 1.0),
        lambda net: setattr(net.space, "k", 3.0),
        r"has SimpleNamespace\('k', 3\.0\) now",
    ),
    "buffer": (dotted("mask"), set_to("mask", torch.ones(())), "mask = None, and has a Tensor now"),
    "parameter": (dotted("scale"), set_to("scale", nn.Parameter(torch.ones(()))), "scale = None, and has a Parameter now"),
    "module": (dotted("adapter"), set_to("adapter", nn.Conv2d(4, 4, 1)), "adapter = None, and has a Conv2d now"),
    "append": (through("blocks"), lambda net: net.blocks.append(nn.ReLU()), "ModuleList 'blocks' has got a part '3'"),
    "append first": (through("none"), lambda net: net.none.append(nn.ReLU()), "ModuleList 'none' has got a part '0'"),
    "delete": (through("blocks"), lambda net: net.blocks.__delitem__(2), "ModuleList 'blocks' has lost its part '2'"),
    "hook": (dotted("mask"), lambda net: net.register_forward_hook(lambda m, x, y: 2 * y), "Net has other hooks"),
    "pre-hook": (dotted("mask"), lambda net: net.register_forward_pre_hook(lambda m, x: (2 * x[0],)), "Net has other hooks"),
    "gradient": (dotted("mask"), lambda net: net.register_full_backward_hook(lambda m, x, y: None), "Net has other hooks"),
}


@pytest.mark.parametrize("name", LATER)
def test_what_comes_later_is_noticed(name: str) -> None:
    how, change, message = LATER[name]
    model = attached(how)
    x = torch.rand(2, *SIZE)
    assert torch.equal(model(x)[-1], model.backbone(x))
    twin = copy.deepcopy(model)
    change(model.backbone)
    with pytest.raises(ValueError, match=f"{message}.*: attach the exits again"):
        model(x)
    twin(x)
    change(twin.backbone)
    with pytest.raises(ValueError, match="attach the exits again"):
        twin(x)


@pytest.mark.parametrize("insert", [True, False])
def test_the_parts_of_an_opened_sequence_are_watched(insert: bool) -> None:
    inner = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
    model = attach_exits([inner, nn.Flatten(), nn.Linear(16, 5)], exits=["0.0", "0.2"], input_size=SIZE)
    if insert:
        inner.insert(1, nn.Conv2d(4, 4, 1))
    else:
        del inner[1]
    with pytest.raises(ValueError, match=r"Sequential '0' has (got a part '5'|lost its part '4') since it was cut"):
        model(torch.rand(2, *SIZE))


def test_hooks_that_a_network_has_run() -> None:
    network = Net(dotted("mask")).eval()
    network.register_forward_hook(lambda module, x, y: 2 * y)
    model = attach_exits(network, exits=3, input_size=SIZE).eval()
    x = torch.rand(2, *SIZE)
    assert torch.equal(model(x)[-1], network(x))


def test_a_name_made_of_a_size_fits_one_size() -> None:
    model = attached(lambda net, h: h * getattr(net, "scale_%d" % h.shape[-1], 1.0))  # noqa: UP031, a text of Python's own
    with pytest.raises(ValueError, match="cut for images of 8x8 pixels, got 16x16"):
        model(torch.rand(2, 3, 16, 16))


def sliced(net: Any, h: Tensor) -> Tensor:
    for part in net.blocks[: h.shape[-1] // 8]:
        h = part(h).relu()
    return h


def test_a_list_that_a_size_cuts_fits_one_size() -> None:
    torch.manual_seed(0)
    model = attach_exits(Net(sliced).eval(), exits=3, input_size=(3, 32, 32)).eval()
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(model(x)[-1], model.backbone(x))
    with pytest.raises(ValueError, match="cut for images of 32x32 pixels, got 16x16"):
        model(torch.rand(2, 3, 16, 16))
