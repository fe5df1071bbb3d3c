"""Configurations, parts and weights that are replaced after exits were attached: the plain network's answer, or an error."""

from __future__ import annotations

import copy
import pickle
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from anytime.models.surgery.attach.build import attach_exits
from anytime.models.surgery.attach.model import AttachedExits

SIZE = (3, 8, 8)


@dataclass(frozen=True)
class Config:
    scale: float = 1.0


class Defaults:
    scale = 1.0


class Inherited(Defaults):
    pass


class Slots:
    __slots__ = ("__dict__", "scale")

    def __init__(self, scale: float) -> None:
        self.scale = scale


class Schedule:
    def __init__(self, scale: Any) -> None:
        self.scale = scale

    def now(self) -> Any:
        return self.scale


class Net(nn.Module):
    """Does something between two parts that can be cut."""

    def __init__(self, how: Any, held: Any = None) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.fc, self.how, self.held = nn.Linear(4, 5), how, held

    def forward(self, x: Tensor) -> Tensor:
        h = self.how(self, self.b(self.a(x)).relu())
        return self.fc(self.c(h).relu().mean((2, 3)))


def scaled(net: Any, h: Tensor) -> Tensor:
    return h * net.held.scale


def scaled_inside(net: Any, h: Tensor) -> Tensor:
    return h * net.held.scale.scale


def scheduled(net: Any, h: Tensor) -> Tensor:
    return h * net.held.now()


def first_scaled(net: Any, h: Tensor) -> Tensor:
    return h * net.held[0].scale


def attached(network: nn.Module, **arguments: Any) -> AttachedExits:
    return attach_exits(network.eval(), **{"exits": 3, "input_size": SIZE} | arguments).eval()


def new(value: Any) -> Any:
    return lambda net, patch: setattr(net, "held", value)


REPLACED: dict[str, tuple[Any, Any, Any, str]] = {
    "frozen": (
        scaled,
        lambda: Config(),
        lambda net, patch: setattr(net, "held", replace(net.held, scale=3.0)),
        "cut with held = a Config, and has another Config now",
    ),
    "inside": (
        scaled_inside,
        lambda: Schedule(Config()),
        lambda net, patch: setattr(net.held, "scale", Config(3.0)),
        "'held' was cut with scale = a Config, and has another Config now",
    ),
    "method": (scheduled, lambda: Schedule(1.0), new(Schedule(3.0)), "another Schedule now"),
    "removed": (scaled, lambda: Config(), new(None), "held = a Config, and has None now"),
    "default": (scaled, Defaults, lambda net, patch: patch.setattr(Defaults, "scale", 3.0), r"scale = 1\.0, and has 3\.0 now"),
    "slots": (
        scaled,
        lambda: Slots(1.0),
        lambda net, patch: setattr(net.held, "scale", 3.0),
        r"scale = 1\.0, and has 3\.0 now",
    ),
    "base class": (
        scaled,
        lambda: Inherited,
        lambda net, patch: patch.setattr(Defaults, "scale", 3.0),
        r"held = Inherited\('scale', 1\.0\), and has Inherited\('scale', 3\.0\) now",
    ),
    "in a list": (first_scaled, lambda: [Defaults()], lambda net, patch: patch.setattr(Defaults, "scale", 3.0), "held = "),
}


@pytest.mark.parametrize("name", REPLACED)
def test_a_configuration_that_is_replaced_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    how, made, change, message = REPLACED[name]
    model = attached(Net(how, made()))
    x = torch.rand(2, *SIZE)
    twins = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
    for one in (model, *twins):
        assert torch.equal(one(x)[-1], one.backbone(x))
    change(model.backbone, monkeypatch)
    with pytest.raises(ValueError, match=f"{message}.*: attach the exits again"):
        model(x)
    for one in twins:
        monkeypatch.undo()
        one(x)
        change(one.backbone, monkeypatch)
        with pytest.raises(ValueError, match="attach the exits again"):
            one(x)


class Twice(Net):
    """Has one part under two names, in containers that are never called."""

    def __init__(self) -> None:
        super().__init__(None)
        self.first, self.second = nn.ModuleDict({"act": nn.Conv2d(4, 4, 1)}), nn.ModuleDict()
        self.second["act"] = self.first["act"]
        self.act = self.plain = nn.Conv2d(4, 4, 1)
        self.list = nn.ModuleList([nn.Conv2d(4, 4, 1)] * 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.act(self.plain(self.b(self.a(x)).relu()).relu()).relu()
        for part in self.list:
            h = part(h).relu()
        return self.fc(self.c(self.second["act"](self.first["act"](h).relu())).relu().mean((2, 3)))


def test_a_part_with_two_names_that_is_replaced_under_one_is_noticed() -> None:
    model = attached(Twice())
    x = torch.rand(2, *SIZE)
    assert torch.equal(model(x)[-1], model.backbone(x))
    for where, name in (("", "act"), ("", "plain"), ("list", "1"), ("first", "act"), ("second", "act")):
        twin = copy.deepcopy(model)
        assert torch.equal(twin(x)[-1], twin.backbone(x))
        twin.backbone.get_submodule(where)._modules[name] = nn.Conv2d(4, 4, 1)
        with pytest.raises(ValueError, match=f"has another '{name}' now: attach the exits again"):
            twin(x)


class Tied(Net):
    """Reads a weight, a buffer and a plain tensor that a layer that comes first also has."""

    def __init__(self) -> None:
        super().__init__(None)
        self.c.weight = self.b.weight
        self.a.register_buffer("mask", torch.rand(4, 1, 1))
        self.register_buffer("mask", self.a.mask)
        self.a.shift = self.shift = torch.rand(4, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = functional.conv2d(self.a(x), self.b.weight, padding=1).relu() * self.mask + self.shift
        return self.fc((functional.conv2d(h, self.c.weight, padding=1).relu() + self.shift).mean((2, 3)))


def gradients(network: nn.Module, answer: Tensor) -> dict[str, Tensor | None]:
    network.zero_grad()
    answer.square().sum().backward()
    return {name: None if weight.grad is None else weight.grad.clone() for name, weight in network.named_parameters()}


def untied(network: Any) -> None:
    network.b.weight, network.c.weight = (nn.Parameter(torch.rand(4, 4, 3, 3)) for _ in range(2))
    network.mask, network.shift = torch.rand(4, 1, 1), torch.ones(())


def assigned(network: Any) -> None:
    state = {name: torch.rand_like(value) for name, value in network.state_dict().items()}
    network.load_state_dict(state, assign=True)


def moved(network: Any) -> None:  # buffers become two, parameters stay one
    network.double()
    network.mask.fill_(2.0)


def test_tied_weights_that_are_untied_are_read_by_their_own_names() -> None:
    tied = attached(Tied())
    for change in (untied, assigned, moved):
        model = copy.deepcopy(tied)
        network: Any = model.backbone
        change(network)
        model.to(network.fc.weight.dtype)
        x = torch.rand(2, *SIZE, dtype=network.fc.weight.dtype)
        assert torch.equal(model(x)[-1], network(x))
        torch.testing.assert_close(gradients(network, model(x)[-1]), gradients(network, network(x)))


def test_a_tensor_that_is_read_under_two_names_before_it_is_used_is_refused() -> None:
    class Both(Tied):
        def forward(self, x: Tensor) -> Tensor:
            one, other = self.b.weight, self.c.weight
            h = functional.conv2d(functional.conv2d(self.a(x), one, padding=1).relu(), other, padding=1)
            return self.fc(h.mean((2, 3)))

    with pytest.raises(ValueError, match=r"reads one tensor as 'b\.weight' and as 'c\.weight', and nothing tells which"):
        attached(Both())
