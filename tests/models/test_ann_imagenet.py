"""ANN for large images: the convolutions and costs of the well-known networks, and the exits of the published scripts."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
import torchvision.models
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from anytime.models.ann.imagenet import (
    ANNDenseNet,
    ANNResNet,
    ann_densenet169,
    ann_densenet201,
    ann_resnet50,
    ann_resnet101,
    ann_resnet152,
)
from anytime.testing import check_anytime_model

CONTRACT_ARGUMENTS = {
    "ann_densenet169": {"growth": 2},
    "ann_densenet201": {"growth": 2, "period": 49},
    "ann_resnet50": {"width": 2},
    "ann_resnet101": {"width": 2, "period": 11},
    "ann_resnet152": {"width": 2, "period": 25},
}

FAMILY: list[tuple[Any, Any, int, tuple[int, ...]]] = [  # ours, the well-known network, GMAC in hundredths, exits
    (ann_resnet50, torchvision.models.resnet50, 409, tuple(range(2, 17, 2))),
    (ann_resnet101, torchvision.models.resnet101, 780, tuple(range(3, 34, 3))),
    (ann_resnet152, torchvision.models.resnet152, 1151, tuple(range(5, 51, 5))),
    (ann_densenet169, torchvision.models.densenet169, 336, (12, 26, 40, 54, 68, 82)),
    (ann_densenet201, torchvision.models.densenet201, 429, (13, 30, 47, 64, 81, 98)),
]


def convolutions(model: nn.Module) -> Counter[tuple[Any, ...]]:
    return Counter((*m.weight.shape, m.stride) for m in model.modules() if isinstance(m, nn.Conv2d))


def macs(function: Any) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        function()
    return counter.get_total_flops() // 2


@pytest.mark.parametrize(("ours", "known", "hundredths", "exits"), FAMILY, ids=lambda entry: getattr(entry, "__name__", ""))
def test_convolutions_costs_and_exits(ours: Any, known: Any, hundredths: int, exits: tuple[int, ...]) -> None:
    with torch.device("meta"):
        model, other = ours().eval(), known().eval()
        x = torch.zeros(1, 3, 224, 224)
    assert model.exits == exits
    assert convolutions(model) == convolutions(other)
    if "50" in ours.__name__ or "169" in ours.__name__:  # the others only have more of the same units
        cost = macs(lambda: model(x, step=model.num_steps))
        assert cost == macs(lambda: other(x))
        assert round(cost / 1e7) == hundredths


def small_resnet(**arguments: Any) -> ANNResNet:
    return ANNResNet(5, blocks=(2, 1, 2), width=3, **arguments)


def small_densenet(**arguments: Any) -> ANNDenseNet:
    return ANNDenseNet(5, blocks=(2, 1, 3), growth=3, **arguments)


@pytest.mark.parametrize("model", [small_resnet, small_densenet])
@pytest.mark.parametrize("arguments", [{"period": 2}, {"period": 1, "regime": "no_grad"}, {"period": 2, "regime": "midfeat"}])
def test_contract(model: Any, arguments: dict[str, Any]) -> None:
    check_anytime_model(model(**arguments), (3, 9, 16))


def in_double(model: Any) -> Any:
    torch.manual_seed(0)
    model = model.double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for value in (module.weight.data, module.bias.data, module.running_mean, module.running_var):
                value += torch.rand(value.shape)
    return model


def norm(h: Tensor, n: nn.BatchNorm2d) -> Tensor:
    return F.batch_norm(h, n.running_mean, n.running_var, n.weight, n.bias)


def stem(model: Any, x: Tensor) -> Tensor:
    conv, n = model.stem[0], model.stem[1]
    return F.max_pool2d(norm(F.conv2d(x, conv.weight, stride=2, padding=3), n).relu(), 3, 2, 1)


def layers(module: nn.Module) -> list[Any]:
    return [m for m in module.modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d)]


def test_resnet_by_hand() -> None:
    model = in_double(small_resnet(period=1))
    x = torch.rand(2, 3, 32, 48, dtype=torch.float64)
    h, answers = stem(model, x), []
    for unit in model.units:
        n1, c1, n2, c2, n3, c3, n4 = layers(unit.branch)
        out = F.conv2d(norm(h, n1).relu(), c1.weight)
        out = F.conv2d(norm(out, n2).relu(), c2.weight, stride=c2.stride, padding=1)
        out = norm(F.conv2d(norm(out, n3).relu(), c3.weight), n4)
        shortcut = layers(unit.shortcut)
        h = out + (norm(F.conv2d(h, shortcut[0].weight, stride=c2.stride), shortcut[1]) if shortcut else h)
        answers.append(h.relu().mean((2, 3)))
    logits = model(x)
    weights = [(w, b) for heads in model.heads for w, b in zip(heads.weight, heads.bias.view(-1, 5), strict=True)]
    assert [heads.weight.shape[0] for heads in model.heads] == [2, 1, 2]
    for answer, features, (w, b) in zip(logits, answers, weights, strict=True):
        torch.testing.assert_close(answer, F.linear(features, w, b), rtol=0, atol=1e-10)


def test_densenet_by_hand() -> None:
    model = in_double(small_densenet(period=1))
    x = torch.rand(2, 3, 32, 48, dtype=torch.float64)
    h = stem(model, x)
    logits = model(x)
    assert [heads.weight.shape[2] for heads in model.heads] == [9, 12, 9, 7, 10, 13], "6 in the stem, halved after 12 and 9"
    for i, unit in enumerate(model.units):
        if i in (2, 3):
            n, c, *_ = layers(unit)
            h = F.avg_pool2d(F.conv2d(norm(h, n).relu(), c.weight), 2)
            unit = unit[1]
        n1, c1, n2, c2 = layers(unit)
        h = torch.cat([h, F.conv2d(norm(F.conv2d(norm(h, n1).relu(), c1.weight), n2).relu(), c2.weight, padding=1)], 1)
        features = norm(h, model.norms[i]).relu().mean((2, 3))
        expected = F.linear(features, model.heads[i].weight[0], model.heads[i].bias)
        torch.testing.assert_close(logits[i], expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("model", "arguments", "message"),
    [
        (ANNResNet, {"blocks": (2, 0)}, r"blocks must be at least 1 unit in every stage, got \(2, 0\)"),
        (ANNResNet, {"width": 0}, "width must be at least 1, got 0"),
        (ANNResNet, {"period": 17}, r"period must lie in 1\.\.16, the number of units, got 17"),
        (ANNDenseNet, {"growth": 0}, "growth must be at least 1, got 0"),
        (ANNDenseNet, {"blocks": ()}, r"blocks must be at least 1 unit in every stage, got \(\)"),
        (ANNDenseNet, {"in_channels": 0}, "in_channels must be at least 1, got 0"),
    ],
)
def test_wrong_arguments(model: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model(**arguments)
