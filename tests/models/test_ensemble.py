"""The ensemble against a loop over its members: running means, costs, what each member learns from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import anytime
from anytime.models.ensemble import Ensemble
from anytime.objectives import SelfDistillation, Weighted

CONTRACT_ARGUMENTS = {
    "ensemble": {
        "members": (
            {"model": "fast", "arguments": {"widths": (4, 4), "head_widths": ()}},
            {"model": "anytimenet_baseline", "arguments": {"width": 4}},
        )
    },
}


def plain(*widths: int) -> dict[str, Any]:
    return {"model": "fast", "arguments": {"widths": widths, "head_widths": ()}}


MEMBERS = (plain(4, 6), plain(8), plain(4, 4))


def small(**arguments: Any) -> Ensemble:
    torch.manual_seed(0)
    return Ensemble(5, members=MEMBERS, **arguments).double().eval()


def test_answers_are_means_of_the_members_logits() -> None:
    model, x = small(), torch.rand(3, 3, 12, 12, dtype=torch.float64)
    own = torch.stack([member(x)[-1] for member in model.members])
    expected = torch.stack([own[: t + 1].mean(0) for t in range(3)])
    torch.testing.assert_close(model(x), expected, atol=1e-13, rtol=0)
    torch.testing.assert_close(model(x, step=2), expected[1], atol=1e-13, rtol=0)


def test_a_step_costs_its_member() -> None:
    alone = [anytime.step_macs(member, (3, 32, 32))[0] for member in small().members]
    assert anytime.step_macs(small(), (3, 32, 32)) == [alone[0], sum(alone[:2]), sum(alone)]


@pytest.mark.parametrize("objective", [Weighted(), SelfDistillation(0.5, 2.0, teacher="mean")])
def test_in_training_each_member_has_a_loss_of_its_own(objective: Weighted) -> None:
    model, x, target = small().train(), torch.rand(4, 3, 12, 12, dtype=torch.float64), torch.tensor([0, 1, 2, 3])
    own = torch.stack([member(x)[-1] for member in model.members])
    assert torch.equal(model(x), own)
    first = [*model.members[0].parameters()][-1]
    losses = objective.losses(model(x), target)
    for t, loss in enumerate(losses):
        (gradient,) = torch.autograd.grad(loss, first, retain_graph=True, allow_unused=True, materialize_grads=True)
        assert bool(gradient.any()) == (t == 0)


def test_each_member_is_whitened_by_the_normalised_images() -> None:
    model, images = small(), torch.rand(64, 3, 8, 8, dtype=torch.float64)
    model.set_normalization([0.5, 0.4, 0.3], [0.2, 0.3, 0.4])
    model.initialize_from(images)
    alone = anytime.create_model("fast", 5, **MEMBERS[1]["arguments"]).double()
    alone.set_normalization([0.5, 0.4, 0.3], [0.2, 0.3, 0.4])
    alone.initialize_from(images)
    for member in model.members:
        torch.testing.assert_close(member.whitening.weight, alone.whitening.weight)
        assert torch.equal(member.mean, torch.zeros(3))


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ((), r"members must be a list of at least 1 network, got \(\)"),
        ("fast", "members must be a list of at least 1 network, got 'fast'"),
        (("fast",), r"members\[0\] must be .*, got 'fast'"),
        (({"model": "fast"},), r"members must have a single answer, members\[0\] has 3"),
        ((plain(4), plain(4) | {"arguments": {"num_classes": 7}}), r"must agree in num_classes: members\[1\] has \(7,\)"),
    ],
)
def test_wrong_members(members: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Ensemble(5, members=members)


def test_saved_and_loaded(tmp_path: Path) -> None:
    model = anytime.create_model("ensemble", 5, members=MEMBERS).eval()
    model.save(tmp_path)
    x = torch.rand(2, 3, 12, 12)
    assert torch.equal(anytime.load(tmp_path)(x), model(x))
