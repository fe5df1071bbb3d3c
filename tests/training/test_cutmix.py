"""CutMix: which rectangle, what the loss of mixed images is, and with what it cannot be used."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from anytime.model import create_model
from anytime.objectives import AANN, AVGL, AdaLoss, Hierarchical, Objective, SDNRamp, SelfDistillation, TDLambda, Weighted
from anytime.training import AnytimeModule, CutMix
from anytime.training.schedules import Constant

SIZE = (1, 8, 8)


@given(st.integers(0, 2**40), st.integers(1, 40), st.integers(1, 40), st.floats(1e-3, 1e3), st.integers(0, 2**32 - 1))
def test_the_rectangle_lies_in_the_image_and_depends_on_seed_and_step(
    step: int, height: int, width: int, alpha: float, seed: int
) -> None:
    box = CutMix(1, alpha, seed).box(step, height, width)
    assert box is not None
    assert 0 <= box.top <= box.bottom <= height
    assert 0 <= box.left <= box.right <= width
    assert box == CutMix(1, alpha, seed).box(step, height, width)


def test_each_pixel_at_a_distance_from_the_border_is_as_likely_in_it() -> None:
    """With l = 1/2 always (a large alpha): a rectangle has 16 of 24 rows; most lie in it for 16 centres, the first for 8."""
    regime, rows = CutMix(0.25, 1e12), Counter[int]()
    boxes = [regime.box(step, 24, 48) for step in range(40_000)]
    mixed = [box for box in boxes if box is not None]
    assert len(mixed) / 40_000 == pytest.approx(0.25, abs=0.01)
    for box in mixed:
        rows.update(range(box.top, box.bottom))
    expected = [sum(0 <= centre < 24 for centre in range(row - 7, row + 9)) for row in range(24)]
    assert [24 * rows[row] / len(mixed) for row in range(24)] == pytest.approx(expected, abs=0.5)


def test_alpha_1_is_a_uniform_share() -> None:
    boxes = [CutMix(1).box(step, 1000, 1) for step in range(20_000)]
    inside = [box for box in boxes if box is not None and box.top > 0 and box.bottom < 1000]
    tall = [box.bottom - box.top for box in inside]
    assert max(tall) > 950
    # P(height <= s, not cut off) = E[1 - S; S <= s] with S = sqrt(U), of density 2 S: s^2 - 2 s^3 / 3
    found = [sum(each <= side for each in tall) / 20_000 for side in (250, 500, 750)]
    assert found == pytest.approx([s**2 - 2 * s**3 / 3 for s in (0.25, 0.5, 0.75)], abs=0.015)


@pytest.mark.parametrize(
    "objective",
    [Weighted("constant", label_smoothing=0.1), SelfDistillation(0.5, 2.0), TDLambda(), Hierarchical(levels=(4, 3))],
    ids=lambda objective: type(objective).__name__,
)
def test_the_loss_is_the_mean_over_pixels_of_the_two_images(objective: Objective) -> None:
    levels = isinstance(objective, Hierarchical)
    model = create_model("ann", (4, 3) if levels else 10, in_channels=1, units=2, width=3, period=2).double()
    module, regime = AnytimeModule(model, objective, torch.optim.SGD, Constant()), CutMix(1, seed=3)
    module.forward = lambda images: model(images)  # type: ignore[method-assign] # in float64
    x = torch.rand(5, *SIZE, dtype=torch.float64)
    y = torch.tensor([[0, 2], [3, 1], [1, 0], [2, 2], [3, 0]]) if levels else torch.tensor([0, 1, 2, 3, 4])
    before, box = x.clone(), regime.box(0, 8, 8)
    assert box is not None
    assert box != (0, 8, 0, 8)
    mixed, own = x.clone(), 0
    for row in range(8):
        for column in range(8):
            if box.top <= row < box.bottom and box.left <= column < box.right:
                mixed[:, :, row, column] = x[[4, 0, 1, 2, 3], :, row, column]
            else:
                own += 1
    assert 0 < own < 64
    expected = own / 64 * objective(model(mixed), y) + (1 - own / 64) * objective(model(mixed), y[[4, 0, 1, 2, 3]])
    assert regime.loss(module, x, y).item() == pytest.approx(expected.item(), rel=1e-12)
    assert torch.equal(x, before)


def test_a_step_without_a_rectangle_is_joint_training(exits: Any) -> None:
    model, objective = exits(), Weighted("constant")
    module, regime = AnytimeModule(model, objective, torch.optim.SGD, Constant()).eval(), CutMix(0.01)
    x, y = torch.rand(3, *SIZE), torch.tensor([0, 1, 2])
    assert regime.box(0, 8, 8) is None
    assert torch.equal(regime.loss(module, x, y), objective(model(x), y))


@pytest.mark.parametrize("objective", [AANN(), AVGL(), AdaLoss(), SDNRamp()], ids=lambda objective: type(objective).__name__)
@pytest.mark.parametrize("probability", [1e-9, 1])
def test_objectives_that_learn_or_count_are_refused(
    objective: Objective, probability: float, exits: Any, train: Any, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=rf"calls its objective twice in a step, but {type(objective).__name__} learns"):
        train(exits(), CutMix(probability), tmp_path, objective=objective)


def test_other_tasks_are_refused() -> None:
    model = create_model("ann", 10, in_channels=1, units=2, width=3, period=2)
    model.info.task = "segmentation"  # type: ignore[misc]
    with pytest.raises(ValueError, match="labels of classes, but this is a model for segmentation"):
        CutMix().check(model, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"probability": 0}, r"probability must lie in \(0, 1\], got 0"),
        ({"probability": 1.5}, r"probability must lie in \(0, 1\], got 1.5"),
        ({"probability": float("nan")}, r"probability must lie in \(0, 1\], got nan"),
        ({"alpha": 0.0}, r"alpha must lie in \(0, inf\), got 0.0"),
        ({"alpha": -1}, r"alpha must lie in \(0, inf\), got -1"),
        ({"alpha": float("inf")}, r"alpha must lie in \(0, inf\), got inf"),
    ],
)
def test_wrong_arguments(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CutMix(**arguments)
