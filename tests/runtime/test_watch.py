"""A network that follows frames: its answers are those of its own steps, one frame after the other."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anytime import add_delays, create_model
from anytime.runtime import Predictor
from anytime.testing import _randomise


class Small(nn.Module):
    """Two blocks with skip connections."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)
        self.first, self.second = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = (x + self.first(x)).relu()
        x = (x + self.second(x)).relu()
        return self.head(x.mean((2, 3)))


def make(name: str = "cascaded_resnet18", **arguments: Any) -> Any:
    torch.manual_seed(0)
    with torch.no_grad():
        return _randomise(create_model(name, num_classes=5, **{"width": 4} | arguments)).double().eval()


def step_by_step(model: Any, frames: Tensor, updates: int) -> Tensor:
    """The logits after the last update on each frame, of which every update sees one again."""
    return torch.stack([*model.stream(frame for frame in frames for _ in range(updates))])[updates - 1 :: updates]


@pytest.mark.parametrize("updates", [1, 3])
@pytest.mark.parametrize(
    "arguments",
    [{}, {"kernel": "ews", "alpha": 0.5}, {"clock": "published"}, {"kernel": (0, 0, 0.5, 0.5)}],
    ids=["osd", "ews", "published", "lagging"],
)
def test_answers_are_those_of_the_steps(arguments: dict[str, Any], updates: int) -> None:
    model = make(**arguments)
    frames = torch.rand(12, 2, 3, 9, 8, dtype=torch.float64)
    expected = step_by_step(model, frames, updates).float()
    answers = list(Predictor(model).watch(frames, updates))
    assert (torch.stack([answer.outputs for answer in answers]) - expected).abs().max() < 1e-6
    assert all(torch.equal(answer.probabilities, answer.outputs.softmax(1)) for answer in answers)
    assert [answer.step for answer in answers] == [min((n + 1) * updates, model.num_steps) for n in range(12)]
    assert all(answer.macs.tolist() == [0, 0] and answer.deadline is None and not answer.reason for answer in answers)


def test_any_network_with_delays_follows_frames() -> None:
    torch.manual_seed(0)
    model = add_delays(Small(), num_classes=5).double().eval()
    frames = torch.rand(4, 1, 3, 9, 8, dtype=torch.float64)
    answers = [answer.outputs for answer in Predictor(model).watch(frames, 2)]
    assert (torch.stack(answers) - step_by_step(model, frames, 2).float()).abs().max() < 1e-5


def test_a_single_image_settles_at_the_answer_to_it() -> None:
    model = make()
    image = torch.rand(3, 9, 8, dtype=torch.float64)
    *_, last = Predictor(model).watch([image] * 9)
    assert (last.outputs - model(image[None])[-1].float()).abs().max() < 1e-6


def test_a_frame_is_copied() -> None:
    model, image = make(), torch.rand(1, 3, 9, 8, dtype=torch.float64)
    expected = [answer.outputs for answer in Predictor(model).watch([image.clone(), image.clone()])]
    watching = Predictor(model).watch([image, image.clone()])
    found = [next(watching).outputs]
    image.zero_()
    found.append(next(watching).outputs)
    assert torch.equal(torch.stack(found), torch.stack(expected))


def test_what_is_not_finite_keeps_the_last_answer() -> None:
    model = make()
    watching = Predictor(model).watch(torch.rand(2, 1, 3, 9, 8, dtype=torch.float64))
    first = next(watching)
    model.heads[0].bias.data[0] = torch.nan
    second = next(watching)
    assert torch.equal(second.outputs, first.outputs)
    assert second.not_finite == (2,)


def test_frames_of_changing_size() -> None:
    watching = Predictor(make()).watch([torch.rand(1, 3, *size, dtype=torch.float64) for size in ((9, 8), (9, 9))])
    next(watching)
    with pytest.raises(ValueError, match=r"frame 1 has shape \[1, 3, 9, 9\], the first had \[1, 3, 9, 8\]"):
        next(watching)


@pytest.mark.parametrize(
    ("name", "model", "options", "updates", "message"),
    [
        (
            "serial_resnet18",
            {},
            {},
            1,
            "that of this SerialResNet cannot take new frames for ever: use anytime.runtime.frames",
        ),
        ("anytimenet", {}, {}, 1, "cannot take new frames for ever"),
        ("cascaded_resnet18", {"heads": "separate"}, {}, 1, "CascadedResNet cannot take new frames for ever"),
        (
            "cascaded_resnet18",
            {},
            {"stop": "confidence=0.9"},
            1,
            "watch never stops, and answers after every frame: leave out",
        ),
        ("cascaded_resnet18", {}, {"combine": "product"}, 1, "combine='last', not 'product'"),
        ("cascaded_resnet18", {}, {}, 0, "updates must be a whole number of at least 1 for each frame, got 0"),
        ("cascaded_resnet18", {}, {}, True, "updates must be a whole number of at least 1 for each frame, got True"),
    ],
)
def test_what_cannot_watch(name: str, model: dict[str, Any], options: dict[str, Any], updates: Any, message: str) -> None:
    built = make(name, **model)
    with pytest.raises(ValueError, match=message):
        Predictor(built, **options).watch([], updates)


def test_every_frame_is_checked() -> None:
    """A frame that is as the first takes a short way; any other is looked at as the first was."""
    model = make()
    good = torch.rand(1, 3, 9, 8, dtype=torch.float64)
    over = good.clone()
    over[0, 0, 0, 0] = 1.04
    clamped = over.clamp(max=1)
    found = [answer.outputs for answer in Predictor(model).watch([good, good[0], over, good.transpose(2, 3).mT])]
    expected = [answer.outputs for answer in Predictor(model).watch([good, good, clamped, good])]
    assert torch.equal(torch.stack(found), torch.stack(expected))
    for wrong, error, message in (
        (torch.full_like(good, torch.nan), ValueError, "the images hold NaN"),
        (good + 0.2, ValueError, r"images must lie in \[0, 1\]"),
        (good.float(), TypeError, "the images are torch.float32, the model torch.float64"),
        (good.numpy(), TypeError, "tensor"),
        (good[:, :2], ValueError, "images must be"),
    ):
        watching = Predictor(model).watch([good, wrong])
        next(watching)
        with pytest.raises(error, match=message):
            next(watching)


def test_answers_own_their_tensors() -> None:
    """What a caller does to an answer changes neither the state nor a later answer."""
    model, frames = make().float(), torch.rand(3, 1, 3, 9, 8)
    expected = [answer.probabilities for answer in Predictor(model).watch(frames)]
    found = []
    for answer in Predictor(model).watch(frames):
        found.append(answer.probabilities.clone())
        for tensor in (*answer.levels, answer.outputs, answer.steps, answer.macs):
            tensor.zero_()
    assert torch.equal(torch.stack(found), torch.stack(expected))
