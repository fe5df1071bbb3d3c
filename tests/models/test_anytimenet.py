"""AnytimeNet against Table I of its paper and its costs; any scheme against a run from scratch."""

from __future__ import annotations

from collections import Counter
from itertools import accumulate
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils import _pytree as pytree

from anytime.cost import step_macs
from anytime.models.anytimenet import AnytimeNet, anytimenet, anytimenet_baseline, growth, schedule
from anytime.objectives import Weighted
from anytime.testing import check_anytime_model

CONTRACT_ARGUMENTS = {
    "anytimenet": {"blocks": (3, 2, 3), "scheme": ((1, 1, 1), (2, 0, 0), (0, 0, 2), (0, 1, 0)), "width": 4},
    "anytimenet_baseline": {"blocks": (2, 1, 2), "width": 4},
}

# IN, SEC1, SEC2, SEC3, OUT: cumulative block runs after each iteration.
TABLE_I = [
    (1, 1, 1, 1, 1), (1, 5, 2, 2, 2), (1, 8, 3, 3, 3), (1, 8, 7, 4, 4), (1, 8, 10, 5, 5), (1, 8, 10, 9, 6),
    (1, 8, 10, 12, 7),
]  # fmt: skip
TOTALS = [5, 12, 18, 24, 29, 34, 38]
WIDENING = [2, 4, 6, 7, 8, 8, 8]  # cumulative runs of the first blocks of SEC2 and SEC3 among them
PRESENT = [(1, 1, 1), (5, 1, 1), (8, 1, 1), (8, 5, 1), (8, 8, 1), (8, 8, 5), (8, 8, 8)]

# Any nested scheme of 1 to 4 sections and up to 5 steps, interleaved growth included.
SCHEMES = st.integers(1, 4).flatmap(
    lambda sections: st.tuples(
        st.tuples(*[st.integers(1, 2)] * sections),
        st.lists(st.tuples(*[st.integers(0, 2)] * sections).filter(any), max_size=4),
    ).map(lambda gains: (gains[0], *gains[1]))
)


def total(gains: Any) -> tuple[int, ...]:
    return tuple(sum(column) for column in zip(*gains, strict=True))


def perturb(model: AnytimeNet, seed: int = 0) -> AnytimeNet:
    """Puts a model into float64 and eval mode, with running statistics as after training."""
    generator = torch.Generator().manual_seed(seed)
    for name, buffer in model.double().named_buffers():
        if "running" in name:
            buffer += torch.rand(buffer.shape, generator=generator, dtype=buffer.dtype)
    return model.eval()


def images(*size: int, seed: int = 0) -> Tensor:
    return torch.rand(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_parameters() -> None:
    for model in (anytimenet(), anytimenet_baseline()):
        parts = Counter[str]()
        for name, parameter in model.named_parameters():
            kind = "conv" if parameter.ndim == 4 else "head" if name.startswith("head") else "norm"
            parts[kind] += parameter.numel()
        assert parts == {"conv": 751_536, "norm": 3_616, "head": 650}
        assert parts.total() == 755_802
    assert (anytimenet().num_steps, anytimenet_baseline().num_steps) == (7, 1)


def block_runs(model: AnytimeNet) -> Counter[str]:
    """Counts the runs of IN, of the blocks of each section, and of OUT from now on."""
    runs = Counter[str]()
    parts = {"IN": [model.stem], "OUT": [model.norm]}
    parts |= {f"SEC{s}": list(blocks) for s, blocks in enumerate(model.sections, 1)}  # type: ignore[call-overload]
    for part, modules in parts.items():
        for module in modules:
            module.register_forward_hook(lambda *_, part=part: runs.update([part]))
    return runs


def test_table_1() -> None:
    model = anytimenet(width=2).eval()
    runs = block_runs(model)
    for t, _ in enumerate(model.stream(torch.rand(1, 3, 8, 8))):
        assert tuple(runs[part] for part in ("IN", "SEC1", "SEC2", "SEC3", "OUT")) == TABLE_I[t]
        assert runs.total() == TOTALS[t]


def test_block_runs_from_scratch() -> None:
    model = anytimenet(width=2).eval()
    runs = block_runs(model)
    x = torch.rand(1, 3, 8, 8)
    for t, present in enumerate(PRESENT, 1):
        before = runs.total()
        model(x, step=t)
        assert runs.total() - before == sum(present) + 2
    assert runs.total() == 110


def mega(costs: list[int], digits: int = 2) -> list[float]:
    return [round(cost / 1e6, digits) for cost in costs]


@pytest.mark.parametrize("size", [32, 48])
def test_macs_are_exactly_those_of_the_blocks_run(size: int) -> None:
    pixels = size * size
    stem, first = 9 * 3 * 16 * pixels, 2 * 9 * 16 * 16 * pixels
    widening = (9 * 16 * 32 + 9 * 32 * 32) * pixels // 4  # the same in both wider sections
    head = 64 * 10
    cumulative = [
        stem + (sum(cells[1:4]) - wide) * first + wide * widening + cells[4] * head
        for cells, wide in zip(TABLE_I, WIDENING, strict=True)
    ]
    scratch = [stem + (sum(present) - 2) * first + 2 * widening + head for present in PRESENT]
    assert step_macs(anytimenet(), (3, size, size)) == cumulative
    assert step_macs(anytimenet(), (3, size, size), contract=True) == scratch
    assert step_macs(anytimenet_baseline(), (3, size, size)) == scratch[-1:]
    if size == 32:
        assert mega(cumulative) == [12.24, 38.19, 59.43, 81.84, 99.54, 118.41, 132.57]
        assert mega(scratch) == [12.24, 31.11, 45.27, 64.14, 78.30, 97.17, 111.33]
        assert mega([sum(scratch)]) == [439.57]
        assert round(sum(scratch) / cumulative[-1], 2) == 3.32
    else:
        assert mega(cumulative, 1) == [27.5, 85.9, 133.7, 184.1, 224.0, 266.4, 298.3]
        assert mega(scratch[-1:], 1) == [250.5]
    ratios = [round(cost / scratch[-1], 3) for cost in cumulative]
    assert ratios == [0.110, 0.343, 0.534, 0.735, 0.894, 1.064, 1.191]


def from_scratch(model: AnytimeNet, gains: Any, x: Tensor, step: int) -> Tensor:
    """The sub-network of a step as a plain chain; a block takes the statistics of its latest use.

    A block runs in a step where it is new or where any lower section gained blocks.
    """

    def uses(section: int, block: int) -> int:
        present = list(accumulate(gain[section] for gain in gains))
        return sum(
            block < present[t] and (block >= present[t] - gains[t][section] or any(gains[t][:section]))
            for t in range(step)
        )  # fmt: skip

    h = model.stem(model.normalize(x))
    for section, blocks in enumerate(model.sections):
        for block in range(sum(gain[section] for gain in gains[:step])):
            h = blocks[block](h, uses(section, block) - 1)  # type: ignore[index]
    return model.head(torch.relu(model.norm(h, step - 1)).mean((2, 3)))


@settings(deadline=None, max_examples=40)
@given(SCHEMES, st.sampled_from(["per_use", "shared"]), st.integers(4, 9), st.integers(4, 9))
def test_any_scheme_cached_equals_from_scratch(gains: Any, statistics: Any, height: int, width: int) -> None:
    torch.manual_seed(0)
    model = perturb(AnytimeNet(3, blocks=total(gains), scheme=gains, width=2, statistics=statistics))
    x = images(2, 3, height, width)
    with torch.no_grad():
        logits, streamed = model(x), torch.stack(list(model.stream(x)))
        assert logits.shape == (len(gains), 2, 3)
        assert torch.equal(logits, streamed)
        for t in range(1, len(gains) + 1):
            expected = from_scratch(model, gains, x, t)
            torch.testing.assert_close(logits[t - 1], expected, rtol=0, atol=1e-10)
            torch.testing.assert_close(model(x, step=t), expected, rtol=0, atol=1e-10)


@settings(deadline=None, max_examples=60)
@given(SCHEMES)
def test_any_scheme_runs_only_what_changed(gains: Any) -> None:
    plan = schedule(gains)
    uses: Counter[tuple[int, int]] = Counter()
    present = [0] * len(gains[0])
    for t, (gain, runs) in enumerate(zip(gains, plan, strict=True)):
        for section, run in enumerate(runs):
            present[section] += gain[section]
            changed_below = t == 0 or any(gain[:section])
            if not changed_below and gain[section] == 0:
                assert run is None
                continue
            assert run is not None
            first = 0 if changed_below else present[section] - gain[section]
            assert (run.first, run.last) == (first, present[section])
            assert run.rows == tuple(uses[section, block] for block in range(run.first, run.last))
            uses.update((section, block) for block in range(run.first, run.last))
    assert tuple(present) == total(gains)


def test_schemes_as_gains_per_step() -> None:
    gains = ((1, 1, 1), (4, 0, 0), (3, 0, 0), (0, 4, 0), (0, 3, 0), (0, 0, 4), (0, 0, 3))
    assert growth((8, 8, 8), (1, 4, 3)) == growth((8, 8, 8), gains) == gains
    assert [tuple(map(sum, zip(*gains[:t], strict=True))) for t in range(1, 8)] == PRESENT
    assert growth((3, 3), (1, 2)) == ((1, 1), (2, 0), (0, 2))
    assert growth([2], [2]) == ((2,),)
    assert growth((2, 3), None) == ((2, 3),)


def test_last_step_is_the_baseline() -> None:
    model = perturb(anytimenet(4, width=4, statistics="shared"))
    baseline = anytimenet_baseline(4, width=4).double().eval()
    baseline.load_state_dict(model.state_dict())
    x = images(2, 3, 12, 12)
    with torch.no_grad():
        torch.testing.assert_close(model(x)[-1], baseline(x)[0], rtol=0, atol=1e-10)


def test_training_is_the_same_with_either_statistics() -> None:
    def train(statistics: Any) -> AnytimeNet:
        torch.manual_seed(0)
        gains = ((1, 1, 1), (2, 0, 0), (0, 1, 0), (0, 0, 1))
        model = anytimenet(3, blocks=(3, 2, 2), scheme=gains, width=4, statistics=statistics).double()
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        for step in range(3):
            x, target = images(8, 3, 8, 8, seed=step), torch.arange(8) % 3
            optimizer.zero_grad()
            Weighted()(model(x), target).backward()
            optimizer.step()
        return model

    per_use, shared = train("per_use"), train("shared")
    other = dict(shared.named_parameters())
    assert all(torch.equal(parameter, other[name]) for name, parameter in per_use.named_parameters())
    assert per_use.norm.running_mean.shape[0] == 4
    assert len({tuple(row.tolist()) for row in per_use.norm.running_mean}) == 4, "every use updates its own row"
    assert shared.norm.running_mean.shape[0] == 1
    x = images(2, 3, 8, 8)
    assert not torch.equal(per_use.eval()(x), shared.eval()(x))


def test_only_one_tensor_per_section_is_cached() -> None:
    model = anytimenet(width=2).eval()
    state = model.initial_state(torch.rand(2, 3, 8, 8))
    for _ in range(model.num_steps):
        _, state = model.step(state)
        tensors = [leaf for leaf in pytree.tree_leaves(state) if isinstance(leaf, Tensor)]
        assert [list(tensor.shape) for tensor in tensors] == [[2, 2, 8, 8], [2, 4, 4, 4], [2, 8, 2, 2]]
    with pytest.raises(ValueError, match="all 7 steps are done"):
        model.step(state)


@pytest.mark.parametrize("size", [(25, 25), (48, 31), (4, 4), (5, 4)])
def test_odd_image_sizes(size: tuple[int, int]) -> None:
    model = perturb(anytimenet(3, width=2))
    x = images(1, 3, *size)
    with torch.no_grad():
        logits = model(x)
        assert logits.isfinite().all()
        for t in (1, 4, 7):
            torch.testing.assert_close(model(x, step=t), logits[t - 1], rtol=0, atol=1e-10)


def test_too_small_images() -> None:
    with pytest.raises(ValueError, match="images must be at least 4x4 pixels, got 4x3"):
        anytimenet(width=2)(torch.rand(1, 3, 4, 3))


def test_gradients_reach_what_an_answer_uses() -> None:
    model = anytimenet(3, width=2).double()
    logits = model(images(4, 3, 8, 8))
    logits[0].square().sum().backward(retain_graph=True)
    reached = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert {name.rsplit(".", 2)[0] for name in reached if name.startswith("sections")} == {f"sections.{s}.0" for s in range(3)}
    logits[-1].square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())


def test_several_label_levels() -> None:
    model = anytimenet((4, 2), blocks=(1, 1), scheme=(1,), width=2)
    assert model(torch.rand(2, 3, 4, 4)).shape == (1, 2, 6)
    assert model.levels == (4, 2)


def test_shared_statistics_keep_the_contract() -> None:
    model = anytimenet(3, blocks=(2, 3), scheme=((1, 1), (1, 0), (0, 2)), width=4, statistics="shared")
    check_anytime_model(model, (3, 8, 8))


@pytest.mark.parametrize(
    ("blocks", "scheme", "message"),
    [
        ((8, 8, 8), (1, 4), r"scheme \(1, 4\) adds up to \(5, 5, 5\) blocks, but blocks=\(8, 8, 8\)"),
        ((8, 8, 8), (1, 4, 3, 1), r"\(1, 4, 3, 1\) adds up to \(9, 9, 9\)"),
        ((3, 2), (1, 2), r"\(1, 2\) adds up to \(3, 3\) blocks, but blocks=\(3, 2\)"),
        ((3, 3, 3), ((1, 1, 1), (2, 2, 1)), r"adds up to \(3, 3, 2\)"),
        ((2, 2), (0, 2), r"each step of the scheme must add blocks to some of the 2 sections, got \(0, 2\)"),
        ((2, 2), (1, 0, 1), r"must add blocks.*got \(1, 0, 1\)"),
        ((2, 2), (3, -1), r"must add blocks.*got \(3, -1\)"),
        ((2, 2), ((1, 1), (0, 0), (1, 1)), r"must add blocks.*got \(\(1, 1\), \(0, 0\), \(1, 1\)\)"),
        ((2, 2), ((1, 1), (2, -1), (-1, 2)), "must add blocks"),
        ((2, 2), ((2, 2, 2),), "must add blocks to some of the 2 sections"),
        ((2, 2), ((2, 0), (0, 2)), r"first step needs at least one block in every section, got \(2, 0\)"),
        ((2, 2), (), r"scheme must be numbers like \(1, 4, 3\) or gains per step .*, got \(\)"),
        ((2, 2), (1, (1, 1)), r"scheme must be numbers .*, got \(1, \(1, 1\)\)"),
        ((2, 2), (1.0, 1.0), r"scheme must be numbers .*, got \(1.0, 1.0\)"),
        ((), (1,), r"blocks must be at least 1 in every section, got \(\)"),
        ((2, 0), (1, 1), r"blocks must be at least 1 in every section, got \(2, 0\)"),
    ],
)
def test_wrong_schemes(blocks: Any, scheme: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AnytimeNet(blocks=blocks, scheme=scheme)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"width": 0}, "width must be at least 1, got 0"),
        ({"statistics": "both"}, "statistics must be 'per_use' or 'shared', got 'both'"),
        ({"num_classes": 0}, "num_classes must be at least 1, got 0"),
        ({"in_channels": 0}, "in_channels must be at least 1, got 0"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        anytimenet(**arguments)
