"""The cascaded DenseNet: exact counts, the settled answer, and batch norm at each time."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from anytime import create_model
from anytime.models.cascaded.densenet import CascadedDenseNet
from anytime.testing import _randomise, check_anytime_model

CONTRACT_ARGUMENTS = {
    "cascaded_densenet": {"layers": (2, 1, 2), "growth": 8},
}

SMALL = {"num_classes": 5, "layers": (2, 1, 2), "growth": 3}
BRANCHES = ["block0.0.new", "block0.1.new", "block1.0.new", "block2.0.new", "block2.1.new"]
OSD, LATE = (0.0, 1.0), (0.0, 0.0, 0.5, 0.5)


def make(**arguments: Any) -> CascadedDenseNet:
    torch.manual_seed(0)
    model = create_model("cascaded_densenet", **SMALL | arguments)
    with torch.no_grad():
        for parameter in _randomise(model).parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for name, parameter in model.named_parameters():
            parameter.add_(0.5 * (parameter.ndim == 1 and name.endswith("bias")))  # so that no layer is dead
    return model.double()


def images(*size: int, seed: int = 0) -> Tensor:
    return torch.rand(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_1711_evaluations() -> None:
    """58 layers, 59 answers: layer k sees k distinct inputs, 58 * 59 / 2 in total, where a simulation takes 58 * 59."""
    model = create_model("cascaded_densenet", growth=2).eval()
    assert model.num_steps == 59
    assert len(model.branches) == 58
    runs: list[int] = []
    for name in model.branches:
        conv = model.network.get_submodule(f"{name}.2")
        conv.register_forward_hook(lambda _, args, __: runs.append(len(args[0])))
    x = torch.rand(1, 3, 8, 8)
    with torch.no_grad():
        answers = model(x)
        assert sum(runs) == 1711
        assert len(runs) == 58
        runs.clear()
        counts = []
        for t, answer in enumerate(model.stream(x)):
            assert (answer - answers[t]).abs().max() < 1e-4 * answers.abs().max()
            counts.append(len(runs))
    assert counts[:2] == [0, 58]
    assert counts[-1] == 1711


def test_parameters() -> None:
    """The [6, 12, 24, 16] network with growth 16, counted by hand."""
    count = 3 * 32 * 9
    channels = 32
    for block, layers in enumerate((6, 12, 24, 16)):
        for _ in range(layers):
            count += 2 * channels + channels * 64 + 2 * 64 + 64 * 16 * 9
            channels += 16
        if block < 3:
            count += 2 * channels + channels * (channels // 2)
            channels //= 2
    count += 2 * channels + channels * 10 + 10
    model = create_model("cascaded_densenet")
    assert sum(p.numel() for p in model.parameters()) == count == 1_762_954


@pytest.mark.parametrize(("kernel", "weights", "steps"), [("osd", OSD, 6), (LATE, LATE, 16)], ids=["osd", "taps"])
def test_answers_are_those_of_the_simulation(simulate: Any, kernel: Any, weights: tuple[float, ...], steps: int) -> None:
    model = make(kernel=kernel).eval()
    x = images(2, 3, 9, 8)
    assert (model.num_steps, model.first) == (steps, 0)
    expected = torch.stack(simulate(copy.deepcopy(model.network), BRANCHES, weights, [model.normalize(x)] * steps))
    assert (model(x) - expected).abs().max() < 1e-10
    assert (torch.stack(list(model.stream(x))) - expected).abs().max() < 1e-10
    assert (expected[0, 0] - expected[0, 1]).abs().max() > 1e-6, "the answer at t = 0 has seen the image"
    for step in range(1, steps + 1):
        assert (model(x, step=step) - expected[step - 1]).abs().max() < 1e-10


def test_training_is_that_of_the_simulation(simulate: Any) -> None:
    """Logits, gradients and the statistics of every time agree (momentum 1: those of the last batch)."""
    model = make().train()
    for module in model.modules():
        if hasattr(module, "momentum"):
            module.momentum = 1.0
    plain, streamed = copy.deepcopy(model), copy.deepcopy(model)
    x, push = images(3, 3, 8, 8), torch.randn(6, 3, 5, dtype=torch.float64)
    fast = model(x)
    slow = torch.stack(simulate(plain.network, BRANCHES, OSD, [plain.normalize(x)] * 6))
    assert (fast - slow).abs().max() < 1e-10
    assert (torch.stack(list(streamed.stream(x))) - slow).abs().max() < 1e-10
    for out in (fast, slow):
        (out * push).sum().backward()
    for (name, p), q in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert (p.grad - q.grad).abs().max() < 1e-10 * max(1, q.grad.abs().max()), name
    for net in (model, streamed):
        for (name, a), b in zip(net.named_buffers(), plain.buffers(), strict=True):
            assert (a - b).abs().max() < 1e-10, name


def rows(model: CascadedDenseNet) -> list[int]:
    net = model.network
    norms = [net.get_submodule(name)[0] for name in BRANCHES]
    return [norm.rows for norm in (*norms, net.transition1[0], net.transition2[0], net.norm)]


def test_rows_of_statistics() -> None:
    assert rows(make()) == [1, 2, 3, 4, 5, 3, 4, 6]
    assert rows(make(num_steps=3)) == [1, 2, 3, 3, 3, 3, 3, 3]
    assert rows(make(kernel=LATE)) == [1, 4, 7, 10, 13, 7, 10, 16]
    for kernel in ("ews", "instant"):
        assert rows(make(kernel=kernel)) == [1] * 8


def test_a_state_dict_fits_every_kernel() -> None:
    """The settled answer is that of the ordinary network; smoothing uses the settled statistics and comes close to it."""
    model = make().eval()
    x = images(2, 3, 8, 8)
    with torch.no_grad():
        last = model(x)[-1]
        for kernel, steps, error in (("instant", 1, 1e-12), ("ews", 150, 1e-2), (LATE, 16, 1e-12), ("osd", 6, 1e-12)):
            other = make(kernel=kernel, num_steps=steps, alpha=0.8)
            other.load_state_dict(model.state_dict())
            assert (other.eval()(x)[-1] - last).abs().max() < error, kernel
        short = make(num_steps=3)
        short.load_state_dict(model.state_dict())
        assert (short.eval()(x) - model(x)[:3]).abs().max() < 1e-12
        serial = make(kernel="instant")
        model.load_state_dict(serial.state_dict())
        assert (model(x)[-1] - serial.eval()(x)[0]).abs().max() < 1e-12


def test_contract() -> None:
    check_anytime_model(make(num_classes=7), (3, 8, 8))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layers": ()}, r"layers must be at least 1 in every block, got \(\)"),
        ({"layers": (2, 0)}, r"layers must be at least 1 in every block, got \(2, 0\)"),
        ({"growth": 0}, "growth must be at least 1 .* got 0"),
        ({"reduction": 1.5}, r"reduction lie in \(0, 1\], got 3 and 1.5"),
        ({"num_steps": 7}, "num_steps must lie in 1..6, .* got 7"),
        ({"num_steps": 0}, "num_steps must lie in 1..6, .* got 0"),
        ({"alpha": 1.0}, r"alpha must lie in \[0, 1\), got 1.0"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**arguments)


def test_images_that_are_too_small() -> None:
    with pytest.raises(ValueError, match=r"the network cannot run on images \[3, 3, 8\]"):
        make()(images(2, 3, 3, 8))
