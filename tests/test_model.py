"""The contract's base class: normalisation, levels, state, and errors for wrong inputs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

import anytime.models  # noqa: F401, registers all models
from anytime.model import AnytimeModel, create_model, map_state, select_samples


def small(**arguments: Any) -> AnytimeModel:
    defaults = {"blocks": (2, 1, 2), "scheme": ((1, 1, 1), (1, 0, 1)), "width": 2, "num_classes": 3}
    return create_model("anytimenet", **defaults | arguments)


@pytest.mark.parametrize(
    ("mean", "std"),
    [
        ([0.5], [0.5]),
        ([0.5] * 3, [0.5] * 2),
        ([0.5] * 3, [0.5, 0, 0.5]),
        ([0.5] * 3, [0.5, -1, 0.5]),
        ([0.5] * 3, [0.5, math.nan, 0.5]),
        ([0.5] * 3, [0.5, 0.5, math.inf]),
        ([math.nan] * 3, [0.5] * 3),
        ([0.5] * 3, [1e-46] * 3),
    ],
)
def test_wrong_normalization(mean: list[float], std: list[float]) -> None:
    model = small()
    with pytest.raises(ValueError, match="need 3 values and std > 0"):
        model.set_normalization(mean, std)
    assert torch.equal(model.mean, torch.zeros(3))
    assert torch.equal(model.std, torch.ones(3))


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.rand(2, 1, 8, 8), ValueError, r"images must be \[B, 3, H, W\], got \[2, 1, 8, 8\]"),
        (torch.rand(3, 8, 8), ValueError, r"images must be \[B, 3, H, W\], got \[3, 8, 8\]"),
        (torch.rand(0, 3, 8, 8), ValueError, r"the batch is empty: got \[0, 3, 8, 8\]"),
        (torch.rand(2, 3, 8, 3), ValueError, "images must be at least 4x4 pixels, got 8x3"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), TypeError, r"floating-point tensor in \[0, 1\], got torch.uint8"),
        ([[0.5]], TypeError, r"floating-point tensor in \[0, 1\], got list"),
    ],
    ids=["channels", "dimensions", "empty", "small", "integers", "list"],
)
def test_wrong_images(x: Any, error: type[Exception], message: str) -> None:
    model = small()
    for call in (model, model.stream, model.initial_state, lambda images: model(images, step=1)):
        with pytest.raises(error, match=message):
            call(x)


@pytest.mark.parametrize("step", [-1, 0, 3])
def test_step_out_of_range(step: int) -> None:
    with pytest.raises(ValueError, match=rf"step must lie in 1\.\.2, got {step}"):
        small()(torch.rand(1, 3, 8, 8), step=step)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": 0}, "num_classes must be at least 1, got 0"),
        ({"num_classes": ()}, r"num_classes must be at least 1, got \(\)"),
        ({"num_classes": (5, 0)}, r"num_classes must be at least 1, got \(5, 0\)"),
        ({"num_classes": "10"}, "num_classes must be a whole number, got '10'"),
        ({"num_classes": (2, 2.5)}, r"num_classes must be a whole number, got \(2, 2\.5\)"),
        ({"num_classes": True}, "num_classes must be a whole number, got True"),
        ({"in_channels": 0}, "in_channels must be at least 1, got 0"),
        ({"in_channels": 1.0}, r"in_channels must be a whole number, got 1\.0"),
        ({"in_channels": np.array([3])}, r"in_channels must be a whole number, got array\(\[3\]\)"),
        ({"in_channels": int}, "in_channels must be a whole number, got <class 'int'>"),
        ({"in_channels": "3"}, "in_channels must be a whole number, got '3'"),
    ],
)
def test_wrong_sizes(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AnytimeModel(**arguments)


def test_levels() -> None:
    assert (AnytimeModel(7).levels, AnytimeModel(7).num_classes) == ((7,), 7)
    assert (AnytimeModel(np.int64(7)).levels, AnytimeModel(np.int64(7)).num_classes) == ((7,), 7)
    assert (AnytimeModel((100, 20)).levels, AnytimeModel((100, 20)).num_classes) == ((100, 20), 120)


def test_select_samples_keeps_structure_order_and_numbers() -> None:
    state = (3, {"h": torch.arange(4.0), "more": [torch.arange(8).view(4, 2)]}, None)
    step, tensors, none = select_samples(state, torch.tensor([2, 0]))
    assert (step, none) == (3, None)
    assert tensors["h"].tolist() == [2, 0]
    assert tensors["more"][0].tolist() == [[4, 5], [0, 1]]
    _, masked, _ = select_samples(state, torch.tensor([True, False, False, True]))
    assert masked["h"].tolist() == [0, 3]
    assert map_state(lambda tensor: tensor + 1, (1, torch.zeros(2)))[1].tolist() == [1, 1]


def test_stream_refuses_at_once_and_runs_lazily() -> None:
    model = small().eval()
    runs = []
    model.get_submodule("head").register_forward_hook(lambda *_: runs.append(1))
    stream = model.stream(torch.rand(1, 3, 8, 8))
    assert len(runs) == 0
    next(stream)
    assert len(runs) == 1
    assert len(list(stream)) == 1
    with pytest.raises(ValueError, match="images must be"):
        model.stream(torch.rand(3, 8, 8))
