"""BranchyNet: the published layers, costs and exits, and where the published code is not repeated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import anytime
from anytime.cost import step_macs
from anytime.models.branchynet import ChannelNorm, Subsample
from anytime.objectives import Weighted
from anytime.stopping import Entropy
from anytime.trace import Trace
from anytime.training.config import read_recipe

CONTRACT_ARGUMENTS = {
    "branchynet_lenet": {"width": 2, "input_size": 8},
    "branchynet_alexnet": {"width": 4, "input_size": 8},
    "branchynet_resnet110": {"blocks": 1, "width": 4, "input_size": 8},
}

# inputs of the linear layers of each answer
LINEAR: list[tuple[str, dict[str, Any], list[list[int]]]] = [
    ("branchynet_lenet", {}, [[640], [720, 84]]),
    ("branchynet_alexnet", {"places": "code"}, [[512], [128], [1024, 256, 128]]),
    ("branchynet_alexnet", {}, [[8 * 8 * 32], [4 * 4 * 32], [1024, 256, 128]]),
    ("branchynet_resnet110", {}, [[28800], [14400], [576]]),
]
RECIPE = Path(__file__).parents[2] / "recipes" / "teerapittayanon2016_cifar10.yaml"


@pytest.mark.parametrize(("name", "arguments", "inputs"), LINEAR)
def test_linear_layers_of_the_published_sizes(name: str, arguments: dict[str, Any], inputs: list[list[int]]) -> None:
    heads: Any = anytime.create_model(name, **arguments).heads
    assert [[layer.in_features for layer in head if isinstance(layer, nn.Linear)] for head in heads] == inputs


def test_costs() -> None:
    lenet = anytime.create_model("branchynet_lenet").to("meta")
    first = 30**2 * 25 * 5
    branch = 15**2 * 9 * 5 * 10 + 640 * 10
    rest = 17**2 * 25 * 5 * 10 + 11**2 * 25 * 10 * 20 + 720 * 84 + 84 * 10
    assert step_macs(lenet, (1, 28, 28)) == [first + branch, first + branch + rest]
    assert step_macs(lenet, (1, 28, 28), contract=True) == [first + branch, first + rest]
    resnet = anytime.create_model("branchynet_resnet110").to("meta")
    stem = 30**2 * 27 * 16
    branches = [30**2 * (25 * 16 * 64 + 9 * (64 * 32 + 32 * 32)) + 28800 * 10, 30**2 * 2 * 9 * 16**2 + 14400 * 10, 5760]
    stages = [(30**2 * 36 * 9 * 16**2), *(n**2 * 9 * (w * w // 2 + 35 * w * w) for n, w in ((15, 32), (8, 64)))]
    costs = [stem + branches[0], stages[0] + branches[1], stages[1] + stages[2] + branches[2]]
    assert step_macs(resnet, 32) == [sum(costs[:t]) for t in (1, 2, 3)]


def test_branches_sit_where_the_paper_says_or_where_the_code_has_them() -> None:
    assert anytime.create_model("branchynet_alexnet", width=2).exits == (1, 2, 4)
    assert anytime.create_model("branchynet_alexnet", width=2, places="code").exits == (2, 3, 4)


def test_the_normalisation_is_that_of_the_published_code() -> None:
    h = 30 * torch.randn(2, 5, 4, 4, generator=torch.Generator().manual_seed(0))
    published = nn.LocalResponseNorm(3, alpha=3 * 5e-5, beta=0.75, k=2.0)  # torch divides alpha by 3, the code does not
    assert torch.allclose(ChannelNorm()(h), published(h), atol=1e-5)
    assert not torch.allclose(ChannelNorm()(h), nn.LocalResponseNorm(3, alpha=5e-5, beta=0.75, k=2.0)(h), atol=1e-3)


def test_a_shortcut_that_changes_the_shape_takes_every_second_pixel() -> None:
    h = torch.rand(2, 3, 5, 4)
    shortcut = Subsample(2)(h)
    assert torch.equal(shortcut[:, 2:], h[:, :, ::2, ::2])
    assert not shortcut[:, :2].any()


def test_linear_layers_have_a_relu_between_them() -> None:
    last: Any = anytime.create_model("branchynet_lenet").heads[-1]
    assert [type(layer) for layer in last][1:] == [nn.Linear, nn.ReLU, nn.Linear]  # none in the published code


def test_exits_share_one_trunk_and_their_losses_count_by_their_weights() -> None:
    torch.manual_seed(0)
    model: Any = anytime.create_model("branchynet_lenet", width=2)
    trunk, images, labels = model.units[0][0].weight, torch.rand(4, 1, 28, 28), torch.arange(4)
    assert sum(p.shape == trunk.shape for p in model.parameters()) == 1  # a copy for each exit in the published code

    def gradient(weights: list[float]) -> torch.Tensor:
        return torch.autograd.grad(Weighted(weights)(model(images), labels), trunk)[0]

    mixed = gradient([1.0, 0.3])  # in the published code, the weights are not used
    assert torch.allclose(mixed, gradient([1.0, 0.0]) + 0.3 * gradient([0.0, 1.0]), atol=1e-6)
    assert not torch.allclose(mixed, gradient([1.0, 1.0]), atol=1e-4)


def test_an_image_leaves_at_the_first_branch_of_low_entropy() -> None:
    logits = 4 * torch.randn(3, 200, 10, generator=torch.Generator().manual_seed(0))
    trace = Trace.from_logits(logits, torch.zeros(200, dtype=torch.long), macs=[1, 2, 3])
    probabilities = logits.softmax(2)
    entropies = -(probabilities * probabilities.log()).sum(2)
    thresholds = [0.3, 0.2]  # the paper's of B-ResNet-110
    wanted = [next((t for t in (0, 1) if entropies[t, n] < thresholds[t]), 2) for n in range(200)]
    assert Entropy([*thresholds, 0]).stops(trace, probabilities).tolist() == wanted
    assert set(wanted) == {0, 1, 2}


def test_thresholds_are_chosen_on_held_out_images() -> None:
    recipe = read_recipe(RECIPE)
    assert recipe["data"]["init_args"]["validation"] == 0.1  # on test images in the published code


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("branchynet_alexnet", {"width": 1.5}, "width must be a whole number, got 1.5"),
        ("branchynet_resnet110", {"blocks": True}, "blocks must be a whole number, got True"),
        ("branchynet_lenet", {"width": 0}, "width must be at least 1, got 0"),
        ("branchynet_lenet", {"input_size": (3, 28, 28)}, r"with in_channels=1, got \(3, 28, 28\)"),
        ("branchynet_alexnet", {"places": "notebook"}, "places must be 'paper' or 'code', got 'notebook'"),
        ("branchynet_alexnet", {"input_size": 7}, "input_size must be at least 8x8 pixels, got 7x7"),
        ("branchynet_resnet110", {"blocks": 0}, "blocks must be at least 1, got 0"),
        ("branchynet_resnet110", {"input_size": 2}, "input_size must be at least 3x3 pixels, got 2x2"),
    ],
)
def test_bad_arguments(name: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        anytime.create_model(name, **arguments)


def test_images_too_small_for_its_pooling() -> None:
    with pytest.raises(ValueError, match="images must be at least 8x8 pixels, got 7x9"):
        anytime.create_model("branchynet_alexnet", width=2)(torch.rand(1, 3, 7, 9))
