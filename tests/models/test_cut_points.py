"""Where networks can be cut: hand-made ones with known answers, torchvision's with the costs that it publishes."""

from __future__ import annotations

import math
from itertools import combinations, count
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn
from torch.nn import functional as F

from anytime.models.surgery.attach.build import attach_exits
from anytime.models.surgery.attach.choice import choose_cuts, find_cuts
from anytime.models.surgery.attach.cut_points import Cut, Survey, survey
from anytime.models.surgery.attach.graph import FlatGraph, flatten_network
from anytime.models.surgery.attach.segments import split_graph

SIZE = (3, 8, 8)


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, h: Tensor) -> Tensor:
        out = self.conv(h)
        out += h
        return self.relu(out)


class Net(nn.Module):
    """Conv 3 to 4 at 8 x 8, two residual blocks, a functional tail with dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        self.layers = nn.Sequential(Residual(4), Residual(4))
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        h = F.max_pool2d(self.stem(x), 2)
        h = self.layers(h).mean((2, 3))
        return self.fc(F.dropout(h, 0.5, training=self.training)) * scale


def names(network: nn.Module, size: tuple[int, int, int] = SIZE) -> list[str]:
    return [cut.name for cut in survey(network, size).cuts]


def test_places_macs_and_shapes_of_a_network_by_hand() -> None:
    cuts = survey(Net(), SIZE).cuts
    stem, block = 64 * 3 * 4 * 9, 16 * 4 * 4 * 9
    assert [(cut.name, cut.macs, cut.shape) for cut in cuts] == [
        ("stem", stem, (4, 8, 8)),
        ("max_pool2d", stem, (4, 4, 4)),
        ("layers.0", stem + block, (4, 4, 4)),
        ("layers", stem + 2 * block, (4, 4, 4)),
        ("mean", stem + 2 * block, (4,)),
        ("dropout", stem + 2 * block, (4,)),
    ]
    assert cuts[3].aliases == ("layers.1", "layers")
    assert all(cut.seconds is None for cut in cuts)
    assert survey(Net(), SIZE).end == Cut("output", stem + 2 * block + 20, (5,))


def test_another_tensor_that_is_needed_is_kept_but_none_that_is_overwritten() -> None:
    class LongSkip(Net):
        def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
            early = self.stem(x)
            return self.fc((self.layers(early) + early).mean((2, 3)))

    found = survey(LongSkip(), SIZE)
    places = [(cut.name, cut.shape, cut.tensors, cut.load) for cut in found.cuts]
    image = (4, 8, 8)
    assert places == [
        *(("stem", image, 1, 1.0), ("layers", image, 2, 2.0), ("add", image, 1, 1.0), ("mean", (4,), 1, 1.0)),
    ]
    plain = [nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Dropout(0.5, inplace=True), nn.Linear(144, 2)]
    assert names(nn.Sequential(*plain)) == ["3"]  # "1" and its view "2" are overwritten, in train mode only


def test_a_number_taken_from_a_shape_is_kept() -> None:
    class Reshapes(Net):
        def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
            height = x.shape[2]
            h = self.layers(self.stem(x))
            return self.fc(h.reshape(-1, 4, height * 8).mean(2))

    network = Reshapes()
    assert names(network) == ["stem", "layers.0", "layers", "reshape", "mean"]
    model = attach_exits(network, ["layers.0"], input_size=SIZE).eval()
    x = torch.rand(3, 3, 12, 8)
    _, state = model.step(model.initial_state(x))
    assert state.features[1:] == (96,)
    assert torch.equal(model(x)[-1], network(x))


def test_containers_open_and_blocks_stay_whole() -> None:
    class Stage(nn.Module):
        def __init__(self, blocks: int) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(Residual(4) for _ in range(blocks))

        def forward(self, h: Tensor) -> Tensor:
            torch._assert(h.dim() == 4, "images")
            for block in self.blocks:
                h = block(h)
            return h

    class Bottleneck(nn.Module):
        """Without its shortcut it could be cut inside, but another block of its class has one."""

        def __init__(self, channels: int, shortcut: bool) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Conv2d(channels, 4, 1), nn.Conv2d(4, 4, 1))
            self.shortcut = shortcut

        def forward(self, h: Tensor) -> Tensor:
            return h + self.layers(h) if self.shortcut else self.layers(h)

    network = nn.Sequential(Bottleneck(3, False), Bottleneck(4, True), Stage(1), Stage(3), nn.Flatten(), nn.Linear(256, 2))
    assert names(network) == ["0", "1", "2", "3.blocks.0", "3.blocks.1", "3", "4"]


def test_a_layer_called_twice_has_two_names() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.act = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.ReLU()
            self.fc = nn.Linear(192, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.act(self.second(self.act(self.first(x)))).flatten(1))

    assert names(Twice()) == ["first", "act", "second", "act:2", "flatten"]


def test_a_survey_leaves_the_network_and_the_random_states_unchanged() -> None:
    network = Net()
    network.layers.eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    modes = [module.training for module in network.modules()]
    attributes = {module: set(vars(module)) for module in network.modules()}
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    survey(network, SIZE, measure=True)
    assert torch.equal(torch.rand(3), expected)
    assert modes == [module.training for module in network.modules()]
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(set(vars(module)) == attributes[module] for module in network.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


@pytest.mark.parametrize("training", [False, True])
def test_segments_are_the_network_in_both_modes_even_with_frozen_blocks(training: bool) -> None:
    network = Net().double().train(training)
    network.stem.eval()
    x = torch.rand(2, *SIZE, dtype=torch.float64)
    found = survey(network, SIZE)
    torch.manual_seed(0)
    expected = network(x)
    places = [found.places[i] for i in find_cuts(network, found, ["stem", "layers.0", "layers"])[1]]
    segments = split_graph(found.flat.graph, places, found.changed)
    torch.manual_seed(0)
    h = x
    for segment in segments:
        h = segment(network, h)
    assert torch.equal(h, expected)
    assert len(segments) == 4


def test_segments_read_weights_that_belong_to_no_layer() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches, self.mix = nn.Conv2d(3, 4, 4, 4), nn.Linear(4, 4)
            self.token, self.fc = nn.Parameter(torch.rand(1, 1, 4)), nn.Linear(4, 2)
            self.register_buffer("place", torch.rand(1, 9, 4))

        def forward(self, x: Tensor) -> Tensor:
            h = self.patches(x).flatten(2).transpose(1, 2)
            h = torch.cat([self.token.expand(h.shape[0], -1, -1), h], 1)
            h = self.mix(h) + self.place[:, : h.shape[1]]  # type: ignore[index]
            return self.fc(self.mix(h)[:, 0] + self.token[:, 0])

    network = Tokens()
    found = survey(network, SIZE)
    assert [cut.name for cut in found.cuts] == [
        *("patches", "flatten", "transpose", "cat", "mix", "add", "mix:2", "getitem_1", "add_1"),
    ]
    segments = split_graph(found.flat.graph, [found.places[i] for i in find_cuts(network, found, ["cat", "mix:2"])[1]], ())
    network.double()  # another buffer object, which the segments must see
    for batch in (1, 3):
        x = h = torch.rand(batch, *SIZE, dtype=torch.float64)
        for segment in segments:
            h = segment(network, h)
        assert torch.equal(h, network(x))


class Asks(Net):
    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        assert x.shape[-1] % 4 == 0
        return super().forward(F.avg_pool2d(x, 2) if x.shape[-1] > 4 else x)


def test_branches_on_the_size_follow_the_example() -> None:
    found = survey(Asks(), SIZE)
    assert found.flat.fixed_size
    assert not survey(Net(), SIZE).flat.fixed_size
    assert found.end.macs == 16 * 3 * 4 * 9 + 2 * 4 * 4 * 4 * 9 + 20


class AsksValues(Net):
    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        return super().forward(x if x.mean() > 0 else -x)


class OtherInTraining(Net):
    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        return super().forward(x) + (self.fc.bias if self.training else 0)


class MakesConstants(Net):
    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        return super().forward(x - torch.from_numpy(np.array([0.5], np.float32)))


class ReturnsTwo(Net):
    def forward(self, x: Tensor, scale: float = 1.0) -> Any:
        return super().forward(x), x


class WritesIntoImages(Net):
    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        return super().forward(x.mul_(2))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (AsksValues, r"AsksValues cannot be traced: it decides by the values of a tensor, or .*stages=\[f1, f2"),
        (OtherInTraining, "it does something else in train mode than in eval mode"),
        (MakesConstants, "it makes a constant tensor in forward, which must be a buffer"),
        (ReturnsTwo, "it does not return one new tensor"),
        (WritesIntoImages, "WritesIntoImages changes its input in place"),
    ],
)
def test_networks_that_cannot_be_surveyed(kind: type[Net], message: str) -> None:
    network = kind()
    with pytest.raises(ValueError, match=message):
        survey(network, SIZE)
    assert network.training is True


def test_where_the_channels_are() -> None:
    class Last(nn.Module):
        """(H, W, C) between the permutations, as in Swin."""

        def __init__(self) -> None:
            super().__init__()
            self.stem, self.norm, self.fc = nn.Conv2d(3, 8, 1), nn.LayerNorm(8), nn.Linear(8, 8)
            self.last, self.head = nn.Conv2d(8, 8, 1), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            h = self.fc(self.norm(self.stem(x).permute(0, 2, 3, 1))) * 2
            return self.head(self.last(h.permute(0, 3, 1, 2)).mean((2, 3)))

    found = {cut.name: cut.channels_last for cut in survey(Last(), (3, 4, 5)).cuts}
    last = {"permute": True, "norm": True, "fc": True, "mul": True}
    assert found == {"stem": False, **last, "permute_1": False, "last": False, "mean": False}


@pytest.mark.parametrize(
    ("exits", "message"),
    [
        (["layer"], r"cannot be cut at 'layer': it has no such layer; did you mean 'layers'\?"),
        (["layers.1.conv"], r"at 'layers.1.conv' \(what is needed .*nearest: 'layers.0' before it, 'layers' after it"),
        (["stem.2.1"], r"it has no such layer"),
        (["fc"], r"nearest: 'dropout' before it$"),  # a function between the layers
        (["layers.1", "layers"], "the same place twice: 'layers.1' and 'layers'"),
        (["layers.1", "stem"], "in the order of the network, but 'layers.1' comes after 'stem'"),
    ],
)
def test_names_that_are_not_places_to_cut(exits: list[str], message: str) -> None:
    network = Net()
    with pytest.raises(ValueError, match=message):
        find_cuts(network, survey(network, SIZE), exits)


def places(shares: list[float], seconds: list[float] | None = None) -> Survey:
    """Cuts at given shares of 1000 MACs."""
    times = seconds or list(shares)
    cuts = tuple(
        Cut(str(i), round(1000 * s), (4, 2, 2), seconds=t) for i, (s, t) in enumerate(zip(shares, times, strict=True))
    )
    return Survey(FlatGraph(fx.Graph(), (), {}, False, {}), cuts, (), Cut("output", 1000, (5,), seconds=1.0))


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 999), min_size=1, max_size=9, unique=True).map(sorted),
    st.integers(1, 6),
    st.none() | st.floats(0.01, 0.99),
)
def test_choice_is_the_best_of_all(macs: list[int], exits: int, first: float | None) -> None:
    exits = min(exits, len(macs) + 1)
    first = first if exits > 1 else None
    if first is None:
        wanted = [k / exits for k in range(1, exits)]
    else:
        wanted = [first + (1 - first) * k / (exits - 1) for k in range(exits - 1)]

    def distance(chosen: Any) -> float:
        return math.fsum((macs[i] / 1000 - w) ** 2 for i, w in zip(chosen, wanted, strict=True))

    chosen = choose_cuts(places([m / 1000 for m in macs]), exits, first=first)
    assert chosen == sorted(set(chosen))
    assert distance(chosen) == pytest.approx(min(map(distance, combinations(range(len(macs)), exits - 1))), abs=1e-12)


def test_choice_by_latency_and_among_equal_macs() -> None:
    found = places([0.1, 0.2, 0.3, 0.9], [0.2, 0.5, 0.7, 0.95])
    assert choose_cuts(found, 2) == [2]
    assert choose_cuts(found, 2, "latency") == [1]
    assert choose_cuts(found, 2, "latency", first=0.9) == [3]
    chosen = choose_cuts(survey(Net(), SIZE), 4)
    assert [names(Net())[i] for i in chosen] == ["max_pool2d", "layers.0", "layers"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"exits": 0}, r"exits must lie in 1..4 for this network .* got 0"),
        ({"exits": 5}, r"exits must lie in 1..4 for this network .* got 5"),
        ({"exits": 3, "first": 1.0}, "first is the share of the first of 2 or more exits, between 0 and 1; got 1.0 for 3"),
        ({"exits": 1, "first": 0.5}, "got 0.5 for 1"),
        ({"exits": 2, "spread": "time"}, "spread must be 'macs' or 'latency', got 'time'"),
        ({"exits": 2, "spread": "latency"}, "needs measured seconds"),
    ],
)
def test_impossible_choices_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        choose_cuts(survey(Net(), SIZE), **arguments)


def test_measured_seconds_come_from_the_clock() -> None:
    ticks = count()
    found = survey(Net(), SIZE, measure=True, clock=lambda: float(next(ticks)))
    order = [found.flat.chain.index(place.node) for place in found.places]
    assert [cut.seconds for cut in found.cuts] == order  # one tick for each place, from the input on
    assert found.end.seconds == len(found.flat.chain) - 1


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small"])
def test_macs_are_those_that_torchvision_publishes(name: str) -> None:
    from torchvision import models

    end = survey(models.get_model(name), (3, 224, 224)).end
    assert end.macs / 1e9 == pytest.approx(models.get_model_weights(name).DEFAULT.meta["_ops"], abs=6e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit_b_32", "swin_t", "convnext_tiny", "efficientnet_b0", "regnet_y_400mf", "densenet121"])
def test_macs_of_larger_networks(name: str) -> None:
    from torchvision import models

    end = survey(models.get_model(name), (3, 224, 224)).end
    assert end.macs / 1e9 == pytest.approx(models.get_model_weights(name).DEFAULT.meta["_ops"], rel=2e-2)


def test_flat_graph_keeps_names_of_the_network() -> None:
    flat = flatten_network(Net(), torch.rand(2, *SIZE))
    called = [node.target for node in flat.graph.nodes if node.op == "call_module"]
    assert called == ["stem", "layers.0", "layers.1", "fc"]
