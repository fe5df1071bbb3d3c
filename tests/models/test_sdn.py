"""Shallow-deep networks: the paper's costs, heads and exits, and where the published code is not repeated."""

from __future__ import annotations

import copy
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import anytime
from anytime.combine import Caching
from anytime.cost import step_macs
from anytime.models.sdn import InternalClassifier
from anytime.objectives import Weighted
from anytime.stopping import Confidence, measure
from anytime.trace import Trace
from anytime.training.config import read_recipe
from anytime.training.regimes import HeadsOnly

CONTRACT_ARGUMENTS = {
    "sdn_resnet56": {"blocks": 2, "width": 4, "exits": (1, 3, 5), "input_size": 8},
    "sdn_wrn32_4": {"blocks": 1, "width": 4, "exits": (1, 2), "input_size": 8},
    "sdn_vgg16": {"width": 4, "exits": (2, 4, 9), "input_size": 8},
    "sdn_mobilenet": {"width": 8, "exits": (3, 7), "input_size": 8},
}

# million MACs of the network; per cent of them up to each internal classifier, without it
PUBLISHED = {
    "sdn_resnet56": (125.75, [15.4, 30.4, 44.5, 59.6, 73.7, 88.7]),
    "sdn_vgg16": (313.7, [12.6, 30.6, 48.7, 60.7, 78.8, 90.8]),
    "sdn_wrn32_4": (1185.3, [16.8, 29.6, 45.7, 58.4, 74.5, 87.3]),
    "sdn_mobilenet": (46.4, [21.6, 35.6, 49.5, 67.9, 90.9]),
}
SMALL: dict[str, Any] = {"blocks": 1, "width": 4, "exits": (1, 2), "input_size": 8}
RECIPE = Path(__file__).parents[2] / "recipes" / "kaya2019_cifar10.yaml"


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_shares_of_the_cost(name: str) -> None:
    network, shares = PUBLISHED[name]
    model: Any = anytime.create_model(name)
    heads = list(accumulate(10 * head.linear.in_features for head in model.heads[:-1]))
    *early, last = step_macs(model.to("meta"), 32)
    full = last - heads[-1]
    assert full / 1e6 == pytest.approx(network, abs=0.051)
    assert [100 * (macs - head) / full for macs, head in zip(early, heads, strict=True)] == pytest.approx(shares, abs=0.051)


def test_without_internal_classifiers_it_is_the_plain_network() -> None:
    plain = anytime.create_model("sdn_resnet56", exits=(), input_size=8)
    assert plain.num_steps == 1
    assert step_macs(plain, 8) == [step_macs(anytime.create_model("sdn_resnet56", input_size=8), 8, contract=True)[-1]]


def test_tiny_imagenet_layout() -> None:
    model: Any = anytime.create_model("sdn_vgg16", 200, width=2, input_size=64, exits=())
    assert [layer.out_features for layer in model.heads[-1] if isinstance(layer, nn.Linear)] == [64, 32, 200]  # 2048, 1024
    strided: Any = anytime.create_model("sdn_resnet56", 200, width=2, input_size=64, stem_stride=2)
    assert strided.initial_state(torch.rand(1, 3, 64, 64)).features.shape[2:] == (64, 64)
    assert strided.stem(torch.rand(1, 3, 64, 64)).shape[2:] == (32, 32)


@pytest.mark.parametrize("size", [8, 16, 32])
def test_heads_are_the_formula_with_kernels_of_a_quarter(size: int) -> None:
    torch.manual_seed(size)
    head, h = InternalClassifier((3, size, size), 5), torch.rand(2, 3, size, size)
    assert head.mix is not None
    assert head.mix.item() not in (0.0, 0.5)  # drawn, not fixed
    assert 0 <= head.mix.item() < 1
    pooled = head.mix * F.max_pool2d(h, size // 4) + (1 - head.mix) * F.avg_pool2d(h, size // 4)
    assert torch.allclose(head(h), head.linear(pooled.flatten(1)), atol=1e-6)
    assert torch.equal(head.read(head.views(h)), head(h))


@pytest.mark.parametrize("size", [2, 4])
def test_maps_of_16_pixels_have_no_share_of_maxima_to_learn(size: int) -> None:
    head, h = InternalClassifier((3, size, size), 5), torch.rand(2, 3, size, size)
    assert head.mix is None  # the published code has one at 4 x 4, whose gradient is always 0
    assert torch.equal(head(h), head.linear(h.flatten(1)))


def test_the_grid_does_not_shrink_with_many_classes() -> None:
    assert InternalClassifier((512, 8, 8), 200).linear.in_features == 512 * 16


def test_every_hidden_layer_of_vgg_has_a_relu() -> None:
    layers = [type(layer) for layer in anytime.create_model("sdn_vgg16", width=2).heads[-1]]  # type: ignore[union-attr]
    assert layers[1:] == [nn.Linear, nn.ReLU, nn.Dropout] * 2 + [nn.Linear]


def published_exit(probabilities: Tensor, threshold: float) -> tuple[int, int]:
    """The answer and the exit of one sample `[T, K]`: the first confident one, or else the most confident at full cost."""
    confidences = probabilities.amax(1).tolist()
    for t, confidence in enumerate(confidences):
        if confidence >= threshold:
            return int(probabilities[t].argmax()), t
    surest = max(range(len(confidences)), key=confidences.__getitem__)
    return int(probabilities[surest].argmax()), len(confidences) - 1


@pytest.mark.parametrize("threshold", [0.1, 0.3, 0.5, 0.9, 0.999])
def test_confidence_with_caching_is_the_papers_exit(threshold: float) -> None:
    logits = 2 * torch.randn(4, 300, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(300) % 5
    trace = Trace.from_logits(logits, labels, macs=[1, 2, 3, 4])
    wanted = [published_exit(logits[:, n].softmax(1), threshold) for n in range(300)]
    combined, rule = Caching()(trace.logits), Confidence(threshold)
    steps = rule.stops(trace, combined)
    assert steps.tolist() == [t for _, t in wanted]
    answers = combined.argmax(2).gather(0, steps[None])[0]
    assert answers.tolist() == [answer for answer, _ in wanted]
    outcome = measure(rule, trace, Caching())
    assert outcome.accuracy == sum(answer == label for (answer, _), label in zip(wanted, labels.tolist(), strict=True)) / 300


@pytest.mark.parametrize("name", ["sdn_wrn32_4", "sdn_vgg16"])  # both have dropout
def test_ic_only_training_leaves_the_network_as_it_is(name: str) -> None:
    model, regime = anytime.create_model(name, **CONTRACT_ARGUMENTS[name]), HeadsOnly()
    regime.prepare(model)
    answers = regime.forward(model)
    optimizer = torch.optim.Adam((p for p in model.parameters() if p.requires_grad), lr=0.01)
    before = copy.deepcopy(model.state_dict())
    images, labels = torch.rand(8, 3, 8, 8), torch.arange(8)
    for _ in range(2):
        optimizer.zero_grad()
        logits = answers(images)
        Weighted("constant")(logits, labels).backward()
        optimizer.step()
    ics = {key for key in before if key.startswith(tuple(f"heads.{t}." for t in range(model.num_steps - 1)))}
    for key, value in model.state_dict().items():  # in the published code running statistics drift, and dropout is on
        assert torch.equal(before[key], value) == (key not in ics), key
    assert torch.equal(answers(images), answers(images))


def test_features_of_a_frozen_network_are_small() -> None:
    model: Any = anytime.create_model("sdn_resnet56").eval()
    with torch.no_grad():
        features = model.trunk_features(torch.rand(1, 3, 32, 32))
    assert [h.numel() for h in features] == [2 * 16 * c for c in (16, 16, 32, 32, 64, 64)] + [10]


def test_recipe_says_each_classifiers_weight_by_its_place() -> None:
    largest = [0.216, 0.356, 0.495, 0.679, 0.909]  # the published code gives MobileNet's five 0.15 to 0.75
    assert f"--objective.largest {largest}".replace(" [", " '[").replace("]", "]'") in RECIPE.read_text()
    recipe = read_recipe(RECIPE)
    assert recipe["data"]["init_args"]["validation"] > 0  # thresholds are not chosen on test images


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("sdn_resnet56", {"exits": (4, 4)}, r"exits must rise within 1..26, .*, got \(4, 4\)"),
        ("sdn_resnet56", {"blocks": 1}, r"exits must rise within 1..2, .*, got \(4, 8, 12, 16, 20, 24\)"),
        ("sdn_resnet56", {"blocks": 2.5}, "blocks must be a whole number, got 2.5"),
        ("sdn_resnet56", {"width": "16"}, "width must be a whole number, got '16'"),
        ("sdn_resnet56", {"exits": 4}, "exits must be a list of whole numbers, got 4"),
        ("sdn_resnet56", {"exits": (1.5, 3)}, "exits must be a whole number, got 1.5"),
        ("sdn_wrn32_4", {"stem_stride": True}, "stem_stride must be a whole number, got True"),
        ("sdn_mobilenet", {"exits": None}, "exits must be a list of whole numbers, got None"),
        ("sdn_mobilenet", {"width": 1.5}, "width must be a whole number, got 1.5"),
        ("sdn_resnet56", {"blocks": 0}, "blocks must be at least 1, got 0"),
        ("sdn_resnet56", {"stem_stride": 3}, "stem_stride must be 1 or 2, got 3"),
        ("sdn_resnet56", {"input_size": (1, 32, 32)}, r"with in_channels=3, got \(1, 32, 32\)"),
        ("sdn_wrn32_4", {"width": 0}, "width must be at least 1, got 0"),
        ("sdn_wrn32_4", {"dropout": 1.0}, r"dropout must lie in \[0, 1\), got 1.0"),
        ("sdn_vgg16", {"exits": (13,)}, r"exits must rise within 1..12, .*, got \(13,\)"),
        ("sdn_mobilenet", {"exits": (0, 3)}, r"exits must rise within 1..12, .*, got \(0, 3\)"),
        ("sdn_mobilenet", {"width": -1}, "width must be at least 1, got -1"),
    ],
)
def test_bad_arguments(name: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        anytime.create_model(name, **arguments)
