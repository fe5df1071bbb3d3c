"""EANN against the costs and sources of its paper, a plain loop over its members, and counters of the heads that run."""

from __future__ import annotations

import dataclasses
import math
import shutil
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import anytime
from anytime.cost import step_macs
from anytime.model import create_model
from anytime.models.ann.chain import ExitHeads
from anytime.models.ann.eann import EANN, PAPER, eann, reported_exits
from anytime.pretrained import chain_networks
from anytime.reporting.evaluation import trained_on
from anytime.saving import ModelInfo
from anytime.testing import check_anytime_model

CONTRACT_ARGUMENTS = {
    "eann": {
        "members": (
            {"model": "ann", "arguments": {"units": 1, "width": 2, "period": 1}},
            {"model": "ann", "arguments": {"units": 2, "width": 2, "period": 2}},
        )
    },
}

PAPER_N = (1, 3, 7, 13, 25)


def configs(*members: dict[str, Any]) -> tuple[dict[str, Any], ...]:
    return tuple({"model": "ann", "arguments": arguments} for arguments in members)


SMALL = configs(
    {"units": 1, "width": 2}, {"units": 2, "width": 3, "transition": "unit"}, {"units": 3, "width": 3, "period": 2}
)
EXITS = [(1, 2, 3), (1, 2, 3, 4, 5, 6), (1, 3, 5, 7, 9)]  # units of SMALL
ERRORS = ((0.5, 0.6, 0.4), (0.9, 0.8, 0.3, 0.7, 0.2, 0.2), (0.9, 0.8, 0.25, 0.1, 0.15))


def images(*size: int, seed: int = 0) -> Tensor:
    return torch.rand(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def trained(model: Any, seed: int = 0) -> Any:
    """Puts a model into float64 and eval mode, with normalisation and batch-norm statistics as after training."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.double().state_dict().items():
            if "running" in name or "norm" in name or name.endswith("std"):
                value += torch.rand(value.shape, generator=generator) if value.is_floating_point() else 0
    return model.eval()


def member_costs(n: int, c: int, transition: str, period: int = 1) -> list[int]:
    """Cumulative cost of the units up to each exit at 32x32, without heads."""
    full = 18 * c * c * 1024
    between = full + 9 * c * 2 * c * 256 if transition == "conv" else full * 3 // 4
    units = [between if stage and not unit else full for stage in range(3) for unit in range(n)]
    return list(accumulate(units, initial=27 * c * 1024))[1:][(3 * n - 1) % period :: period]


def sequence(transition: str, c: int = 1) -> EANN:
    members = [{"units": n, "width": c, "period": 3 if n == 25 else 1, "transition": transition} for n in PAPER_N]
    return EANN(members=configs(*members))


def places(exits: list[Any]) -> list[tuple[int, int]]:
    return [(member, exit) for member, depths in enumerate(exits) for exit in range(len(depths))]


def stream_costs(model: EANN, c: int, transition: str) -> list[int]:
    """Costs of the paper's sequence: each unit once, and the head of each answer that is new."""
    costs, before = [], 0
    for member, n in enumerate(PAPER_N):
        exits = model.members[member].exits
        for exit, (spent, unit) in enumerate(zip(member_costs(n, c, transition, 3 if n == 25 else 1), exits, strict=True)):  # type: ignore[arg-type]
            own = model.sources[len(costs)] == (member, exit)
            before += own * 10 * c * 2 ** ((unit - 1) // n)
            costs.append(before + spent)
        before = costs[-1]
    return costs


@pytest.mark.parametrize("transition", ["conv", "unit"])
def test_milestones_of_the_paper(transition: str) -> None:
    model = sequence(transition)
    assert model.num_steps == 3 + 9 + 21 + 39 + 25
    for c in (4, 16, 32, 128):
        costs = stream_costs(model, c, transition)
        within = [max(t for t, cost in enumerate(costs) if cost <= m * costs[-1]) for m in (0.25, 0.5, 0.75, 1)]
        sources = [model.sources[t] for t in within]
        assert [PAPER_N[member] for member, _ in sources] == [7, 13, 13, 25]
        assert [model.members[member].exits[exit] for member, exit in sources] == [21, 39, 39, 75]  # type: ignore[index]


@pytest.mark.parametrize(
    ("transition", "fractions"), [("unit", [0.018, 0.077, 0.219, 0.485, 1]), ("conv", [0.024, 0.087, 0.231, 0.496, 1])]
)
def test_costs_of_the_paper(transition: str, fractions: list[float]) -> None:
    costs = stream_costs(sequence(transition), 32, transition)
    ends = [t - 1 for t in accumulate([3, 9, 21, 39, 25])]
    assert [costs[t] / costs[-1] for t in ends] == pytest.approx(fractions, abs=6e-4)
    assert sum(3 * n for n in PAPER_N) / 75 == 1.96
    if transition == "unit":
        assert round(costs[-1] / member_costs(25, 32, transition)[-1], 2) == 1.94


def test_depth_in_macs_gives_the_same_rule_unless_widening_units_are_cheaper() -> None:
    units = [range(1, 3 * n + 1) for n in PAPER_N]
    for transition, same in (("conv", True), ("unit", False)):
        macs = [[cost + 320 * 2 ** (i // n) for i, cost in enumerate(member_costs(n, 32, transition))] for n in PAPER_N]
        assert (reported_exits(macs) == reported_exits(units)) is same


def test_every_unit_runs_once_and_unchanged_answers_cost_no_head() -> None:
    """The cost is exactly that of the members' own streams without the heads of exits that are not reported."""
    model = create_model("eann", 5, members=SMALL)
    assert isinstance(model, EANN)
    expected, before = [], 0
    for m, member in enumerate(model.members):
        saved = 0
        for exit, cost in enumerate(step_macs(member, (3, 16, 16))):  # type: ignore[arg-type]
            width = SMALL[m]["arguments"]["width"] * 2 ** ((EXITS[m][exit] - 1) // SMALL[m]["arguments"]["units"])
            saved += 0 if model.sources[len(expected)] == (m, exit) else 5 * width
            expected.append(before + cost - saved)
        before = expected[-1]
    assert step_macs(model, (3, 16, 16)) == expected
    contract_costs = [step_macs(member, (3, 16, 16), contract=True) for member in model.members]  # type: ignore[arg-type]
    assert step_macs(model, (3, 16, 16), contract=True) == [contract_costs[m][exit] for m, exit in model.sources]


@pytest.mark.parametrize(("rule", "errors"), [("depth", None), ("validation", ERRORS)])
def test_heads_run_only_for_reported_answers(rule: str, errors: Any) -> None:
    model = create_model("eann", members=SMALL, rule=rule, validation_errors=errors).eval()
    assert isinstance(model, EANN)
    heads = 0

    def count(*_: Any) -> None:
        nonlocal heads
        heads += 1

    for module in model.modules():
        if isinstance(module, ExitHeads):
            module.register_forward_hook(count)
    reported = [source == own for source, own in zip(model.sources, places(EXITS), strict=True)]
    for t, _ in enumerate(model.stream(torch.rand(1, 3, 8, 8)), 1):
        assert heads == sum(reported[:t])
    assert heads == len(set(model.sources)) == (8 if rule == "depth" else 5)


def test_depth_rule_by_hand() -> None:
    first, second = [(0, 2)] * 3, [(1, 5)] * 3  # the last answers of the first and second network, still reported
    expected = [(0, 0), (0, 1), (0, 2), *first, (1, 3), (1, 4), (1, 5), *second, (2, 3), (2, 4)]
    assert create_model("eann", members=SMALL).sources == tuple(expected)
    errors = [(0, 0), (0, 0), (0, 2), (0, 2), (0, 2), (1, 2), (1, 2), (1, 4), (1, 4), *[(1, 4)] * 3, (2, 3), (2, 3)]
    assert create_model("eann", members=SMALL, rule="validation", validation_errors=ERRORS).sources == tuple(errors)


DEPTHS = st.lists(st.lists(st.integers(1, 60), min_size=1, max_size=8, unique=True).map(sorted), min_size=1, max_size=5)


@given(DEPTHS.map(lambda rows: sorted(rows, key=lambda row: row[-1])))
def test_by_depth_an_exit_reports_its_own_answer_or_the_previous_networks_last(exits: list[list[int]]) -> None:
    for (member, exit), source in zip(places(exits), reported_exits(exits), strict=True):
        own = member == 0 or exits[member][exit] > exits[member - 1][-1]
        before = [m for m in range(member) if m == 0 or exits[m][-1] > exits[m - 1][-1]]
        assert source == ((member, exit) if own else (before[-1], len(exits[before[-1]]) - 1))


@given(st.lists(st.lists(st.integers(0, 20), min_size=1, max_size=8), min_size=1, max_size=5))
def test_by_validation_error_the_answer_is_the_best_so_far(errors: list[list[int]]) -> None:
    sources = reported_exits([range(1, len(row) + 1) for row in errors], errors)
    flat = [error for row in errors for error in row]
    reported = [errors[member][exit] for member, exit in sources]
    assert reported == list(accumulate(flat, min))
    assert [places(errors).index(source) for source in sources] == [flat.index(error) for error in reported], "the earlier"


@settings(deadline=None, max_examples=8)
@given(st.integers(0, 99), st.sampled_from(["depth", "validation"]))
def test_equals_a_plain_loop_over_the_members(seed: int, rule: Any) -> None:
    torch.manual_seed(seed)
    model = EANN(4, 3, SMALL, rule, ERRORS if rule == "validation" else None).double().eval()
    members = [trained(member, seed + i) for i, member in enumerate(model.members)]
    x, expected, best = images(2, 3, 9, 8, seed=seed), [], math.inf
    with torch.no_grad():
        finished: Any = None
        for member, exits, errors in zip(members, EXITS, ERRORS, strict=True):
            passed = 0 if finished is None else finished[0]
            answers = member(x)
            for depth, error, answer in zip(exits, errors, answers, strict=True):
                if rule == "depth":
                    expected.append(answer if depth > passed else finished[1])
                else:
                    expected.append(answer if error < best else expected[-1])
                    best = min(best, error)
            finished = depth, answer
        torch.testing.assert_close(model(x), torch.stack(expected), rtol=0, atol=1e-12)
        torch.testing.assert_close(torch.stack(list(model.stream(x))), torch.stack(expected), rtol=0, atol=1e-12)
        state = model.initial_state(x)
        for answer in expected:  # lazy exits: a head runs only when its answer is read
            state = model.advance(state)
            assert state.answer is None
            torch.testing.assert_close(model.read(state), answer, rtol=0, atol=1e-12)
        for t in range(1, model.num_steps + 1, 4):
            torch.testing.assert_close(model(x, step=t), expected[t - 1], rtol=0, atol=1e-12)


def test_parameters_that_no_answer_needs_are_frozen() -> None:
    model = create_model("eann", members=SMALL)
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {f"members.{m}.heads.{g}.{kind}" for m, g in ((1, 0), (2, 0), (2, 1)) for kind in ("weight", "bias")}
    last = ((0.5,) * 3, (0.6,) * 6, (0.6,) * 5)
    model = create_model("eann", members=SMALL, rule="validation", validation_errors=last)
    live = {name.split(".")[1] for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert live == {"0"}
    assert not any(p.requires_grad for p in model.members[0].units[1:].parameters())  # type: ignore[index]


TINY = configs({"units": 1, "width": 2}, {"units": 2, "width": 2, "period": 2})
TINY_ERRORS = ((0.5, 0.3, 0.4), (0.2, 0.6, 0.1))
CONTRACT = [
    {"members": TINY, "rule": "validation", "validation_errors": TINY_ERRORS},
    {"members": tuple(m | {"arguments": m["arguments"] | {"regime": "no_grad"}} for m in TINY)},
    {"members": (*configs({"units": 1, "width": 1}), {"model": "ann_resnet50", "arguments": {"width": 2, "period": 7}})},
]


@pytest.mark.parametrize("arguments", CONTRACT, ids=["validation", "no_grad", "two families"])
def test_contract(arguments: dict[str, Any]) -> None:
    torch.manual_seed(0)  # with some seeds a channel's ReLUs are all dead, so its parameters get no gradient
    check_anytime_model(create_model("eann", 3, **arguments), (3, 8, 8), batch_size=2)


def test_several_label_levels() -> None:
    model = create_model("eann", (3, 2), members=TINY)  # type: ignore[arg-type]
    assert model.levels == (3, 2)
    assert model(torch.rand(2, 3, 8, 8)).shape == (6, 2, 5)


def test_the_default_is_that_of_the_paper() -> None:
    assert [member["arguments"]["units"] for member in PAPER] == [1, 3, 7, 13, 25]
    assert {member["arguments"]["width"] for member in PAPER} == {32}


def run_directory(path: Path, seed: int = 0, info: dict[str, Any] | None = None, **arguments: Any) -> Path:
    torch.manual_seed(seed)
    model = trained(create_model("ann", **{"num_classes": 2, "width": 2, **arguments}), seed).float()
    model.info = ModelInfo(
        data="Digits",
        input_size=(arguments.get("in_channels", 3), 8, 8),
        resize_ratio=8 / 7,
        class_names=("ant", "bee"),
        recipe={"model": {}, "data": {"class_path": "anytime.data.Digits", "init_args": {"validation": 0.2}}},
    )
    model.info = dataclasses.replace(model.info, **(info or {}))
    model.save(path)
    return path


def test_chains_run_directories(tmp_path: Path) -> None:
    runs = [run_directory(tmp_path / f"n{n}", seed=n, units=n) for n in (1, 2, 3)]
    networks = [anytime.load(run).double() for run in runs]
    combined = chain_networks(runs)
    assert not combined.training
    x = images(2, 3, 8, 8)
    with torch.no_grad():
        answers = combined.double()(x)
        for t, (member, exit) in enumerate(combined.sources):
            torch.testing.assert_close(answers[t], networks[member](x)[exit], rtol=0, atol=1e-12)
    assert combined.info.class_names == ("ant", "bee")
    assert combined.info.input_size == (3, 8, 8)
    assert combined.info.resize_ratio == 8 / 7
    assert [member["name"] for member in combined.info.members] == [str(run) for run in runs]
    assert type(trained_on(combined)).__name__ == "Digits"
    combined.float().save(tmp_path / "eann")
    for run in runs:
        shutil.rmtree(run)
    again = anytime.load(tmp_path / "eann")
    assert isinstance(again, EANN)
    assert again.sources == combined.sources
    assert again.info == combined.info
    with torch.no_grad():
        assert torch.equal(again(x.float()), combined(x.float()))


def test_chains_by_validation_error(tmp_path: Path) -> None:
    runs = [run_directory(tmp_path / f"n{n}", units=n, period=n) for n in (1, 2)]
    errors = [[0.5, 0.4, 0.3], [0.6, 0.35, 0.2]]
    combined = chain_networks(runs, "validation", errors)
    assert combined.sources == ((0, 0), (0, 1), (0, 2), (0, 2), (0, 2), (1, 2))
    combined.save(tmp_path / "eann")
    assert anytime.load(tmp_path / "eann").sources == combined.sources  # type: ignore[union-attr]


DISAGREE = [
    ({"num_classes": 3}, {"class_names": ()}, r"agree in num_classes: .*one has \(2,\), .*two has \(3,\)"),
    ({"in_channels": 1}, None, "agree in in_channels: .*one has 3, .*two has 1"),
    ({}, {"input_size": (3, 9, 9)}, r"agree in input_size: .*one has \(3, 8, 8\), .*two has \(3, 9, 9\)"),
    ({}, {"class_names": ("ant", "cat")}, "agree in the name of class 1: .*one has 'bee', .*two has 'cat'"),
]


@pytest.mark.parametrize(("arguments", "info", "message"), DISAGREE)
def test_runs_that_disagree(tmp_path: Path, arguments: dict[str, Any], info: Any, message: str) -> None:
    runs = [run_directory(tmp_path / "one", units=1), run_directory(tmp_path / "two", info=info, units=2, **arguments)]
    with pytest.raises(ValueError, match=message):
        chain_networks(runs)


def test_what_cannot_be_chained(tmp_path: Path) -> None:
    one, two = (run_directory(tmp_path / f"n{n}", units=n) for n in (1, 2))
    with pytest.raises(ValueError, match="at least 2 networks, got 1"):
        chain_networks([one])
    with pytest.raises(ValueError, match=r"must be a list of directories or names, got '.*n1'"):
        chain_networks(str(one))
    with pytest.raises(ValueError, match=r"grow in depth: members\[1\] has 3 units, members\[0\] has 6; rule='validation'"):
        chain_networks([two, one])
    with pytest.raises(ValueError, match="there is no directory and no pretrained model 'n3'"):
        chain_networks([one, "n3"])
    with pytest.raises(ValueError, match=r"agree in num_classes: .*n1 has .*2,.*, anytimenet_cifar10 has .*10,"):
        chain_networks([one, "anytimenet_cifar10"])


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"members": TINY[:1]}, "members must be at least 2 networks, got 1"),
    ({"members": ()}, "members must be at least 2 networks, got 0"),
    ({"members": ("runs/a", "runs/b")}, r"members\[0\] must be .*got 'runs/a'; trained networks are combined by"),
    ({"members": ({"model": "ann", "units": 3},) * 2}, r"members\[0\] must be \{'model': NAME, 'arguments'"),
    ({"members": (TINY[0], {"model": "anytimenet"})}, r"members\[1\] is AnytimeNet"),
    ({"members": (TINY[0], {"model": "anm"})}, "unknown model 'anm'; did you mean 'ann'"),
    ({"members": configs({"units": 1, "num_classes": 7}, {})}, r"agree in num_classes: members\[0\] has \(7,\), .* \(10,\)"),
    ({"members": configs({"units": 1}, {"units": 2, "in_channels": 1})}, r"agree in in_channels: members\[1\] has 1, .* 3"),
    ({"members": TINY[::-1]}, r"grow in depth: members\[1\] has 3 units, members\[0\] has 6"),
    (
        {"members": configs({"units": 1, "width": 8}, {"units": 2, "width": 2})},
        r"grow in cost: members\[1\] costs [\d,]+ MACs",
    ),
    ({"members": TINY, "rule": "best"}, "rule must be 'depth' or 'validation', got 'best'"),
    ({"members": TINY, "rule": "validation"}, "rule='validation' needs validation_errors"),
    ({"members": TINY, "validation_errors": TINY_ERRORS}, "no other rule takes them; got rule='depth'"),
    ({"members": TINY, "rule": "validation", "validation_errors": ((0.1,), (0.2,))}, r"hold \[3, 3\] values.*got \[1, 1\]"),
    ({"members": TINY, "rule": "validation", "validation_errors": ((9, 5, 3), (2, 6, 1))}, r"lie in 0..1, got \[\[9, 5, 3\]"),
    ({"members": TINY, "rule": "validation", "validation_errors": ((math.nan,) * 3,) * 2}, r"lie in 0..1, got \[\[nan"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        eann(**arguments)


def test_too_small_images_and_too_many_steps() -> None:
    model = create_model("eann", members=TINY)
    with pytest.raises(ValueError, match="at least 4x4 pixels, got 3x8"):
        model(torch.rand(2, 3, 3, 8))
    state = model.initial_state(torch.rand(2, 3, 8, 8))
    for _ in range(6):
        _, state = model.step(state)
    with pytest.raises(ValueError, match="all 6 steps are done"):
        model.step(state)
