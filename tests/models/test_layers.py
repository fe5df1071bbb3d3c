"""Layers that several families share."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from anytime.model import create_model
from anytime.models.common.layers import add_shortcut
from anytime.models.common.step_norm import StepBatchNorm2d


def images(*size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_one_row_is_ordinary_batch_norm() -> None:
    ours, theirs = StepBatchNorm2d(4, eps=1e-3, momentum=0.3).double(), nn.BatchNorm2d(4, 1e-3, 0.3).double()
    with torch.no_grad():
        for name in ("weight", "bias"):
            getattr(ours, name).copy_(images(4))
            getattr(theirs, name).copy_(images(4))
    for seed in range(3):
        x, y = (images(2, 4, 3, 5, seed=seed).requires_grad_() for _ in range(2))
        assert torch.equal(ours(x), theirs(y))
        ours(x).square().sum().backward()
        theirs(y).square().sum().backward()
        assert x.grad is not None
        assert torch.equal(x.grad, y.grad)
        assert torch.equal(ours.weight.grad, theirs.weight.grad)
    assert torch.equal(ours.running_mean[0], theirs.running_mean)
    assert torch.equal(ours.running_var[0], theirs.running_var)
    x = images(2, 4, 3, 5, seed=9)
    assert torch.equal(ours.eval()(x), theirs.eval()(x))


def test_each_use_has_separate_statistics() -> None:
    norm = StepBatchNorm2d(2, rows=3, momentum=1.0).double()
    first, second = images(8, 2, 4, 4), 3 * images(8, 2, 4, 4, seed=1) + 5
    norm(first, 0)
    norm(second, 1)
    torch.testing.assert_close(norm.running_mean[0], first.mean((0, 2, 3)))
    torch.testing.assert_close(norm.running_mean[1], second.mean((0, 2, 3)))
    torch.testing.assert_close(norm.running_var[1], second.transpose(0, 1).flatten(1).var(1))
    assert torch.equal(norm.running_mean[2], torch.zeros(2))
    assert torch.equal(norm.running_var[2], torch.ones(2))
    norm.eval()
    assert norm(second, 1).mean().abs() < 1e-6
    assert norm(second, 0).mean() > 1


def test_uses_beyond_the_last_row_take_the_last() -> None:
    norm = StepBatchNorm2d(2, rows=2).double()
    norm(images(4, 2, 3, 3), 1)
    norm(images(4, 2, 3, 3, seed=1), 0)
    norm.eval()
    x = images(1, 2, 3, 3, seed=2)
    assert torch.equal(norm(x, 7), norm(x, 1))
    assert not torch.equal(norm(x, 1), norm(x, 0))


def test_training_does_not_depend_on_the_rows() -> None:
    x = images(4, 2, 3, 3)
    outputs = [StepBatchNorm2d(2, rows).double()(x, row) for rows, row in ((1, 0), (1, 4), (5, 0), (5, 4))]
    assert all(torch.equal(output, outputs[0]) for output in outputs)


def test_step_batch_norm_describes_itself() -> None:
    norm = StepBatchNorm2d(8, rows=5, eps=1e-3)
    assert repr(norm) == "StepBatchNorm2d(8, rows=5, eps=0.001, momentum=0.1)"
    assert norm.rows == 5
    assert {name: list(t.shape) for name, t in norm.state_dict().items()} == {
        "weight": [8], "bias": [8], "running_mean": [5, 8], "running_var": [5, 8]
    }  # fmt: skip


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 3), st.integers(1, 4))
def test_shortcut_that_widens(height: int, width: int, channels: int, more: int) -> None:
    x = images(2, channels, height, width)
    before = images(2, channels + more, -(-height // 2), -(-width // 2))
    wide = add_shortcut(before.clone(), x) - before
    assert not wide[:, channels:].any()
    for i in range(wide.shape[2]):
        for j in range(wide.shape[3]):
            window = x[:, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
            torch.testing.assert_close(wide[:, :channels, i, j], window.mean((2, 3)))


@pytest.mark.parametrize("size", [(8, 8), (7, 5), (1, 2)])
def test_shortcut_fits_a_strided_convolution(size: tuple[int, int]) -> None:
    x = images(1, 2, *size)
    out = F.conv2d(x, images(3, 2, 3, 3), stride=2, padding=1)
    assert add_shortcut(out, x) is out


def test_shortcut_of_equal_width_is_the_identity() -> None:
    x, out = images(2, 3, 4, 5), images(2, 3, 4, 5)
    torch.testing.assert_close(add_shortcut(out.clone(), x), out + x)


def test_a_centred_shortcut_has_zeros_in_front_and_behind() -> None:
    x, before = images(2, 3, 4, 4), images(2, 6, 2, 2)
    wide = add_shortcut(before.clone(), x, centred=True) - before
    torch.testing.assert_close(wide, F.pad(F.avg_pool2d(x, 2), (0, 0, 0, 0, 1, 2)))


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("anytimenet", {"blocks": (10**9, 1), "scheme": ((1, 1), (10**9 - 1, 0))}, "blocks must add up to at most 10,000"),
        ("anytimenet_baseline", {"blocks": (10**9,)}, "blocks must add up to at most 10,000, got 1,000,000,000"),
        ("ann", {"units": 10**9}, "units of the three stages must add up to at most 10,000"),
        ("anytime.models.ann.imagenet.ANNResNet", {"blocks": (10**9,)}, "blocks must add up to at most 10,000"),
        ("isresnext", {"blocks": (10**9,)}, "blocks must add up to at most 10,000"),
        ("cascaded_densenet", {"layers": (10**9,)}, "layers must add up to at most 10,000"),
        ("cascaded_resnet18", {"kernel": (0.0,) * 1000 + (1.0,)}, "kernel must have at most 1,000 weights, got 1,001"),
    ],
)
def test_numbers_that_would_exhaust_memory_before_any_layer(name: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_model(name, **arguments)
