"""MSDNet: published counts and shapes, lazy evaluation, gradients, and faults of the published code that it does not have."""

from __future__ import annotations

import functools
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anytime.cost import flop_counter, step_macs
from anytime.model import create_model
from anytime.models.msdnet.layers import ScaleLayer
from anytime.models.msdnet.model import MSDNet
from anytime.models.msdnet.plan import exit_layers, finest_scales
from anytime.objectives import SelfDistillation, step_losses
from anytime.testing import check_anytime_model
from anytime.training import GradientRescaling

SMALL: dict[str, Any] = {"exits": 3, "base": 1, "step": 1, "width": 2, "growth": 2, "factors": (1, 2), "head_width": 3}
CONTRACT_ARGUMENTS = {
    "msdnet": {"exits": 3, "base": 1, "step": 1, "width": 2, "growth": 2, "head_width": 2},
    "msdnet_step4": {"exits": 2, "base": 2, "step": 1, "width": 2, "growth": 2, "factors": (1, 2)},
    "msdnet_step6": {"exits": 2, "base": 1, "step": 2, "width": 2, "growth": 2, "factors": (1, 2)},
    "msdnet_step7": {"exits": 2, "base": 1, "step": 1, "width": 2, "growth": 2, "factors": (1,)},
}

EVEN = {"mode": "even", "base": 4, "step": 2}
LINEAR = {"mode": "lin_grow", "base": 1, "step": 1}
GROWING = [6.86, 14.35, 27.29, 48.45]
ANYTIME = [15.14, 25.51, 37.79, 52.06, 62.18, 74.07, 87.73, 100.04, 110.12, 121.68, 134.71]
PUBLISHED: list[
    tuple[str, dict[str, Any], list[float], dict[int, float]]
] = [  # in millions: MACs; parameters up to some exits
    ("msdnet_step4", {}, [339.90, 685.46, 1008.16, 1254.47, 1360.53], {1: 4.24, 2: 8.77, 3: 13.07, 4: 16.75, 5: 23.96}),
    ("msdnet_step7", {}, [615.69, 1436.39, 2283.21, 2967.42, 3253.79], {1: 8.76, 2: 20.15, 3: 31.73, 4: 41.86, 5: 62.31}),
    ("msdnet", {"exits": 7, **EVEN}, [15.14, 25.51, 37.10, 46.33, 57.34, 66.96, 75.94], {1: 0.43, 7: 3.07}),
    ("msdnet", {"exits": 10, **EVEN}, ANYTIME[:10], {10: 4.96}),
    ("msdnet", {}, ANYTIME, {11: 5.60}),
    ("msdnet", {"exits": 5, **LINEAR}, [6.86, 14.35, 27.54, 41.71, 58.48], {}),
    ("msdnet", {"exits": 7, **LINEAR}, [*GROWING, 76.43, 108.85, 137.28], {}),
    ("msdnet", {"exits": 8, **LINEAR}, [*GROWING, 81.57, 112.64, 152.92, 192.69], {}),
]
ROUNDED: list[tuple[str, dict[str, Any], int, list[float]]] = [  # decimals
    ("msdnet_step6", {}, 1, [514.7, 1171.2, 1844.5, 2501.4, 2742.1]),
    ("msdnet_step4", {"head": "linear"}, 0, [313, 632, 933, 1162, 1212]),
]
SHAPES: list[tuple[str, dict[str, Any], dict[int, tuple[int, int]]]] = [  # layer of exit: channels over factor, scales left
    ("msdnet", {"exits": 7, **EVEN}, {4: (40, 3), 6: (52, 3), 8: (35, 2), 10: (47, 2), 12: (59, 2), 14: (38, 1), 16: (50, 1)}),
    (
        "msdnet",
        {},
        {4: (40, 3), 6: (52, 3), 8: (64, 3), 10: (41, 2), 12: (53, 2), 14: (65, 2), 16: (77, 2)}
        | {18: (47, 1), 20: (59, 1), 22: (71, 1), 24: (83, 1)},
    ),
    (
        "msdnet",
        {"exits": 7, **LINEAR},
        {1: (22, 3), 3: (34, 3), 6: (52, 3), 10: (76, 3), 15: (65, 2), 21: (50, 1), 28: (92, 1)},
    ),
    ("msdnet_step4", {}, {4: (96, 4), 8: (96, 3), 12: (88, 2), 16: (76, 1), 20: (140, 1)}),
    ("msdnet_step7", {}, {7: (144, 4), 14: (160, 3), 21: (152, 2), 28: (132, 1), 35: (244, 1)}),
]
DROPS = [(16, 3, [7, 13]), (24, 3, [9, 17]), (28, 3, [11, 21]), (20, 4, [6, 11, 16]), (35, 4, [10, 19, 28])]


@functools.cache
def built(name: str, **arguments: Any) -> MSDNet:
    """The network for 100 classes, or for 1000 if it takes images of 224 pixels; without memory for its numbers."""
    small = name == "msdnet"  # built faster on the CPU
    with torch.device("cpu" if small else "meta"):
        model = create_model(name, 100 if small else 1000, **arguments).to("meta")
    assert isinstance(model, MSDNet)
    return model.eval()


def image(model: MSDNet) -> Tensor:
    side = 32 if model.smallest == 4 else 224
    return torch.zeros(1, 3, side, side, device="meta")


@functools.cache
def published_log(name: str, **arguments: Any) -> tuple[list[tuple[float, float]], dict[int, list[tuple[int, ...]]]]:
    """Operations and parameters at each linear layer in millions, by the published counter, and the shapes of a layer's maps.

    The counter keeps running sums of one pass: multiply-adds of convolutions, outputs of relu, k^2 for each output of a pool,
    weights and biases of linear layers, nothing for batch norm. Max-pooling counts: without it, the ImageNet rows would be
    0.90 M lower.
    """
    model = built(name, **arguments)
    log: list[tuple[float, float]] = []
    shapes: dict[int, list[tuple[int, ...]]] = {}
    operations = parameters = 0

    def count(module: nn.Module, args: tuple[Tensor], out: Tensor) -> None:
        nonlocal operations, parameters
        parameters += sum(p.numel() for p in module.parameters())
        if isinstance(module, nn.Conv2d):
            operations += out.numel() * module.weight[0].numel()
        elif isinstance(module, nn.ReLU):
            operations += out.numel()
        elif isinstance(module, nn.MaxPool2d):
            operations += out.numel() * module.kernel_size**2  # type: ignore[operator]
        elif isinstance(module, nn.AdaptiveAvgPool2d):
            operations += args[0].numel()
        elif isinstance(module, nn.Linear):
            operations += module.weight.numel() + module.bias.numel()
            log.append((operations / 1e6, parameters / 1e6))
        else:
            assert isinstance(module, nn.BatchNorm2d | nn.Flatten | nn.Identity), module

    hooks = [m.register_forward_hook(count) for m in model.modules() if not list(m.children())]  # type: ignore[arg-type]
    for layer, blocks in enumerate(model.layers, 1):
        note = functools.partial(lambda layer, _, __, out: shapes.setdefault(layer, []).append(tuple(out.shape[1:])), layer)
        hooks += [block.register_forward_hook(note) for block in blocks]  # type: ignore[attr-defined]
    with torch.no_grad():
        model(image(model))
    for hook in hooks:
        hook.remove()
    return log, shapes


@pytest.mark.parametrize(("name", "arguments", "macs", "parameters"), PUBLISHED, ids=str)
def test_published_log(name: str, arguments: dict[str, Any], macs: list[float], parameters: dict[int, float]) -> None:
    log, _ = published_log(name, **arguments)
    assert [round(found, 2) for found, _ in log] == macs
    assert {exit: round(log[exit - 1][1], 2) for exit in parameters} == parameters


@pytest.mark.parametrize(("name", "arguments", "decimals", "macs"), ROUNDED, ids=str)
def test_rounded_rows(name: str, arguments: dict[str, Any], decimals: int, macs: list[float]) -> None:
    assert [round(found, decimals) for found, _ in published_log(name, **arguments)[0]] == macs


@pytest.mark.parametrize(("name", "arguments", "shapes"), SHAPES, ids=str)
def test_shapes_at_the_exits(name: str, arguments: dict[str, Any], shapes: dict[int, tuple[int, int]]) -> None:
    _, found = published_log(name, **arguments)
    factors, pixels = ((1, 2, 4), (32, 16, 8)) if name == "msdnet" else ((1, 2, 4, 4), (56, 28, 14, 7))
    assert built(name, **arguments).exits == tuple(shapes)
    for layer, (channels, left) in shapes.items():
        scales = list(zip(factors, pixels, strict=True))[-left:]
        assert found[layer] == [(channels * factor, size, size) for factor, size in reversed(scales)]


def test_scales_drop_inside_the_published_layers() -> None:
    for layers, scales, drops in DROPS:
        finest = finest_scales(layers, scales)
        assert [layer for layer, (before, after) in enumerate(pairwise(finest), 1) if after > before] == drops


def test_exits_of_the_paper_and_of_the_lua_code() -> None:
    assert create_model("msdnet", width=1, growth=2, head_width=1).exits == tuple(range(4, 25, 2))  # type: ignore[union-attr]
    assert exit_layers(5, 7, 4, "even") == tuple(4 * i + 3 for i in range(1, 6))


# Lazy evaluation


def multiplications(model: MSDNet, size: int) -> dict[nn.Module, int]:
    """Multiply-adds of each convolution and linear layer for one image."""
    found: dict[nn.Module, int] = {}

    def count(module: nn.Module, _: Any, out: Tensor) -> None:
        assert module not in found, "a block ran twice"
        found[module] = out[0].numel() * module.weight[0].numel()  # type: ignore[operator,index]

    hooks = [m.register_forward_hook(count) for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    model(torch.rand(1, 3, size, size))
    for hook in hooks:
        hook.remove()
    return found


LAZY: list[dict[str, Any]] = [
    {"exits": 3, "base": 3, "step": 2, "factors": (1, 2, 4)},
    {"exits": 3, **LINEAR, "factors": (2, 1, 2), "growth": 4, "reduction": 0.7},
    {"exits": 2, "base": 1, "step": 1, "factors": (1, 2, 2, 2), "head": "linear", "layout": "imagenet"},
    {"exits": 2, "base": 1, "step": 1, "factors": (2,)},
]


@pytest.mark.parametrize("arguments", LAZY, ids=str)
def test_only_maps_on_which_the_answer_depends_run(arguments: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = MSDNet(5, **{"width": 4, "growth": 2, "head_width": 3, **arguments}).eval()
    cost, x = multiplications(model, 32), torch.rand(1, 3, 32, 32)
    stream, single = step_macs(model, 32), step_macs(model, 32, contract=True)
    weights = {module: module.weight for module in cost}
    streamed: set[nn.Module] = set()
    for t, (head, h) in enumerate(zip(model.heads, model.trunk_features(x), strict=True)):  # layer by layer
        found = torch.autograd.grad(head(h).sum(), list(weights.values()), retain_graph=True, allow_unused=True)
        needed = {module for module, gradient in zip(weights, found, strict=True) if gradient is not None}
        streamed |= needed
        assert single[t] == sum(cost[module] for module in needed)
        assert stream[t] == sum(cost[module] for module in streamed)
    assert streamed == set(cost)


def test_stream_costs_what_one_full_pass_costs() -> None:
    model = MSDNet(**SMALL | {"factors": (1, 2, 2)}).eval()
    x = torch.zeros(64, 3, 16, 16)
    with torch.no_grad(), flop_counter() as streamed:
        list(model.stream(x))
    with torch.no_grad(), flop_counter() as whole:
        model(x)
    assert streamed.get_total_flops() == whole.get_total_flops() == 2 * 64 * step_macs(model, 16)[-1]


def test_state_holds_one_map_for_each_scale_that_is_still_read() -> None:
    model = built("msdnet", exits=7, **EVEN)
    state, kept = model.initial_state(image(model)), []
    for _ in range(7):
        state = model.step(state)[1]
        kept.append([h.shape[-1] for h in state.maps])
    assert kept == [[32, 16, 8], [32, 16, 8], [16, 8], [16, 8], [16, 8], [8], [8]]
    with pytest.raises(ValueError, match="all 7 steps are done"):
        model.step(state)
    with pytest.raises(ValueError, match="no answer before the first step"):
        model.read(model.initial_state(image(model)))


# Training


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    names, parameters = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    return {n: torch.zeros_like(p) if g is None else g for n, p, g in zip(names, parameters, found, strict=True)}


def test_gradient_equilibrium_at_every_scale() -> None:
    """The published code of gradient equilibrium leaves the gradients of the finer maps in the state as they are."""
    torch.manual_seed(0)
    model = MSDNet(5, exits=4, base=2, step=1, width=4, growth=2, head_width=3).double()
    x, y = torch.rand(6, 3, 16, 16, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 4, 0])
    each = [gradients(model, loss) for loss in step_losses(model(x), y)]
    found = gradients(model, step_losses(GradientRescaling().forward(model)(x), y).sum())
    scales = set()
    for name, gradient in found.items():
        terms = torch.stack([g[name] for g in each])
        first = next(t for t in range(4) if terms[t].any())
        expected = terms.sum(0) if name.startswith("heads") else terms[first:].mean(0)
        assert torch.allclose(gradient, expected, atol=1e-14, rtol=1e-9), name
        part = name.split(".")
        scales |= {(first, int(part[2]) - len(model.layers[int(part[1])]))} if part[0] == "layers" else set()  # type: ignore[arg-type]
    assert {-1, -2, -3} == {scale for first, scale in scales if first < 3}


def test_information_sharing() -> None:
    """One-for-all distillation: the last head gets no gradient from the answers that it teaches."""
    torch.manual_seed(0)
    model = MSDNet(5, **SMALL).double()
    x, y = torch.rand(4, 3, 8, 8, dtype=torch.float64), torch.tensor([0, 1, 2, 3])
    answers = GradientRescaling().forward(model)(x)
    found = gradients(model, SelfDistillation(0.5, weights="constant")(answers, y))
    assert all(gradient.any() for gradient in found.values())
    own = gradients(model, step_losses(answers, y)[-1])
    for name in found:
        if name.startswith("heads.2."):
            assert torch.allclose(found[name], own[name], atol=1e-14)


# What the published code does otherwise


def test_initialisation_reaches_every_convolution() -> None:
    torch.manual_seed(0)
    for module in create_model("msdnet", exits=3).modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 2000:
            wanted = (2 / (module.out_channels * module.kernel_size[0] ** 2)) ** 0.5
            assert module.weight.std().item() == pytest.approx(wanted, rel=0.1)
        elif isinstance(module, nn.Linear):
            assert not module.bias.any()


def test_no_bias_before_batch_norm() -> None:
    for model in (built("msdnet"), built("msdnet_step4")):
        assert all(m.bias is None for m in model.modules() if isinstance(m, nn.Conv2d))


def test_published_counts_include_maps_that_the_exit_does_not_need() -> None:
    own = step_macs(built("msdnet", exits=5, **LINEAR), 32)
    log = [1e6 * macs for macs, _ in published_log("msdnet", exits=5, **LINEAR)[0]]
    assert [round(a / b, 2) for a, b in zip(own, log, strict=True)] == [0.86, 0.88, 0.89, 0.96, 0.99]


def test_maps_that_no_exit_needs_do_not_exist() -> None:
    model = MSDNet(exits=2, base=2, step=2, width=2, growth=2, factors=(1, 2, 4), head_width=2)
    check_anytime_model(model, (3, 8, 8), batch_size=2)  # among others, every parameter has a gradient
    assert [len(blocks) for blocks in model.layers] == [3, 3, 2, 1]  # type: ignore[arg-type]
    assert isinstance(model.layers[3][0], ScaleLayer)  # type: ignore[index]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"exits": 2.5}, "exits must be a whole number, got 2.5"),
        ({"exits": None}, "exits must be a whole number, got None"),
        ({"growth": None}, "growth must be a whole number, got None"),
        ({"exits": "3"}, "exits must be a whole number, got '3'"),
        ({"base": 1.0}, "base must be a whole number, got 1.0"),
        ({"step": True}, "step must be a whole number, got True"),
        ({"width": True}, "width must be a whole number, got True"),
        ({"growth": "6"}, "growth must be a whole number, got '6'"),
        ({"head_width": 8.0}, "head_width must be a whole number, got 8.0"),
        ({"factors": (1, 2.5)}, "factors must be a whole number, got 2.5"),
        ({"factors": 2}, "factors must be a whole number for each scale, got 2"),
        ({"factors": "124"}, "factors must be a whole number for each scale, got '124'"),
        ({"reduction": "half"}, "reduction must be a number, got 'half'"),
        ({"exits": 0}, "exits must be at least 1, got 0"),
        ({"base": 0}, "every exit needs a layer of its own: base and step must be at least 1, got 0 and 2"),
        ({"step": 0}, "every exit needs a layer of its own: base and step must be at least 1, got 4 and 0"),
        ({"growth": 0}, "growth must be at least 1, got 0"),
        ({"width": 0}, "width must be at least 1, got 0"),
        ({"head_width": 0}, "head_width must be at least 1, got 0"),
        ({"factors": ()}, r"factors must be at least 1 for every scale, got \(\)"),
        ({"factors": (1, 0)}, r"factors must be at least 1 for every scale, got \(1, 0\)"),
        ({"growth": 3, "factors": (1, 2, 3)}, "growth times factor must be even .*, got growth=3 and a factor of 3"),
        ({"reduction": 0.01}, "without a map: it must be at least 1 / 70, one of the 70 channels there, got 0.01"),
        ({"reduction": 1.5}, r"reduction must lie in \(0, 1\], got 1.5"),
        ({"mode": "odd"}, "mode must be 'even' or 'lin_grow', got 'odd'"),
        ({"head": "mlp"}, "head must be 'conv' or 'linear', got 'mlp'"),
        ({"layout": "svhn"}, "layout must be 'cifar' or 'imagenet', got 'svhn'"),
        ({"exits": 10**9}, "layers at all scales must add up to at most 10,000, got 6,000,000,006"),
        ({"exits": 10**6, **LINEAR}, "layers at all scales must add up to at most 10,000, got 1,500,001,500,000"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MSDNet(**arguments)


def test_images_too_small_for_the_scales() -> None:
    with pytest.raises(ValueError, match="images must be at least 4x4 pixels, got 3x8"):
        MSDNet(**{**SMALL, "factors": (1, 2, 2)})(torch.rand(1, 3, 3, 8))
    with pytest.raises(ValueError, match="images must be at least 8x8 pixels, got 8x7"):
        MSDNet(**SMALL, layout="imagenet")(torch.rand(1, 3, 8, 7))
