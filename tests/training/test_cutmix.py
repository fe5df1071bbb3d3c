"""CutMix: which rectangle, what the loss of mixed images is, and with what it cannot be used."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from anytime.cli import main
from anytime.model import create_model
from anytime.objectives import AANN, AVGL, AdaLoss, Hierarchical, Objective, SDNRamp, SelfDistillation, TDLambda, Weighted
from anytime.training import AnytimeModule, CutMix
from anytime.training.schedules import Constant

SIZE = (1, 8, 8)


@given(st.integers(0, 2**40), st.integers(1, 40), st.integers(1, 40), st.floats(0.01, 1e6), st.integers(0, 2**32 - 1))
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
    regime, rows = CutMix(0.25, 1e6), Counter[int]()
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
@pytest.mark.parametrize("step", [0, 1])
def test_the_loss_is_the_mean_over_pixels_of_the_two_images(
    objective: Objective, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    levels = isinstance(objective, Hierarchical)
    model = create_model("ann", (4, 3) if levels else 10, in_channels=1, units=2, width=3, period=2).double()
    module, regime = AnytimeModule(model, objective, torch.optim.SGD, Constant()), CutMix(1, seed=3)
    monkeypatch.setattr(AnytimeModule, "global_step", step)
    module.forward = lambda images: model(images)  # type: ignore[method-assign] # in float64
    x = torch.rand(5, 1, 6, 10, dtype=torch.float64)
    y = torch.tensor([[0, 2], [3, 1], [1, 0], [2, 2], [3, 0]]) if levels else torch.tensor([0, 1, 2, 3, 4])
    before, box = x.clone(), regime.box(step, 6, 10)
    assert box is not None
    assert box not in (regime.box(1 - step, 6, 10), regime.box(step, 10, 6))
    mixed, own = x.clone(), 0
    for row in range(6):
        for column in range(10):
            if box.top <= row < box.bottom and box.left <= column < box.right:
                mixed[:, :, row, column] = x[[4, 0, 1, 2, 3], :, row, column]
            else:
                own += 1
    assert 0 < own < 60
    expected = own / 60 * objective(model(mixed), y) + (1 - own / 60) * objective(model(mixed), y[[4, 0, 1, 2, 3]])
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


def test_a_refused_objective_leaves_no_run(tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "refused"
    assert main(["train", *tiny, "--regime", "CutMix", "--objective", "AANN", "--run", str(run)]) == 2
    assert "CutMix calls its objective twice in a step, but AANN learns" in capsys.readouterr().err
    assert not run.exists()


def test_an_objective_with_a_frozen_teacher_is_none_that_learns(exits: Any, train: Any, tmp_path: Path) -> None:
    class Taught(Weighted):
        """Its teacher stays in eval mode, as frozen parts do."""

        def __init__(self) -> None:
            super().__init__("constant")
            self.teacher = nn.BatchNorm1d(10).requires_grad_(False).eval()

        def forward(self, logits: Tensor, target: Tensor) -> Tensor:
            assert not self.teacher.training
            return super().forward(logits + 0 * self.teacher(logits[0]), target)

    train(exits(), CutMix(1), tmp_path, objective=Taught())


def test_one_image_has_no_other(exits: Any) -> None:
    module = AnytimeModule(exits(), Weighted(), torch.optim.SGD, Constant())
    with pytest.raises(ValueError, match="at least 2 images in a batch, got 1"):
        CutMix(1).loss(module, torch.rand(1, *SIZE), torch.tensor([0]))


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
        ({"alpha": 0.0}, r"alpha must lie in \[0.01, 1e6\], got 0.0"),
        ({"alpha": 0.001}, r"alpha must lie in \[0.01, 1e6\], got 0.001"),
        ({"alpha": 1e308}, r"alpha must lie in \[0.01, 1e6\], got 1e\+308"),
        ({"alpha": float("nan")}, r"alpha must lie in \[0.01, 1e6\], got nan"),
    ],
)
def test_wrong_arguments(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CutMix(**arguments)
