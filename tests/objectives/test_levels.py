"""Every objective with two label levels: right per level, or an error."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from anytime import objectives
from anytime.objectives import Objective, TDLambda

SIZES = (3, 2)
TARGET = torch.tensor([[0, 1], [2, 0], [1, 1]])
ARGUMENTS: dict[str, dict[str, Any]] = {"Optimal": {"exit": 2}, "SDNRamp": {"epochs": 2, "epoch_steps": 5}}
KINDS = [
    kind
    for name in objectives.__all__
    if isinstance(kind := getattr(objectives, name), type) and issubclass(kind, Objective) and hasattr(kind, "losses")
]


def test_all_objectives_are_covered() -> None:
    every = {kind.__name__ for kind in vars(objectives).values() if isinstance(kind, type) and issubclass(kind, Objective)}
    assert {kind.__name__ for kind in KINDS} == every - {"Objective", "TDLambda"}
    assert len(KINDS) > 9


@pytest.mark.parametrize("kind", KINDS)
def test_a_loss_is_a_sum_over_label_levels(kind: Any) -> None:
    """So the losses of the levels add up, and a shift of one level's logits, which changes no answer, changes no loss."""
    z = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def losses(logits: torch.Tensor, target: torch.Tensor, *sizes: int) -> torch.Tensor:
        objective = kind(**ARGUMENTS.get(kind.__name__, {}))
        objective.set_levels(sizes)
        return objective.losses(logits, target)

    found = losses(z, TARGET, *SIZES)
    assert torch.allclose(found, losses(z[..., :3], TARGET[:, 0], 3) + losses(z[..., 3:], TARGET[:, 1], 2), atol=1e-12)
    assert torch.allclose(losses(z + torch.tensor([5.0, 5, 5, 0, 0]), TARGET, *SIZES), found, atol=1e-12)


def test_td_takes_one_level() -> None:
    with pytest.raises(ValueError, match="TDLambda takes one level of labels, the data set has 2"):
        TDLambda().set_levels(SIZES)
    with pytest.raises(ValueError, match=r"labels must be \[3\], one per image, got \[3, 2\]; choose one level"):
        TDLambda()(torch.zeros(4, 3, 5), TARGET)
