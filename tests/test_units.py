"""Sizes of images as users give them: the same in Python and in the commands."""

import numpy as np
import pytest
import torch

import anytime
from anytime.support.units import image_size, ms_text


@pytest.mark.parametrize(
    ("given", "size"),
    [
        (224, (3, 224, 224)),
        ("224", (3, 224, 224)),
        (np.int64(32), (3, 32, 32)),
        ("1,28,20", (1, 28, 20)),
        (" 3, 8 ,9", (3, 8, 9)),
        ([3, 8, 9], (3, 8, 9)),
        (torch.Size([3, 8, 9]), (3, 8, 9)),
        (np.array([3, 8, 9]), (3, 8, 9)),
    ],
)
def test_three_numbers_or_the_side_of_a_square_colour_image(given, size) -> None:
    assert image_size(given) == size
    assert all(type(number) is int for number in image_size(given))


@pytest.mark.parametrize(
    "given",
    [
        0,
        -224,
        True,
        224.0,
        None,
        "",
        "224x224",
        "3,224",
        (224, 224),
        (3, 0, 8),
        (3, 8.0, 8),
        [[3, 8, 8]],
        {3, 20, 30},
        b"\x03\x08\x08",
    ],
)
def test_what_is_no_size_is_repeated(given) -> None:
    with pytest.raises(ValueError, match="224 for square colour images, got") as caught:
        image_size(given)
    assert str(caught.value).endswith(f"got {given!r}")


def test_224_means_the_same_in_every_function() -> None:
    model, wanted = anytime.create_model("anytimenet", width=4, blocks=(2, 2, 2), scheme=(1, 1)), (3, 16, 16)
    assert anytime.step_macs(model, 16) == anytime.step_macs(model, wanted)
    assert len(anytime.step_seconds(model, 16, repeats=1, warmup=0).median) == model.num_steps
    measured = anytime.profile(model, 16, repeats=1, warmup=0)
    assert measured.input_size == wanted
    assert anytime.profile(model, torch.rand(wanted), repeats=1, warmup=0).input_size == wanted
    loader = [(torch.rand(2, 3, 16, 16), torch.tensor([0, 1]))]
    trace = anytime.record(model, loader, input_size=16, progress=False, seconds=False)
    assert trace.meta["input_size"] == list(wanted)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, 2), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(196, 10))
    assert anytime.attach_exits(network, ["1"], input_size=16).info.input_size == wanted
    grey = anytime.create_model("anytimenet", width=4, blocks=(2, 2, 2), scheme=(1, 1), in_channels=1)
    with pytest.raises(ValueError, match=r"\[B, 1, H, W\], got \[1, 3, 16, 16\]"):
        anytime.step_macs(grey, 16)


def test_milliseconds_below_zero_have_no_exponent() -> None:
    values = (-1, -1234.5, -0.1, -0.0012, 0, float("-inf"))
    assert [ms_text(seconds) for seconds in values] == ["-1,000", "-1,234,500", "-100", "-1.20", "0.00", "-inf"]
