"""Additive answers: the contract, the sum, its gradients, the cost, exits on a backbone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anytime.cost import step_macs
from anytime.model import AnytimeModel, create_model
from anytime.models.boosted import Boosted
from anytime.models.surgery.attach.build import attach_exits
from anytime.models.surgery.attach.model import AttachedExits
from anytime.testing import check_anytime_model
from anytime.training import GradientRescaling

CONTRACT_ARGUMENTS = {
    "boosted": {"base": "anytimenet", "arguments": {"blocks": (1, 2), "scheme": ((1, 1), (0, 1)), "width": 4}},
}

SIZE = (3, 8, 8)
BASE: dict[str, Any] = {"blocks": (1, 2), "scheme": ((1, 1), (0, 1)), "width": 4}


def network() -> nn.Module:
    convs: list[nn.Module] = [nn.Conv2d(3, 4, 3, padding=1)]
    for _ in range(2):
        convs += [nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1)]
    return nn.Sequential(*convs, nn.Flatten(), nn.Linear(256, 5))


def exits(additive: bool = True, shrink: float = 1.0) -> AttachedExits:
    torch.manual_seed(0)
    return attach_exits(network(), ["0", "3"], 5, input_size=SIZE, additive=additive, shrink=shrink)


def images() -> Tensor:
    return torch.rand(3, *SIZE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("shrink", [1.0, 0.5])
def test_contract(shrink: float) -> None:
    check_anytime_model(exits(shrink=shrink), SIZE)
    torch.manual_seed(0)
    check_anytime_model(Boosted(create_model("iresnext", blocks=(1,), width=4, steps=3, cardinality=3), shrink), SIZE)


@pytest.mark.parametrize("training", [False, True])
def test_answers_are_sums_in_both_modes(training: bool) -> None:
    plain, model = exits(additive=False).double(), exits(shrink=0.5).double()
    f = plain.train(training)(images())
    expected = torch.stack([f[0], f[1] + 0.5 * f[0], f[2] + 0.5 * (f[1] + 0.5 * f[0])])
    assert torch.allclose(model.train(training)(images()), expected, atol=1e-14, rtol=0)
    inside = Boosted(plain, 0.5).train(training)
    assert torch.allclose(inside(images()), expected, atol=1e-14, rtol=0)


def test_the_normalisation_moves_out() -> None:
    plain = exits(additive=False).double().eval()
    plain.set_normalization([0.1, 0.2, 0.3], [0.5, 0.6, 0.7])
    first = plain(images())[0]
    model = Boosted(plain)
    assert model.mean.tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert plain.mean.tolist() == [0, 0, 0]
    assert torch.allclose(model.double().eval()(images())[0], first, atol=1e-6)
    model.set_normalization([0.1, 0.2, 0.3], [0.5, 0.6, 0.7])
    assert torch.equal(model(images())[0], first)


def gradients(model: AnytimeModel, loss: Tensor) -> list[Tensor]:
    found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True, retain_graph=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(model.parameters(), found, strict=True)]


def test_in_training_earlier_answers_are_constants() -> None:
    plain, model = exits(additive=False).double(), exits().double()
    f = plain(images())
    fixed = f.detach()
    target = torch.tensor([0, 1, 2])

    def loss(answers: list[Tensor]) -> Tensor:
        return torch.stack([nn.functional.cross_entropy(answer, target) for answer in answers]).sum()

    expected = gradients(plain, loss([f[0], fixed[0] + f[1], fixed[0] + fixed[1] + f[2]]))
    found = gradients(model, loss(list(model(images()))))
    for g, e in zip(found, expected, strict=True):
        assert torch.allclose(g, e, atol=1e-14, rtol=1e-12)
    head = next(model.heads[0].parameters())
    assert not torch.autograd.grad(model(images())[2].sum(), head)[0].any()
    assert torch.autograd.grad(model.eval()(images())[2].sum(), head)[0].any()  # in evaluation it is an ordinary sum


def test_a_single_answer_needs_all_earlier_heads() -> None:
    model = exits()
    costs = step_macs(model, SIZE)
    assert costs == step_macs(model, SIZE, contract=True) == step_macs(exits(additive=False), SIZE)
    assert step_macs(exits(additive=False), SIZE, contract=True)[2] < costs[2]


def test_features_and_heads_give_the_answers_and_keep_the_backbones_names() -> None:
    model = exits().eval()
    x = images().float()
    assert torch.equal(model.head_answers(model.trunk_features(x)), model(x))
    assert model.state_dict().keys() == exits(additive=False).state_dict().keys()


def test_built_by_name_and_loaded_again(tmp_path: Any) -> None:
    arguments: dict[str, Any] = {"backbone": "torchvision:shufflenet_v2_x0_5", "input_size": (3, 32, 32), "exits": 2}
    model = create_model("attach", 5, additive=True, shrink=0.5, **arguments).eval()
    assert model.config["arguments"]["additive"] is True
    model.save(tmp_path)
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(AnytimeModel.from_pretrained(tmp_path)(x), model(x))
    inside = create_model("boosted", (3, 2), in_channels=1, base="anytimenet", arguments=BASE)
    assert (inside.levels, inside.in_channels, inside.num_steps) == ((3, 2), 1, 2)


def test_boostnet_on_msdnet_rescales_the_gradients_of_every_scale() -> None:
    """Loss j reaches the maps that exit t is the first to need with 1 / (T - t + 1), and only through f_j.

    The published code rescales only the coarsest map. Its training weighs the sum before by the factor of the answer before,
    its evaluation by that of the answer itself; here both have one shrink.
    """
    torch.manual_seed(0)
    arguments = {"exits": 3, "base": 2, "step": 1, "width": 4, "growth": 2, "head_width": 3}
    model = create_model("boosted", 5, base="msdnet", arguments=arguments, shrink=0.5).double()
    x, y = torch.rand(5, 3, 16, 16, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 4])
    names = [name for name, _ in model.named_parameters()]
    f = model.model(x)  # type: ignore[operator]
    fixed = [torch.zeros_like(f[0])]
    for output in f.detach():
        fixed.append(output + 0.5 * fixed[-1])
    each = [gradients(model, nn.functional.cross_entropy(f[t] + 0.5 * fixed[t], y)) for t in range(3)]
    answers = GradientRescaling().forward(model)(x)
    assert torch.allclose(answers, torch.stack(fixed[1:]), atol=1e-12)
    found = gradients(model, sum(nn.functional.cross_entropy(answer, y) for answer in answers))  # type: ignore[arg-type]
    for name, gradient, *terms in zip(names, found, *each, strict=True):
        first = next(t for t in range(3) if terms[t].any())
        expected = sum(terms) if ".heads." in name else sum(terms[first:]) / (3 - first)
        assert torch.allclose(gradient, expected, atol=1e-14, rtol=1e-9), name


@pytest.mark.parametrize("name", ["boosted", "zero_time_waste"])
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"arguments": {"num_classes": 3}}, "arguments are those of anytimenet alone: give num_classes outside of them"),
        ({"arguments": {"in_channels": 1}}, "arguments are those of anytimenet alone: give in_channels outside of them"),
        ({"arguments": [1]}, r"arguments must be a mapping of names to values, got \[1\]"),
        ({"base": None}, "base must be the name of a model, got None"),
    ],
)
def test_wrong_arguments_of_the_base(name: str, given: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_model(name, **{"base": "anytimenet"} | given)


@pytest.mark.parametrize("shrink", [0, -1, 1.5, "a"])
def test_wrong_shrink(shrink: Any) -> None:
    with pytest.raises(ValueError, match=rf"shrink must lie in \(0, 1\], got {shrink!r}"):
        Boosted(create_model("anytimenet", width=4), shrink)
    with pytest.raises(ValueError, match=rf"shrink must lie in \(0, 1\], got {shrink!r}"):
        exits(shrink=shrink)


def test_shrink_without_a_sum() -> None:
    with pytest.raises(ValueError, match=r"shrink=0.5 needs additive=True"):
        exits(additive=False, shrink=0.5)
