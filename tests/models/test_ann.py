"""ANN against the costs and sizes of its paper, a network written out by hand, and counters of what runs."""

from __future__ import annotations

from collections import Counter
from itertools import accumulate
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from anytime.cost import step_macs
from anytime.models.ann.chain import AnytimeChain, ExitHeads
from anytime.models.ann.cifar import ANN, ann
from anytime.objectives import AANN, Weighted
from anytime.testing import check_anytime_model

CONTRACT_ARGUMENTS = {
    "ann": {"units": 2, "width": 3, "period": 2},
}

VARIANTS = [{}, {"transition": "unit"}, {"transition": "unit", "first_relu": True}, {"first_relu": True}]
# n, c: million MACs of only the last answer (9, 128: billion), million weights of convolutions; the published code's variant
PUBLISHED = {
    (5, 16): ("68.9", "0.46"), (9, 16): ("125.5", "0.85"), (9, 32): ("501", "3.4"), (13, 32): ("728", "4.9"),
    (17, 32): ("954", "6.5"), (25, 32): ("1407", "9.6"), (9, 128): ("8.0", "54"),
}  # fmt: skip


def on_meta(**arguments: Any) -> ANN:
    """Builds the model without numbers, so that costs of large networks take no time."""
    with torch.device("meta"):
        return ann(**arguments)


def in_double(seed: int = 0, **arguments: Any) -> ANN:
    """Builds the model in float64 and eval mode, with batch-norm statistics as after training."""
    torch.manual_seed(seed)
    model = ann(**arguments).double().eval()
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if "running" in name or "norm" in name:
                value += torch.rand(value.shape) if value.is_floating_point() else 0
    return model


def images(*size: int, seed: int = 0) -> Tensor:
    return torch.rand(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def unit_macs(n: int, c: int, transition: str) -> list[int]:
    """MACs of each unit of three stages at 32x32, including the stem or the layer between stages that precedes it."""
    full, stem = 18 * c * c * 1024, 27 * c * 1024
    between = full + 9 * c * 2 * c * 256 if transition == "conv" else full * 3 // 4  # equal in both: c and pixels change
    costs = [between if stage and not unit else full for stage in range(3) for unit in range(n)]
    return [stem + costs[0], *costs[1:]]


def widths(n: int, c: int) -> list[int]:
    return [c * 2**stage for stage in range(3) for _ in range(n)]


def contract_costs(n: int, c: int, transition: str = "unit", classes: int = 100) -> list[int]:
    """Cost of the stem and the units up to each exit, and of its head."""
    return [cost + classes * w for cost, w in zip(accumulate(unit_macs(n, c, transition)), widths(n, c), strict=True)]


def parameters(n: int, c: int, transition: str = "unit", classes: int = 100) -> Counter[str]:
    after = widths(n, c)
    before = after if transition == "conv" else [c, *after[:-1]]
    convs = 27 * c + sum(9 * o * (i + o) for i, o in zip(before, after, strict=True))
    if transition == "conv":
        convs += 9 * c * 2 * c + 9 * 2 * c * 4 * c
    norms = sum(2 * (i + 2 * o) for i, o in zip(before, after, strict=True))
    return Counter(conv=convs, norm=norms, head=sum(classes * (o + 1) for o in after))


@pytest.mark.parametrize("transition", ["conv", "unit"])
@pytest.mark.parametrize(("n", "c", "classes"), [(1, 3, 10), (5, 16, 100)])
def test_costs_and_sizes(n: int, c: int, classes: int, transition: Any) -> None:
    model = on_meta(num_classes=classes, units=n, width=c, transition=transition)
    heads = [classes * w for w in widths(n, c)]
    expected = contract_costs(n, c, transition, classes)
    assert step_macs(model, (3, 32, 32)) == [cost + sum(heads[:t]) for t, cost in enumerate(expected)]
    if n == 1:
        assert step_macs(model, (3, 32, 32), contract=True) == expected
    counts = Counter[str]()
    for name, p in model.named_parameters():
        counts["conv" if p.ndim == 4 else "head" if name.startswith("heads") else "norm"] += p.numel()
    assert counts == parameters(n, c, transition, classes)
    assert sum(isinstance(m, nn.Conv2d) for m in model.modules()) == 6 * n + (3 if transition == "conv" else 1)


@pytest.mark.parametrize(("n", "c"), PUBLISHED)
def test_published_costs_and_sizes(n: int, c: int) -> None:
    macs, weights = PUBLISHED[n, c]
    scale = 1e9 if c == 128 else 1e6
    assert f"{contract_costs(n, c)[-1] / scale:.{len(macs.partition('.')[2])}f}" == macs
    assert f"{parameters(n, c)['conv'] / 1e6:.{len(weights.partition('.')[2])}f}" == weights
    assert 1.01 < contract_costs(n, c, "conv")[-1] / contract_costs(n, c)[-1] < 1.07


MILESTONES = [  # n, s: units of the last exits within 1/4, 1/2 and 3/4 of the cost
    (5, 1, (3, 7, 11)), (9, 1, (6, 13, 20)), (13, 1, (9, 19, 29)), (17, 1, (12, 25, 38)), (25, 1, (18, 37, 56)),
    (25, 3, (18, 36, 54)),
]  # fmt: skip


def chain(depth: int, period: int) -> AnytimeChain:
    return AnytimeChain(2, 1, nn.Identity, [nn.Identity()] * depth, [1] * depth, period)


@pytest.mark.parametrize(("n", "s", "units"), MILESTONES)
@pytest.mark.parametrize("transition", ["conv", "unit"])
def test_milestones(n: int, s: int, units: tuple[int, ...], transition: str) -> None:
    exits = chain(3 * n, s).exits
    for c in (16, 32, 64, 128):
        costs = contract_costs(n, c, transition)
        within = [[unit for unit in exits if costs[unit - 1] <= share * costs[-1]] for share in (0.25, 0.5, 0.75)]
        assert tuple(map(max, within)) == units


@pytest.mark.parametrize(
    ("transition", "expected"), [("unit", [0.018, 0.077, 0.219, 0.485, 1]), ("conv", [0.024, 0.087, 0.231, 0.496, 1])]
)
def test_costs_of_a_sequence_of_networks(transition: str, expected: list[float]) -> None:
    costs = list(accumulate(contract_costs(n, 32, transition)[-1] for n in (1, 3, 7, 13, 25)))
    assert [cost / costs[-1] for cost in costs] == pytest.approx(expected, abs=6e-4)


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 40), st.data())
def test_exits_count_from_the_last_unit(depth: int, data: Any) -> None:
    s = data.draw(st.integers(1, depth))
    exits = chain(depth, s).exits
    assert list(exits) == sorted(depth - s * j for j in range(depth) if depth - s * j >= 1)
    assert exits[-1] == depth


def by_hand(model: ANN, x: Tensor, transition: str, first_relu: bool) -> Tensor:
    """The network of the paper or of the code, with an exit after every unit, each with its own head."""

    def norm(h: Tensor, module: nn.Module) -> Tensor:
        p = {name: value[:, None, None] for name, value in module.state_dict().items() if value.ndim}
        return p["weight"] * (h - p["running_mean"]) / (p["running_var"] + 1e-5).sqrt() + p["bias"]

    def unit(h: Tensor, u: Any) -> Tensor:
        out = norm(h, u.norm1).relu() if first_relu else norm(h, u.norm1)
        stride = u.conv1.weight.shape[0] // u.conv1.weight.shape[1]
        out = norm(F.conv2d(out, u.conv1.weight, stride=stride, padding=1), u.norm2).relu()
        out = norm(F.conv2d(out, u.conv2.weight, padding=1), u.norm3)
        if stride == 2:
            c = h.shape[1]
            h = F.pad(F.avg_pool2d(h, 2), (0, 0, 0, 0, c // 2, c - c // 2))  # zeros in front and behind
        return h + out

    h = F.conv2d((x - model.mean[:, None, None]) / model.std[:, None, None], model.stem.weight, padding=1)
    answers, n = [], len(model.units) // 3
    for i, u in enumerate(model.units):
        if transition == "conv" and i and i % n == 0:
            h = F.conv2d(h, u[0].weight, stride=2, padding=1)
            u = u[1]
        h = unit(h, u)
        heads: Any = model.heads[i // n]
        answers.append(F.linear(h.relu().mean((2, 3)), heads.weight[i % n], heads.bias.view(n, -1)[i % n]))
    return torch.stack(answers)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("width", [3, 4])
def test_equals_the_network_by_hand(variant: dict[str, Any], width: int) -> None:
    model = in_double(num_classes=5, units=2, width=width, **variant)
    model.set_normalization([0.4, 0.5, 0.6], [0.2, 0.3, 0.4])
    x = images(2, 3, 16, 12)
    with torch.no_grad():
        expected = by_hand(model, x, variant.get("transition", "conv"), variant.get("first_relu", False))
        torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-10)


def test_fused_heads_are_separate_heads() -> None:
    torch.manual_seed(0)
    heads = ExitHeads(3, 7, 5).double()
    separate = [nn.Linear(7, 5).double() for _ in range(3)]
    with torch.no_grad():
        heads.weight.copy_(torch.stack([head.weight for head in separate]))
        heads.bias.copy_(torch.cat([head.bias for head in separate]))
    z = torch.randn(3, 4, 7, dtype=torch.float64)
    expected = torch.stack([head(row) for head, row in zip(separate, z, strict=True)])
    torch.testing.assert_close(heads(z), expected, rtol=0, atol=1e-14)
    for i in range(3):
        torch.testing.assert_close(heads(z[i], i), expected[i], rtol=0, atol=1e-14)
    (heads(z).square().sum() + expected.square().sum()).backward()
    for i, head in enumerate(separate):
        assert head.weight.grad is not None
        torch.testing.assert_close(heads.weight.grad[i], head.weight.grad, rtol=0, atol=1e-12)
    assert heads.bias.ndim == 1, "biases of one dimension are spared weight decay"


@settings(deadline=None, max_examples=15)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(4, 9), st.sampled_from(VARIANTS), st.data())
def test_any_network_streams_what_it_forwards(n: int, c: int, size: int, variant: dict[str, Any], data: Any) -> None:
    s = data.draw(st.integers(1, 3 * n))
    model = in_double(num_classes=3, units=n, width=c, period=s, **variant)
    x = images(2, 3, size, 13 - size)
    with torch.no_grad():
        logits = model(x)
        assert logits.shape == ((3 * n - 1) // s + 1, 2, 3)
        torch.testing.assert_close(torch.stack(list(model.stream(x))), logits, rtol=0, atol=1e-10)
        for t in range(model.num_steps):
            torch.testing.assert_close(model(x, step=t + 1), logits[t], rtol=0, atol=1e-10)


def runs(model: ANN) -> Counter[str]:
    """Counts the runs of the stem, units and heads from now on."""
    counts = Counter[str]()
    for kind, modules in {"units": model.units, "heads": model.heads, "stem": [model.stem]}.items():
        for module in modules:  # type: ignore[union-attr]
            module.register_forward_hook(lambda *_, kind=kind: counts.update([kind]))
    return counts


def test_each_unit_runs_once_and_heads_only_when_read() -> None:
    model = in_double(num_classes=4, units=3, width=2, period=2)
    assert model.exits == (1, 3, 5, 7, 9)
    x = images(2, 3, 8, 8)
    counts, expected = runs(model), model(x)
    assert counts == {"stem": 1, "units": 9, "heads": 3}, "one product for the heads of each stage"
    for t, _ in enumerate(model.stream(x)):
        assert counts == {"stem": 2, "units": 9 + model.exits[t], "heads": 4 + t}
    counts.clear()
    assert torch.equal(model(x, step=3), model.answer(x, 3))
    assert counts == {"stem": 2, "units": 10, "heads": 2}
    counts.clear()
    state = model.initial_state(x)
    for t in range(3):
        state = model.advance(state)
        assert counts == {"stem": 1, "units": model.exits[t]}
    torch.testing.assert_close(model.read(state), expected[2], rtol=0, atol=1e-12)
    assert counts["heads"] == 1


def test_lazy_exits_have_an_order() -> None:
    model = ann(units=1, width=2).eval()
    state = model.initial_state(torch.rand(1, 3, 4, 4))
    with pytest.raises(ValueError, match="no answer before the first step: advance first"):
        model.read(state)
    for _ in range(3):
        _, state = model.step(state)
    with pytest.raises(ValueError, match="all 3 steps are done"):
        model.advance(state)


def reached(model: ANN, exit: int) -> set[str]:
    """The parts that get a gradient from one exit, such as `units.3` or `heads.1`."""
    model.zero_grad()
    model(images(4, 3, 8, 8))[exit].square().sum().backward()
    return {".".join(name.split(".")[:2]) for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}


def test_gradient_flow() -> None:
    regimes: tuple[Any, ...] = ("joint", "no_grad", "midfeat")
    joint, no_grad, midfeat = (in_double(num_classes=3, units=2, width=2, period=2, regime=regime) for regime in regimes)
    x = images(2, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(joint(x), no_grad(x))
        assert torch.equal(joint(x), midfeat(x)), "regimes share parameters and answers"
    midfeat.load_state_dict(joint.state_dict())
    assert reached(joint.train(), 1) == {"stem.weight", *(f"units.{i}" for i in range(4)), "heads.1"}
    assert reached(no_grad.train(), 0) == {"stem.weight", "units.0", "units.1", "heads.0"}
    assert reached(no_grad, 1) == {"units.2", "units.3", "heads.1"}
    assert reached(no_grad, 2) == {"units.4", "units.5", "heads.2"}
    for exit in range(3):
        assert reached(midfeat.train(), exit) == {f"heads.{exit}"}


def test_no_grad_also_stops_the_stream() -> None:
    model = in_double(num_classes=3, units=1, width=2, regime="no_grad")
    *_, last = model.stream(images(2, 3, 8, 8))
    last.square().sum().backward()
    assert {n.split(".")[1] for n, p in model.named_parameters() if n.startswith("units") and p.grad is not None} == {"2"}


def test_midfeat_changes_only_heads() -> None:
    torch.manual_seed(0)
    model = ann(3, units=1, width=2, regime="midfeat")
    assert not model.units.training
    model.eval().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        Weighted("constant")(model(torch.rand(4, 3, 8, 8)), torch.arange(4) % 3).backward()
        optimizer.step()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {f"heads.{stage}.{name}" for stage in range(3) for name in ("weight", "bias")}
    assert model.heads.training
    assert not any(module.training for part in (model.stem, model.units) for module in part.modules())


def test_it_learns() -> None:
    torch.manual_seed(0)
    model = ann(2, in_channels=1, units=1, width=4)
    target = torch.arange(16) % 2
    x = 0.1 * torch.rand(16, 1, 8, 8) + 0.5 * target[:, None, None, None]
    objective, optimizer = AANN(normalize="last"), torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    for _ in range(30):
        optimizer.zero_grad()
        objective(model(x), target).backward()
        optimizer.step()
    assert (model(x).argmax(2) == target).all()


@pytest.mark.parametrize("variant", [*VARIANTS, {"regime": "no_grad"}, {"regime": "midfeat"}], ids=str)
def test_contract(variant: dict[str, Any]) -> None:
    check_anytime_model(ann(5, units=2, width=3, period=2, **variant), (3, 8, 9))


def test_several_label_levels_and_grey_images() -> None:
    model = ann((4, 2), in_channels=1, units=1, width=2)
    assert model(torch.rand(2, 1, 4, 4)).shape == (3, 2, 6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"units": 0}, "units must be at least 1 per stage, got 0"),
        ({"width": 0}, "width must be at least 1, got 0"),
        ({"period": 0}, r"period must lie in 1\.\.27, the number of units, got 0"),
        ({"units": 2, "period": 7}, r"period must lie in 1\.\.6, the number of units, got 7"),
        ({"transition": "pool"}, "transition must be 'conv' or 'unit', got 'pool'"),
        ({"regime": "greedy"}, "regime must be 'joint', 'no_grad' or 'midfeat', got 'greedy'"),
        ({"num_classes": 0}, "num_classes must be at least 1, got 0"),
        ({"in_channels": 0}, "in_channels must be at least 1, got 0"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ann(**arguments)


def test_too_small_images() -> None:
    with pytest.raises(ValueError, match="images must be at least 4x4 pixels, got 4x3"):
        ann(units=1, width=2)(torch.rand(1, 3, 4, 3))
