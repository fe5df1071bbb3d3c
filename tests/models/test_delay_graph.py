"""Tracing: networks written in many ways, the branches found in them, and the networks that are rejected."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import VisionTransformer

from anytime import add_delays
from anytime.model import select_samples

TAPS = (0.5, 0.0, 0.5)


def images(*size: int) -> Tensor:
    return torch.rand(*size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def largest(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return (a - b).abs().max().item()


class ThreeLayers(nn.Module):
    """The base of these networks: three linear layers on flat images."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 12)
        self.relu = nn.ReLU(inplace=True)


class InPlace(ThreeLayers):
    """Every reader of a tensor sees earlier in-place changes."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x.flatten(1))
        self.relu(h)
        r = self.b(h)
        r *= 0.5
        F.relu(r, True)
        r.add_(1).mul_(h)
        h = h + r
        torch.sigmoid_(h)
        g = self.c(h)
        g -= 1
        return h.add(g)


class Sum(ThreeLayers):
    """x + f(x) + g(x)."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        return x + self.b(self.relu(self.a(x))) + self.c(x)


class BatchSecond(ThreeLayers):
    """Its branch moves the batch to dimension 1."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        x = x + self.b(torch.relu(self.a(torch.stack([x, -x]))))[1:].squeeze(0)
        return x + self.c(x).view(len_of(x), -1)


def len_of(x: Tensor) -> int:
    return x.size(0)


class Dropping(ThreeLayers):
    """Its behaviour depends on its own mode, not on that of a module."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        return x + F.dropout(self.b(self.a(x)), 0.5, self.training)


class Deciding(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.shape[-1] < 3 else -x


class Branching(ThreeLayers):
    """torch.fx cannot look into its branch."""

    def __init__(self) -> None:
        super().__init__()
        self.way = nn.Sequential(nn.Linear(12, 12), Deciding())

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        return x + self.way(x)


def randomised(network: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for p in network.parameters():
        nn.init.normal_(p)
    return network.double()


@pytest.mark.parametrize(
    ("kind", "branches", "named", "leaves"),
    [
        (InPlace, ["b", "c"], True, ()),
        (Sum, ["b", "c"], True, ()),
        (Sum, ["b", "c"], False, ()),
        (BatchSecond, ["b", "c"], False, ()),
        (Branching, ["way"], True, ["way.1"]),
    ],
)
def test_ways_of_writing(simulate: Any, kind: Any, branches: list[str], named: bool, leaves: Sequence[str]) -> None:
    network, chosen = randomised(kind()).eval(), branches if named else None
    x = images(3, 3, 2, 2)
    instant = add_delays(copy.deepcopy(network), chosen, "instant", num_classes=12, leaves=leaves).eval()
    assert torch.equal(instant(x)[0], network(x))
    model = add_delays(copy.deepcopy(network), chosen, TAPS, num_classes=12, leaves=leaves).eval()
    expected = torch.stack(simulate(network, branches, TAPS, [x] * model.num_steps))
    assert largest(model(x), expected) < 1e-10
    state, answers = model.initial_state(x), []
    for _ in range(model.num_steps):
        logits, state = model.step(state)
        answers.append(logits[:2])
        state = select_samples(state, torch.arange(2))
    assert largest(torch.stack(answers), expected[:, :2]) < 1e-10


class Views(ThreeLayers):
    """In-place operations on views whose memory is not read elsewhere afterwards."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        x = x + self.a(x)
        one, two = x.chunk(2, 1)
        one.mul_(torch.sigmoid(two))
        F.relu_(two)
        x = torch.cat([one, two], 1)
        before, size = x, x.size(1)
        double = size
        double += size
        x *= 2
        mean = (before - x + size * x / double).mean(1, keepdim=True)
        y = self.relu(x.view(x.shape[0], 3, -1).transpose(1, 2))
        y.unsqueeze_(0)
        return self.b(mean + self.c(mean.new_ones(x.shape)) + y.sum((0, 2, 3)).unsqueeze(1))


class FromView(ThreeLayers):
    """A view is changed and another one is read afterwards: the one that the method is named after."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.same, self.drop = way, nn.Identity(), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        x = x + self.a(x)
        return self.b(getattr(self, self.way)(x))

    def base(self, x: Tensor) -> Tensor:
        x[:, 1:5].mul_(0.0)
        return x

    def activation(self, x: Tensor) -> Tensor:
        return x + self.relu(x.unflatten(1, (3, 4)).transpose(1, 2)).reshape(x.shape)

    def earlier(self, x: Tensor) -> Tensor:
        view = x.view(x.shape[0], 12)
        self.relu(x)
        return view

    def sibling(self, x: Tensor) -> Tensor:
        x.chunk(2, 1)[0].mul_(2)
        return torch.cat([x[:, 6:], x.chunk(2, 1)[1]], 1)

    def itself(self, x: Tensor) -> Tensor:
        self.same(x).add_(1)
        return x

    def dropped(self, x: Tensor) -> Tensor:
        return x + self.drop(x).add_(1)

    def operator(self, x: Tensor) -> Tensor:
        view = x.view(x.shape[0], 3, -1)
        view += 1
        return x

    def keyword(self, x: Tensor) -> Tensor:
        F.relu(input=x.T, inplace=True)
        return x


def test_views_that_are_changed_in_place() -> None:
    """They are rejected if the change would be lost."""
    network, x = randomised(Views()).eval(), images(3, 3, 2, 2)
    model = add_delays(copy.deepcopy(network), ["a"], "instant", num_classes=12).eval()
    with torch.no_grad():
        assert torch.equal(model(x)[0], network(x))
    for way, message in {
        "base": "mul_ changes getitem in place, and so add, which shares its memory and is read later by network_b",
        "activation": "network_relu changes transpose in place, and so add, .* read later by add_1",
        "earlier": "network_relu changes add in place, and so view, .* read later by network_b",
        "sibling": "mul_ changes getitem in place, and so getitem_1, .* read later by cat",
        "itself": "add_ changes network_same in place, and so add, .* read later by network_b",
        "dropped": "add_ changes network_drop in place, and so add, .* read later by add_1",
        "operator": "add_1 changes view in place, and so add, .* read later by network_b",
        "keyword": "relu changes getattr_1 in place, and so add, .* read later by network_b: .* let it give a new tensor",
    }.items():
        with pytest.raises(ValueError, match=message):
            add_delays(FromView(way), ["a"], num_classes=12)


class Gated(ThreeLayers):
    """A highway layer: two paths that share their gate are not x + f(x)."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        gate = torch.sigmoid(self.a(x))
        return gate * self.b(x) + (1 - gate) * x


class Equal(ThreeLayers):
    """Neither of two paths is shorter, and a sum without parameters learns nothing."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x.flatten(1)) + self.b(x.flatten(1))
        return x + 0.1 * torch.relu(x)


class Joined(ThreeLayers):
    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        return torch.cat([x, self.a(x)], 1)


def test_branches_that_are_found() -> None:
    assert add_delays(Sum(), num_classes=12).branches == ("b", "c")
    assert add_delays(BatchSecond(), num_classes=12).branches == ("squeeze", "view")
    assert add_delays(InPlace(), num_classes=12).branches == ("mul_", "sub")
    for network in (Gated(), Equal(), Joined()):
        with pytest.raises(
            ValueError, match=r"no skip connection .* in (Gated|Equal|Joined); name the modules .* instance 'a'"
        ):
            add_delays(network, num_classes=5)


def test_the_mode_decides_at_every_call() -> None:
    network = randomised(Dropping()).train()
    model = add_delays(network, num_classes=12)
    x = images(4, 3, 2, 2)
    assert model.training
    assert network.training
    assert (model(x)[1] - model(x)[1]).abs().max() > 0.1
    model.eval()
    assert torch.equal(model(x), model(x))
    assert largest(model(x)[1], network(x)) < 1e-12


def vit() -> VisionTransformer:
    return VisionTransformer(16, 8, 1, 2, 8, 16, num_classes=12)


class Dictionary(ThreeLayers):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = x.flatten(1)
        return {"out": x + self.a(x)}


class KeepsBatchSecond(ThreeLayers):
    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1).unsqueeze(1).transpose(0, 1)
        return (x + self.a(x)).transpose(0, 1).squeeze(1)


@pytest.mark.parametrize(
    ("network", "arguments", "message"),
    [
        (Sum, {"branches": ["reloo"]}, r"branches names 'reloo', but the network has no such module; did you mean 'relu'\?"),
        (Sum, {"leaves": ["layer"]}, "leaves names 'layer', but the network has no such module; valid: a, b, c, relu"),
        (Sum, {"branches": []}, "no skip connection"),
        (Sum, {"num_steps": 0}, r"num_steps must lie in 1..2, when the answer has settled, got 0"),
        (Sum, {"num_steps": "9"}, "num_steps must be a whole number, got '9'"),
        (Sum, {"num_steps": 2.5}, "num_steps must be a whole number, got 2.5"),
        (Sum, {"branches": [1]}, r"branches must be a list of names of modules, as in named_modules\(\), but has 1"),
        (Sum, {"branches": [nn.ReLU()]}, r"branches must be a list of names of modules, .* but has ReLU\(\)"),
        (Sum, {"leaves": 1}, "leaves must be a list of names of modules, got 1"),
        (Sum, {"statistics": "own"}, "statistics must be 'per_step' or 'shared', got 'own'"),
        (Sum, {"statistics": "per_step"}, "'per_step' needs torch.nn.BatchNorm2d .*, but Sum has none: use 'shared'"),
        (Sum, {"num_steps": 3}, r"num_steps must lie in 1..2, when the answer has settled, got 3"),
        (Sum, {"kernel": "ews", "num_steps": -1}, "num_steps must lie in 1..inf, .* got -1"),
        (Sum, {"alpha": 1}, r"alpha must lie in \[0, 1\), got 1"),
        (Sum, {"kernel": "slow"}, "kernel must be .*, got 'slow'"),
        (Branching, {"branches": ["way.0"], "leaves": ["way"]}, "branches names 'way.0', but this module does not run"),
        (Branching, {}, r"Branching cannot be traced by torch.fx: TraceError: .*name the module in `leaves`"),
        (Dictionary, {}, r"must give one tensor, but it gives \{'out': add\}"),
    ],
)
def test_networks_that_cannot_be_delayed(network: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        add_delays(network(), num_classes=5, **arguments)


def test_a_network_must_be_a_module() -> None:
    with pytest.raises(TypeError, match=r"network must be a torch\.nn\.Module, got 'resnet18'"):
        add_delays("resnet18", num_classes=5)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("network", "size", "message"),
    [
        (Joined, 2, "the network gives 24 logits, expected a tensor"),
        (KeepsBatchSecond, 2, r"gives \[1, 1009, 12\] for 1009 images: .* must have the batch in dimension 0"),
        (vit, 24, r"the network cannot run on images \[3, 24, 24\]: Wrong image height! Expected 16"),
    ],
)
def test_images_that_do_not_fit(network: Any, size: int, message: str) -> None:
    model = add_delays(network(), ["a"] if network is Joined else None, num_classes=12)
    for call in (model, model.stream, model.initial_state):
        with pytest.raises(ValueError, match=message):
            call(torch.rand(2, 3, size, size))
