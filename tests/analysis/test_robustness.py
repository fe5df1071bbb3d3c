"""Noise streams against a loop over frames, one step at a time, and the formula of the drop by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from anytime import convert, create_model
from anytime.analysis.robustness import Transient, mean_drop, persistent, transient
from anytime.data.noise import create_noise, frames
from anytime.testing import _randomise

FILL = (0.5, 0.4, 0.6)
KEYS = torch.tensor([7, 3, 11, 5, 2, 13])


def make(**arguments: Any) -> Any:
    torch.manual_seed(0)
    with torch.no_grad():
        return _randomise(create_model("cascaded_resnet18", num_classes=5, width=4, pool=True, **arguments)).double().eval()


def data() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.rand(6, 3, 16, 17, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 4, 0])


def right_step_by_step(model: Any, stream: list[Tensor], labels: Tensor) -> list[float]:
    """The share of right answers after each frame, of a state that is never started anew."""
    state, shares = None, []
    with torch.no_grad():
        for frame in stream:
            state = model.initial_state(frame) if state is None else model.observe(state, frame)
            logits, state = model.step(state)
            shares.append(sum(int(row.argmax()) == int(label) for row, label in zip(logits, labels, strict=True)) / 6)
    return shares


def labels_of_change(model: Any, images: Tensor, noisy: Tensor) -> Tensor:
    """Labels that some answers meet and others do not: of half the images the clean answer, of the others a noisy one."""
    with torch.no_grad():
        clean, other = model(images)[-1].argmax(1), model(noisy)[-1].argmax(1)
    return torch.where(torch.arange(6) < 3, clean, other)


@pytest.mark.parametrize(
    ("name", "arguments", "settling"),
    [
        ("perlin", {}, 9),
        ("occlusion", {"kernel": "ews", "alpha": 0.5, "num_steps": 12}, 12),
        ("translation", {"clock": "published"}, 10),
    ],
)
def test_protocols_are_a_loop_over_frames(name: str, arguments: dict[str, Any], settling: int) -> None:
    model, (images, _), noise = make(**arguments), data(), create_noise(name, FILL)  # type: ignore[arg-type]
    given = settling if arguments.get("clock") else None
    noisy = frames(noise, images, KEYS, settling + 4)
    labels = labels_of_change(model, images, noisy[:2].repeat(6, 1, 1, 1, 1))
    shares = right_step_by_step(model, [*noisy], labels)
    assert persistent(model, images, labels, noise, KEYS, window=4, settling=given) == pytest.approx(sum(shares[-4:]) / 4)
    found = transient(model, images, labels, noise, (1, 4), KEYS, settling=given)
    for duration, one in zip((1, 4), found, strict=True):
        stream = [*[images] * settling, *noisy[:duration], *[images] * settling]
        shares = right_step_by_step(model, stream, labels)
        clean, after = shares[settling - 1], shares[settling:]
        assert one.clean == clean
        assert one.accuracy.tolist() == after
        assert one.area == pytest.approx(sum(clean - share for share in after))
        assert one.drop == pytest.approx(100 * sum(clean - share for share in after) / ((duration + settling) * clean))
        if "ews" not in arguments.values():
            assert after[-1] == clean, "the answer has settled again"


def test_the_baseline_answers_every_frame_anew() -> None:
    serial, (images, _), noise = convert(make(), "serial_resnet18"), data(), create_noise("perlin", FILL)
    noisy = frames(noise, images, KEYS, 12)
    with torch.no_grad():
        labels = torch.where(torch.arange(6) < 4, serial(images)[-1].argmax(1), serial(noisy[1])[-1].argmax(1))
        right = [float((serial(frame)[-1].argmax(1) == labels).double().mean()) for frame in (images, *noisy)]
    assert persistent(serial, images, labels, noise, KEYS, window=3, anew=True) == pytest.approx(sum(right[10:13]) / 3)
    (one,) = transient(serial, images, labels, noise, (2,), KEYS, anew=True)
    assert one.clean == right[0]
    assert one.accuracy.tolist() == [*right[1:3], *[right[0]] * 9]


def test_drop_and_area() -> None:
    one, two = Transient(0.8, torch.tensor([0.4, 0.6, 0.8]).double()), Transient(0.5, torch.tensor([0.5]).double())
    assert one.area == pytest.approx(0.6)
    assert one.drop == pytest.approx(100 * 0.6 / (3 * 0.8))
    assert mean_drop([one, two]) == pytest.approx((12.5, 0.3))
    assert math.isnan(Transient(0.0, torch.zeros(2).double()).drop)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"window": 0}, "window must be a whole number of at least 1, got 0"),
        ({"settling": 0}, "settling must be a whole number of at least 1, got 0"),
        ({"window": 1.5}, "window must be a whole number of at least 1, got 1.5"),
        ({"images": [[0.5]]}, r"images must be a tensor \[B, C, H, W\], got list"),
        ({"labels": torch.zeros(5).long()}, r"labels must be one for each of 6 images, got \[5\]"),
        ({"keys": torch.zeros(7)}, r"keys must be one for each of 6 images, got \[7\]"),
        (
            {"model": create_model("serial_resnet18", width=2)},
            "SerialResNet cannot take new frames for ever: call with anew=True",
        ),
    ],
)
def test_what_does_not_fit(changes: dict[str, Any], message: str) -> None:
    images, labels = data()
    given = {"model": make(), "images": images, "labels": labels, "noise": create_noise("focus", FILL)} | changes
    with pytest.raises(ValueError, match=message):
        persistent(**given)


@pytest.mark.parametrize(
    ("durations", "message"),
    [
        ((), r"durations must be a list of one or more numbers of steps, got \(\)"),
        (3, "durations must be a list of one or more numbers of steps, got 3"),
        ((0, 1), "a duration must be a whole number of at least 1, got 0"),
        ([1.5], "a duration must be a whole number of at least 1, got 1.5"),
    ],
)
def test_wrong_durations(durations: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        transient(make(), *data(), create_noise("focus", FILL), durations)


def test_labels_and_keys_may_be_lists() -> None:
    (images, labels), model, noise = data(), make(), create_noise("focus", FILL)
    keys = torch.arange(len(images))
    found = persistent(model, images, labels, noise, keys, window=1)
    assert persistent(model, images, labels.tolist(), noise, keys.tolist(), window=1) == found
