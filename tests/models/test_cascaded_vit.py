"""The cascaded vision transformer: exact counts, the settled answer, and every answer by a plain simulation."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from anytime import create_model
from anytime.models.cascaded.vit import CascadedViT
from anytime.objectives import TDLambda

CONTRACT_ARGUMENTS = {
    "cascaded_vit": {"layers": 2, "width": 8, "heads": 2},
}

BRANCHES = ["layers.0.attention", "layers.0.mlp", "layers.1.attention", "layers.1.mlp"]


def make(**arguments: Any) -> CascadedViT:
    torch.manual_seed(0)
    return create_model("cascaded_vit", 5, layers=2, width=8, heads=2, **arguments).double()


def images(*size: int) -> Tensor:
    return torch.rand(*size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_parameters_and_evaluations() -> None:
    """6 layers of width 192: 2,680,906 parameters; branch k of 12 sees k distinct inputs, 12 * 13 / 2 in total."""
    model = create_model("cascaded_vit").eval()
    layer = (4 * 192 * 192 + 4 * 192) + (2 * 4 * 192 * 192 + 5 * 192) + 4 * 192
    assert sum(p.numel() for p in model.parameters()) == 3 * 16 * 192 + 192 + 6 * layer + 2 * 192 + 1930 == 2_680_906
    assert (model.num_steps, model.first, len(model.branches)) == (13, 0, 12)
    small, runs = make(num_steps=5).eval(), list[int]()
    for name in small.branches:
        module = small.network.get_submodule(name)
        (module[0] if name.endswith("mlp") else module.norm).register_forward_hook(
            lambda _, args, __: runs.append(len(args[0]))
        )
    with torch.no_grad():
        small(images(1, 3, 8, 8))
    assert sum(runs) == 4 * 5 // 2
    assert len(runs) == 4  # all times of a branch in one batch


@pytest.mark.parametrize(("kernel", "weights"), [("osd", (0.0, 1.0)), ((0.5, 0.5), (0.5, 0.5))], ids=["osd", "taps"])
def test_answers_are_those_of_the_simulation(simulate: Any, kernel: Any, weights: tuple[float, ...]) -> None:
    model = make(kernel=kernel).eval()
    x = images(2, 3, 10, 8)
    expected = torch.stack(simulate(copy.deepcopy(model.network), BRANCHES, weights, [model.normalize(x)] * model.num_steps))
    with torch.no_grad():
        assert (model(x) - expected).abs().max() < 1e-12
        assert (torch.stack([*model.stream(x)]) - expected).abs().max() < 1e-12
        assert (model(x, step=3) - expected[2]).abs().max() < 1e-12
        assert (expected[0, 0] - expected[0, 1]).abs().max() > 1e-6, "the answer at t = 0 has seen the image"
        assert torch.equal(model(x)[-1], model.network(model.normalize(x))), "the last answer is the transformer's own"
        frames = images(7, 2, 3, 10, 8)
        streamed = torch.stack([*model.stream(iter(frames))])
        moving = simulate(copy.deepcopy(model.network), BRANCHES, weights, [model.normalize(frame) for frame in frames])
        assert (streamed - torch.stack(moving)).abs().max() < 1e-12


def test_one_set_of_weights_with_and_without_delays() -> None:
    """A transformer trained without delays is cascaded by loading its weights; the settled answer is the same."""
    plain, cascaded = make(kernel="instant").eval(), make().eval()
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    cascaded.load_state_dict(plain.state_dict())
    x = images(2, 3, 8, 8)
    assert (plain.num_steps, cascaded.num_steps) == (1, 5)
    assert torch.equal(plain(x)[0], cascaded(x)[-1])


def test_it_learns_from_differences() -> None:
    model, x, target = make().train(), images(6, 3, 8, 8), torch.arange(6) % 5
    optimizer, losses = torch.optim.Adam(model.parameters(), 1e-2), []
    for _ in range(40):
        loss = TDLambda(0.5)(model(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"width": 6}, "width must be a multiple of 4 and of heads=3, got 6"),
        ({"layers": 0}, "layers must be at least 1, got 0"),
        ({"patch": 1.5}, "patch must be a whole number, got 1.5"),
        ({"num_steps": 20}, "20"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_model("cascaded_vit", **arguments)
