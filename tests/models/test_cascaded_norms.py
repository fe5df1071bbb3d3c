"""Batch norm as the published code runs it: a plain loop over all blocks and times, with the norm's formula written out."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from anytime import convert, create_model
from anytime.models.cascaded.resnet import CascadedResNet
from anytime.models.common.step_norm import StepBatchNorm2d
from anytime.testing import _randomise, check_anytime_model

T = 9
AS_RUN = {"norm_eps": 0.1, "norm_momentum": 1.0}


def make(name: str = "cascaded_resnet18", **arguments: Any) -> Any:
    torch.manual_seed(0)
    model = create_model(name, num_classes=5, **arguments)
    with torch.no_grad():
        _randomise(model)
    return model.double()


class PublishedNorms:
    """y = w (x - mu[t]) / sqrt(var[t] + 0.1) + b; training sets mu[t] and var[t] to those of the batch."""

    def __init__(self) -> None:
        self.last: dict[tuple[StepBatchNorm2d, int], tuple[Tensor, Tensor]] = {}

    def __call__(self, norm: StepBatchNorm2d, x: Tensor, t: int, training: bool) -> Tensor:
        t = min(t, T - 1)
        if training:
            mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
            self.last[norm, t] = mean.detach(), x.var((0, 2, 3), correction=1).detach()
        else:
            mean, var = self.last[norm, t]
        mean, var, weight, bias = (v[:, None, None] for v in (mean, var, norm.weight, norm.bias))
        return weight * (x - mean) / (var + 0.1).sqrt() + bias


def published(model: Any, norms: PublishedNorms, frames: list[Tensor], training: bool) -> Tensor:
    """Logits at t = 0, 1, ...: queues of one slot, and every block at every t."""
    queues: list[Tensor | None] = [None] * 9
    logits = []
    for t, x in enumerate(frames):
        sent = model.stem[3](F.relu(norms(model.stem[1], model.stem[0](model.normalize(x)), t, training)))
        z, queues[0] = torch.zeros_like(sent) if queues[0] is None else queues[0], sent
        for k, block in enumerate(model.blocks, 1):
            r = z
            for i, (conv, norm) in enumerate(zip(block.convs, block.norms, strict=True)):
                r = norms(norm, conv(F.relu(r) if i else r), t, training)
            arrived, queues[k] = torch.zeros_like(r) if queues[k] is None else queues[k], r
            z = F.relu(arrived + (z if block.projection is None else block.projection(z)))
        logits.append(model.heads[0](z.mean((2, 3))))
    return torch.stack(logits)


def test_answers_are_those_of_the_published_code() -> None:
    """Two steps of SGD on batches of different size, and then evaluation: on a still image and, past t = 8, on frames."""
    model = make(width=4, pool=True, clock="published", **AS_RUN)
    norms = PublishedNorms()
    for size in (4, 2):
        x = torch.rand(size, 3, 16, 14, dtype=torch.float64)
        push = torch.randn(T, size, 5, dtype=torch.float64)
        answers, expected = model.train()(x), published(model, norms, [x] * T, True)
        assert (answers - expected).abs().max() < 1e-11
        own, reference = (torch.autograd.grad((a * push).sum(), [*model.parameters()]) for a in (answers, expected))
        assert all((a - b).abs().max() < 1e-9 * max(1, b.abs().max()) for a, b in zip(own, reference, strict=True))
        with torch.no_grad():
            for parameter, gradient in zip(model.parameters(), own, strict=True):
                parameter -= 1e-3 * gradient
    model.eval()
    x = torch.rand(2, 3, 16, 14, dtype=torch.float64)
    with torch.no_grad():
        assert (model(x) - published(model, norms, [x] * T, False)).abs().max() < 1e-11
        frames = torch.rand(12, 2, 3, 16, 14, dtype=torch.float64)
        assert (model(frames) - published(model, norms, [*frames], False)).abs().max() < 1e-11


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("cascaded_resnet18", {"width": 4}), ("serial_resnet18", {"width": 4, "form": "published"}), 
     ("cascaded_densenet", {"layers": (1, 2), "growth": 4})],
)  # fmt: skip
def test_every_norm_has_the_given_constants(name: str, arguments: dict[str, Any]) -> None:
    for given, wanted in (({}, (1e-5, 0.1)), ({"norm_eps": 0.5, "norm_momentum": 1}, (0.5, 1.0))):
        model = make(name, **arguments, **given)
        found = [(m.eps, m.momentum) for m in model.modules() if isinstance(m, StepBatchNorm2d)]
        assert found
        assert set(found) == {wanted}


def test_relatives_have_the_same_norm() -> None:
    model = make(width=4, **AS_RUN).eval()
    x = torch.rand(2, 3, 9, 8, dtype=torch.float64)
    serial = convert(model, "serial_resnet18")
    assert (serial(x)[-1] - model(x)[-1]).abs().max() < 1e-11
    assert {m.eps for m in serial.modules() if isinstance(m, StepBatchNorm2d)} == {0.1}


@pytest.mark.parametrize(("depth", "blocks"), [(101, 33), (152, 50)])
def test_deeper_networks(depth: int, blocks: int) -> None:
    """Without delay the only answer is an ordinary pass through all bottlenecks; the serial relative ends with it."""
    name = "anytime.models.cascaded.resnet.CascadedResNet"
    model = make(name, depth=depth, width=2, kernel="instant").eval()
    x = torch.rand(1, 3, 8, 8, dtype=torch.float64)
    z = model.stem(model.normalize(x))
    for block in model.blocks:
        z = F.relu(block.residual(z, (0,)) + block.shortcut(z))
    assert len(model.blocks) == blocks
    assert torch.equal(model(x)[-1], model.heads[0](z.mean((2, 3))))
    assert CascadedResNet(depth=depth, width=2).num_steps == blocks + 1
    serial = convert(model, "anytime.models.cascaded.serial.SerialResNet")
    assert (serial(x, step=blocks + 1) - model(x)[-1]).abs().max() < 1e-12


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"norm_eps": 0}, "norm_eps must be a number above zero, got 0"),
        ({"norm_eps": math.inf}, "norm_eps must be a number above zero, got inf"),
        ({"norm_eps": "1e-5"}, "norm_eps must be a number above zero, got '1e-5'"),
        ({"norm_momentum": 0}, r"norm_momentum must be a number in \(0, 1\], got 0"),
        ({"norm_momentum": 1.1}, r"norm_momentum must be a number in \(0, 1\], got 1.1"),
        ({"norm_momentum": math.nan}, r"norm_momentum must be a number in \(0, 1\], got nan"),
        ({"norm_momentum": True}, r"norm_momentum must be a number in \(0, 1\], got True"),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["cascaded_resnet18", "serial_resnet18", "cascaded_densenet"])
def test_wrong_constants(name: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_model(name, **({} if name == "cascaded_densenet" else {"width": 4}), **arguments)


# -- an affine map for each time -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [{}, {"kernel": "ews", "alpha": 0.5, "num_steps": 11}, {"clock": "published"}], ids=str)
def test_every_time_has_its_affine_map(arguments: dict[str, Any]) -> None:
    """The published option: weight and bias `[9, C]` of each norm, also of the stem; later times take the last."""
    model = make(width=4, temporal_affine=True, **arguments)
    norms = [m for m in model.modules() if isinstance(m, StepBatchNorm2d)]
    assert len(norms) == 17
    assert all(n.weight.shape == n.bias.shape == (9, n.num_features) for n in norms)
    assert all(len(n.running_mean) == (1 if "kernel" in arguments else 9) for n in norms)
    x = torch.rand(2, 3, 9, 8, dtype=torch.float64)
    times, first = model.num_steps, model.first
    for training in (True, False):
        model.train(training)
        frames = [x] * (first + times)
        expected = plain_loop(model, frames, training)[first:]
        assert (model(x) - expected).abs().max() < 1e-11
        if not training:
            assert (torch.stack([*model.stream(x)]) - expected).abs().max() < 1e-11
            assert (model(x, step=4) - expected[3]).abs().max() < 1e-11
    moving = torch.rand(12, 2, 3, 9, 8, dtype=torch.float64)
    expected = plain_loop(model, [*moving, *moving[:first]], False)[first:]
    assert (model(moving) - expected).abs().max() < 1e-11
    assert (torch.stack([*model.stream(iter(moving))]) - expected).abs().max() < 1e-11


def plain_loop(model: Any, frames: list[Tensor], training: bool) -> Tensor:
    """Logits at t = 0, 1, ...: every block at every t, and the norm's formula with the row of its time."""
    smoothing = getattr(model.kernel, "alpha", None)

    def norm(layer: StepBatchNorm2d, x: Tensor, t: int) -> Tensor:
        weight, bias = layer.weight[min(t, 8)], layer.bias[min(t, 8)]
        row = min(t, len(layer.running_mean) - 1)
        mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
        mean, var = (mean, var) if training else (layer.running_mean[row], layer.running_var[row])
        weight, bias, mean, var = (v[:, None, None] for v in (weight, bias, mean, var))
        return weight * (x - mean) / (var + layer.eps).sqrt() + bias

    held: dict[int, Tensor] = {}

    def delayed(k: int, sent: Tensor) -> Tensor:
        before = held.get(k, torch.zeros_like(sent))
        held[k] = sent if smoothing is None else smoothing * before + (1 - smoothing) * sent
        return before if smoothing is None else held[k]

    logits = []
    for t, image in enumerate(frames):
        conv, first_norm, _, pool = model.stem
        z = delayed(0, pool(F.relu(norm(first_norm, conv(model.normalize(image)), t))))
        for k, block in enumerate(model.blocks, 1):
            r = z
            for i, (conv, layer) in enumerate(zip(block.convs, block.norms, strict=True)):
                r = norm(layer, conv(F.relu(r) if i else r), t)
            z = F.relu(delayed(k, r) + (z if block.projection is None else block.projection(z)))
        logits.append(model.heads[0](z.mean((2, 3))))
    return torch.stack(logits)


def test_affine_maps_learn() -> None:
    """Of 9 maps only the last of the published clock learns nothing: what it sends comes too late."""
    for clock, silent in (("asymptotic", []), ("published", [8])):
        model = make(width=4, temporal_affine=True, clock=clock).train()
        x = torch.rand(3, 3, 9, 8, dtype=torch.float64)
        (model(x) * torch.randn(9, 3, 5, dtype=torch.float64)).sum().backward()
        for layer in (model.stem[1], model.blocks[0].norms[0], model.blocks[7].norms[1]):
            assert [t for t in range(9) if not layer.bias.grad[t].any()] == silent


def test_affine_maps_are_not_those_of_relatives() -> None:
    model = make(width=4, temporal_affine=True).eval()
    smooth = convert(model, kernel="ews", alpha=0.5)
    assert torch.equal(smooth.stem[1].weight, model.stem[1].weight)
    assert torch.equal(smooth.blocks[0].norms[0].running_mean, model.blocks[0].norms[0].running_mean[-1:])
    for name, arguments in (("serial_resnet18", {}), ("cascaded_resnet18", {"temporal_affine": False})):
        with pytest.raises(ValueError, match="have 9 affine maps in each batch norm, but this network needs 1"):
            convert(model, name, **arguments)
    with pytest.raises(ValueError, match="temporal_affine must be one of True, False, got 2"):
        create_model("cascaded_resnet18", width=4, temporal_affine=2)


def test_contract_with_affine_maps() -> None:
    model = create_model("cascaded_resnet18", num_classes=5, width=4, temporal_affine=True, num_steps=3)
    check_anytime_model(model, (3, 8, 8), batch_size=2)


@pytest.mark.parametrize(("depth", "parameters"), [(101, 44_541_480), (152, 60_185_128)])
def test_bottlenecks_have_the_published_numbers(depth: int, parameters: int) -> None:
    """torchvision's network without the batch norms of its shortcuts (spec 2.1): the same weights, and the same work."""
    resnet = getattr(pytest.importorskip("torchvision").models, f"resnet{depth}")
    name = "anytime.models.cascaded.resnet.CascadedResNet"
    with torch.device("meta"):
        theirs, image = resnet().eval(), torch.empty(1, 3, 64, 64)
        model = create_model(name, 1000, depth=depth, layout="imagenet", kernel="instant").eval()
    shortcuts = sum(p.numel() for n, p in theirs.named_parameters() if "downsample.1" in n)
    assert shortcuts == 2 * (256 + 512 + 1024 + 2048)
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in theirs.parameters()) - shortcuts == parameters
    work: list[int] = []
    for network in (model, theirs) if depth == 101 else ():
        with torch.no_grad(), torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
            network(image)
        work.append(counter.get_total_flops())
    assert len({*work}) < 2
