"""Exits on any backbone: the contract, the unchanged network inside, its weights, heads, wrong input."""

from __future__ import annotations

import copy
import pickle
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.swin_transformer import SwinTransformer
from torchvision.models.vision_transformer import VisionTransformer

from anytime.cost import step_macs
from anytime.model import AnytimeModel, create_model
from anytime.models.common.heads import MixedHead, TokenHead
from anytime.models.surgery.attach.build import attach, attach_exits
from anytime.models.surgery.attach.model import AttachedExits
from anytime.saving import read_model
from anytime.testing import check_anytime_model
from anytime.training.config import parse

CONTRACT_ARGUMENTS = {
    "attach": {"backbone": "torchvision:shufflenet_v2_x0_5", "exits": 3, "head": "linear"},
}

SIZE = (3, 8, 8)


class Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels)

    def forward(self, h: Tensor) -> Tensor:
        return F.relu_(h + self.norm(self.conv(h)))


class Net(nn.Module):
    """A custom network with functional dropout, built with `num_classes` and `in_channels` by name."""

    def __init__(self, num_classes: int = 5, in_channels: int = 3, width: int = 6) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(in_channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.blocks = nn.ModuleList(Block(width) for _ in range(3))
        self.fc = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        for block in self.blocks:
            h = block(h)
        return self.fc(F.dropout(h.mean((2, 3)), 0.3, self.training))


class Decides(Net):
    """Cannot be traced."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if x.mean() > 0.5 else x + 0.1)


STAGES = [
    lambda net, x: net.stem(x if x.mean() > 0.5 else x + 0.1),
    lambda net, h: net.blocks[1](net.blocks[0](h)),
    lambda net, h: net.fc(F.dropout(net.blocks[2](h).mean((2, 3)), 0.3, net.training)),
]


def images(*size: int, seed: int = 0) -> Tensor:
    return torch.rand(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def small_vit() -> nn.Module:
    return VisionTransformer(image_size=16, patch_size=8, num_layers=3, num_heads=2, hidden_dim=8, mlp_dim=12, num_classes=5)


def small_swin() -> nn.Module:
    sizes: Any = {"patch_size": [2, 2], "depths": [1, 2], "num_heads": [1, 2], "window_size": [2, 2]}
    return SwinTransformer(embed_dim=8, num_classes=5, stochastic_depth_prob=0.1, **sizes)


@pytest.mark.parametrize(
    ("build", "size", "exits", "heads"),
    [
        (Net, SIZE, ["blocks.0", "blocks.1"], [MixedHead, MixedHead]),
        (small_vit, (3, 16, 16), 3, [TokenHead, TokenHead]),
        (small_swin, (3, 16, 16), 3, [TokenHead, TokenHead]),
    ],
)
def test_contract(build: Any, size: tuple[int, int, int], exits: Any, heads: list[type]) -> None:
    torch.manual_seed(0)
    model = attach_exits(build(), exits=exits, num_classes=5, input_size=size)
    assert [type(head) for head in model.heads] == heads
    check_anytime_model(model, size)


NAMED = {
    "torchvision:resnet18": 32,
    "torchvision:resnext50_32x4d": 64,
    "torchvision:densenet121": 64,
    "torchvision:mobilenet_v2": 64,
    "torchvision:mobilenet_v3_small": 64,
    "torchvision:efficientnet_b0": 64,
    "torchvision:regnet_y_400mf": 64,
    "torchvision:convnext_tiny": 64,
    "torchvision:swin_t": 64,
    "torchvision:shufflenet_v2_x0_5": 64,
    "torchvision:mnasnet0_5": 64,
    "timm:resnet18": 32,
    "timm:mobilenetv3_small_050": 64,
    "timm:efficientnet_b0": 64,
    "timm:regnety_002": 64,
    "timm:convnext_atto": 64,
    "timm:vit_tiny_patch16_224": 64,
    "timm:deit_tiny_patch16_224": 64,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMED)
def test_contract_of_named_backbones(name: str) -> None:
    if name.startswith("timm:"):
        pytest.importorskip("timm")
    torch.manual_seed(0)
    size = (3, NAMED[name], NAMED[name])
    model = create_model("attach", num_classes=5, backbone=name, exits=4, input_size=size)
    assert model.num_steps == 4
    check_anytime_model(model, size, batch_size=2)


@pytest.mark.parametrize("training", [False, True])
def test_the_last_answer_is_the_networks_own(training: bool) -> None:
    network = Net().double()
    plain = copy.deepcopy(network).train(training)
    model = attach_exits(network, exits=4, num_classes=5, input_size=SIZE).train(training)
    x = images(2, *SIZE)
    torch.manual_seed(0)
    expected = plain(x)
    torch.manual_seed(0)
    assert torch.equal(model.trunk_features(x)[-1], expected)
    for name, buffer in plain.named_buffers():
        assert torch.equal(network.get_buffer(name), buffer)  # statistics after one batch, in train mode


def test_the_given_network_is_used_unchanged() -> None:
    network = Net()
    modules, before = dict(network.named_modules()), {k: v.clone() for k, v in network.state_dict().items()}
    network.blocks.eval()
    torch.manual_seed(3)
    expected = FixedHead((6,), 5), FixedHead((6,), 5), torch.rand(2)
    torch.manual_seed(3)
    model = attach_exits(network, exits=["stem", "blocks.1"], num_classes=5, input_size=SIZE, head=FixedHead)
    assert torch.equal(torch.rand(2), expected[-1])  # only the heads draw random numbers
    assert torch.equal(model.heads[1].weight, expected[1].weight)  # type: ignore[arg-type]
    assert model.backbone is network
    assert dict(network.named_modules()) == modules
    assert not network.blocks.training
    assert network.stem.training
    assert network.training
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    keys = {key for key in model.state_dict() if not key.startswith("heads.")}
    assert keys == {"mean", "std"} | {f"backbone.{key}" for key in before}
    assert len(list(model.parameters())) == len(list(network.parameters())) + 4
    model.backbone.load_state_dict(Net().state_dict())  # a checkpoint of the plain network; the stages read the same weights
    x = torch.rand(2, *SIZE)
    assert torch.equal(model.eval()(x)[-1], network.eval()(x))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


class FixedHead(nn.Linear):
    """A custom head."""

    def __init__(self, shape: tuple[int, ...], num_classes: int) -> None:
        super().__init__(shape[0], num_classes)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.amax((2, 3)))


def test_a_frozen_trunk_stays_unchanged_while_heads_train() -> None:
    model = attach_exits(Net(), exits=["stem", "blocks.1"], num_classes=5, input_size=SIZE, head="conv").train()
    model.backbone.eval()
    before = {key: value.clone() for key, value in model.backbone.state_dict().items()}
    x = torch.rand(4, *SIZE)
    first, second = model.trunk_features(x), model.trunk_features(x)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))  # no dropout
    model.head_answers(first).sum().backward()
    assert all(torch.equal(value, before[key]) for key, value in model.backbone.state_dict().items())
    assert model.heads[0].layers[1].num_batches_tracked == 1  # type: ignore[index,union-attr]
    assert [f.shape[1:] for f in first] == [(6, 8, 8), (6, 8, 8), (5,)]
    model.eval()
    assert torch.equal(model.head_answers(model.trunk_features(x)), model(x))


def test_contract_cost_leaves_earlier_heads_out() -> None:
    model = attach_exits(Net(), exits=["stem", "blocks.1"], num_classes=5, input_size=SIZE)
    stem, block, head = 64 * 3 * 6 * 9, 64 * 6 * 6 * 9, 16 * 6 * 5
    assert step_macs(model, SIZE) == [stem + head, stem + 2 * block + 2 * head, stem + 3 * block + 2 * head + 30]
    assert step_macs(model, SIZE, contract=True) == [stem + head, stem + 2 * block + head, stem + 3 * block + 30]


def test_one_exit_is_the_network_itself() -> None:
    model = attach_exits(Net(), exits=1, num_classes=5, input_size=SIZE)
    assert (model.num_steps, model.exits, len(model.heads)) == (1, (), 0)
    check_anytime_model(model, SIZE)


def test_copies_and_pickles() -> None:
    model = attach_exits(Net(), exits=["stem", "blocks.1"], num_classes=5, input_size=SIZE).eval()
    x = torch.rand(2, *SIZE)
    expected = model(x)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(x), expected)
        with torch.no_grad():
            other.backbone.stem[0].weight.zero_()
        assert not torch.equal(other(x), expected)
    assert torch.equal(model(x), expected)


@pytest.mark.slow
@torch.no_grad()
def test_compiles_without_breaks() -> None:
    model = attach_exits(Net(), exits=["stem", "blocks.1"], num_classes=5, input_size=SIZE).eval()
    x = torch.rand(2, *SIZE)
    expected = model(x)
    step, state = torch.compile(model.step, backend="aot_eager", fullgraph=True), model.initial_state(x)
    for t in range(3):
        answer, state = step(state)
        assert torch.allclose(answer, expected[t], atol=1e-6)
    assert torch.allclose(torch.compile(model, backend="aot_eager", fullgraph=True)(x), expected, atol=1e-6)


def test_channels_last_and_bfloat16() -> None:
    model = attach_exits(Net(), exits=["stem", "blocks.1"], num_classes=5, input_size=SIZE).eval()
    x = torch.rand(2, *SIZE)
    expected = model(x)
    moved = model.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    assert torch.allclose(moved, expected, atol=1e-5)
    assert torch.allclose(model.bfloat16()(x.bfloat16()).float(), expected, atol=0.1)


def test_networks_as_lists_or_with_given_stages() -> None:
    layers = [nn.Conv2d(3, 4, 3), nn.Sequential(nn.ReLU(), nn.Conv2d(4, 4, 3)), nn.Flatten(), nn.Linear(64, 5)]
    check_anytime_model(attach_exits(layers, exits=["0", "1"], num_classes=5, input_size=SIZE), SIZE)
    network = Decides().double()
    with pytest.raises(ValueError, match="Decides cannot be traced: it decides by the values"):
        attach_exits(network, num_classes=5, input_size=SIZE)
    model = attach_exits(network, stages=STAGES, num_classes=5, input_size=SIZE)
    assert (model.num_steps, model.exits) == (3, ("stage 1", "stage 2"))
    x = images(2, *SIZE)
    assert torch.equal(model.eval()(x)[-1], network(x))
    with pytest.raises(ValueError, match="the stages do not give what Decides gives: in eval mode they differ by"):
        attach_exits(network, stages=[STAGES[0], lambda net, h: net.blocks[0](h), STAGES[2]], num_classes=5, input_size=SIZE)
    always = [*STAGES[:2], lambda net, h: net.fc(net.blocks[2](h).mean((2, 3)))]
    with pytest.raises(ValueError, match="in train mode they differ by"):  # the dropout is forgotten
        attach_exits(network, stages=always, num_classes=5, input_size=SIZE)
    with pytest.raises(ValueError, match=r"stage 2 must return one tensor \[B, ...\] of 2 to 4 dimensions, got tuple"):
        attach_exits(network, stages=[STAGES[0], lambda net, h: (h, h), STAGES[2]], num_classes=5, input_size=SIZE)
    with pytest.raises(ValueError, match="stage 2 changes its input in place"):
        attach_exits(network, stages=[STAGES[0], lambda net, h: h.add_(0), STAGES[2]], num_classes=5, input_size=SIZE)


def test_images_of_another_size_are_refused_if_the_network_depends_on_the_size() -> None:
    class Asks(Net):
        def forward(self, x: Tensor) -> Tensor:
            assert x.shape[2] == 8, "wrong size"
            return super().forward(x)

    model = attach_exits(Asks(), exits=["stem"], num_classes=5, input_size=SIZE)
    with pytest.raises(ValueError, match=r"cut for images of 8x8 pixels, got 9x8; build it with input_size"):
        model(torch.rand(1, 3, 9, 8))
    assert attach_exits(Net(), exits=["stem"], num_classes=5, input_size=SIZE)(torch.rand(2, 3, 9, 12)).shape == (2, 2, 5)


def test_spread_over_measured_latency_is_settled_once(tmp_path: Path) -> None:
    ticks = count()
    model = attach_exits(Net(), 3, 5, spread="latency", input_size=SIZE, clock=lambda: float(next(ticks)))
    assert model.exits == ("blocks.0", "blocks.2")  # of the places stem, blocks.0, 1, 2, mean, dropout, output: one tick each
    saved = create_model("attach", 5, backbone=f"{Own.__module__}.Own", exits=3, spread="latency", input_size=SIZE)
    assert isinstance(saved, AttachedExits)
    assert saved.config["arguments"] | {"exits": saved.exits, "first": None, "pretrained": False} == saved.config["arguments"]
    saved.save(tmp_path)
    x = torch.rand(2, *SIZE)
    loaded = read_model(tmp_path, trust=True)
    assert torch.equal(loaded(x), saved.eval()(x))
    assert loaded.exits == saved.exits


class Own(Net):
    """Named by import path."""


class Careless(Net):
    """Looks for its options as networks of other libraries do."""

    def __init__(self, num_classes: int = 5, kind: str | None = None, layer: Any = None) -> None:
        super().__init__()
        if kind is not None:
            {}[kind]
        if layer is not None:
            layer.forward()


def own(**arguments: Any) -> AttachedExits:
    return attach(5, backbone=f"{Own.__module__}.Own", exits=("stem",), input_size=SIZE, **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backbone": "resnet18"}, "backbone must be 'torchvision:NAME', 'timm:NAME', 'hf:NAME' or .* got 'resnet18'"),
        ({"backbone": "torchvision:resnet19"}, "torchvision has no classifier 'resnet19'; did you mean 'resnet1.*'"),
        ({"backbone": "os.system"}, "backbone 'os.system' is not a subclass of Module"),
        ({"backbone": "no.such.Net"}, "backbone 'no.such.Net' cannot be imported"),
        (
            {"options": {"depth": 3}},
            r"cannot be built for \(3, 8, 8\) images with depth=3: .*unexpected keyword argument 'depth'",
        ),
        (
            {"backbone": f"{__name__}.Careless", "options": {"kind": "evil.f"}},
            r"Careless cannot be built for \(3, 8, 8\) images: 'evil.f' is unknown",
        ),
        ({"backbone": f"{__name__}.Careless", "options": {"layer": "evil.f"}}, "cannot be built for .*'str' object has no"),
        ({"backbone": 3}, "backbone must be .* got 3"),
        ({"options": {"checkpoint_path": "x", "weights": "y"}}, "options cannot hold checkpoint_path, weights"),
        ({"head": "conf"}, "unknown head 'conf'; did you mean 'conv'"),
        ({"head": "class_token"}, r"a class_token head reads tokens \(N, C\), but the features have the shape \(6, 8, 8\)"),
        ({"head": "os.system"}, "head 'os.system' is not a subclass of Module"),
        ({"exits": ("fc",)}, "cannot be cut at 'fc'"),
        ({"exits": ("stem",), "first": 0.2}, r"first=0.2 needs a number of exits, but exits=\['stem'\]"),
        ({"input_size": (1, 8, 8)}, r"input_size must be \(channels, height, width\) with in_channels=3, got \(1, 8, 8\)"),
        ({"num_classes": 0}, "num_classes must be at least 1, got 0"),
    ],
)
def test_refusals(arguments: dict[str, Any], message: str) -> None:
    given = {"backbone": f"{Own.__module__}.Own", "exits": ("stem",), "input_size": SIZE} | arguments
    with pytest.raises(ValueError, match=message):
        create_model("attach", **given)


def test_networks_without_logits_are_refused() -> None:
    with pytest.raises(ValueError, match=r"Conv2d must return logits \[B, K\], got \[1, 5, 6, 6\]"):
        attach_exits(nn.Conv2d(3, 5, 3), 1, 5, input_size=SIZE)


def test_flags_and_recipes_reach_it() -> None:
    flags = ["--model", "attach", "--data", "digits", "--model.backbone", "timm:resnet50", "--model.exits"]
    arguments = parse([*flags, "4", "--model.first", "0.15", "--model.spread", "latency"])["model"]["init_args"]
    chosen = {key: arguments[key] for key in ("backbone", "exits", "first", "spread", "pretrained")}
    expected = {"backbone": "timm:resnet50", "exits": 4, "first": 0.15, "spread": "latency", "pretrained": False}
    assert chosen == expected
    flags += ['["layer1", "layer2"]', "--model.pretrained", "weights.pth", "--model.options", '{"drop_rate": 0.1}']
    arguments = parse(flags)["model"]["init_args"]
    assert arguments["exits"] == ["layer1", "layer2"]
    assert (arguments["pretrained"], arguments["options"]) == ("weights.pth", {"drop_rate": 0.1})


def test_is_an_anytime_model_that_ends_after_its_steps() -> None:
    model = attach_exits(Net(), exits=["stem"], num_classes=5, input_size=SIZE)
    assert isinstance(model, AnytimeModel)
    state = model.initial_state(torch.rand(2, *SIZE))
    for _ in range(2):
        _, state = model.step(state)
    with pytest.raises(ValueError, match="all 2 steps are done"):
        model.step(state)
