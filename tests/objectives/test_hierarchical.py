"""The loss over several label levels."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from anytime.objectives import Hierarchical, Weighted
from anytime.training.config import find, parse

SIZES = (5, 3, 2)


def example(steps: int = 4, batch: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(steps)
    logits = torch.randn(steps, batch, sum(SIZES), dtype=torch.float64)
    return logits, torch.stack([torch.randint(size, (batch,)) for size in SIZES], 1)


def test_equation_2() -> None:
    logits, target = example()
    parts = logits.split(SIZES, 2)
    expected = sum(F.cross_entropy(parts[d][t], target[:, d]) for t in range(4) for d in range(3))
    torch.testing.assert_close(Hierarchical(levels=SIZES)(logits, target), expected, rtol=1e-14, atol=0)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(0.1, 9), min_size=4, max_size=4), st.lists(st.floats(0.1, 9), min_size=3, max_size=3))
def test_weights_multiply(weights: list[float], level_weights: list[float]) -> None:
    logits, target = example()
    loss = Hierarchical(weights, level_weights, levels=SIZES)(logits, target)
    single = [Weighted(weights)(part, label) for part, label in zip(logits.split(SIZES, 2), target.T, strict=True)]
    expected = sum(v * part for v, part in zip(level_weights, single, strict=True))
    torch.testing.assert_close(loss, expected, rtol=1e-13, atol=0)


def test_schemes_and_smoothing() -> None:
    logits, target = example()
    options = {"weights": "exponential:2", "label_smoothing": 0.1, "normalize": "sum"}
    loss = Hierarchical(levels=SIZES, **options)(logits, target)
    expected = sum(Weighted(**options)(part, label) for part, label in zip(logits.split(SIZES, 2), target.T, strict=True))
    torch.testing.assert_close(loss, expected, rtol=1e-14, atol=0)


def test_one_level_is_weighted() -> None:
    logits, target = example()
    logits, target = logits[..., :5], target[:, 0]
    expected = Weighted("constant")(logits, target)
    for objective in (Hierarchical(), Hierarchical(levels=[5])):
        assert torch.equal(objective(logits, target), expected)
        assert torch.equal(objective(logits, target[:, None]), expected)


def test_levels_are_independent() -> None:
    """The gradient of a level's logits depends only on that level; it is (p - y) / B, as for any cross-entropy."""
    logits, target = example()
    logits.requires_grad_()
    (gradient,) = torch.autograd.grad(Hierarchical(levels=SIZES)(logits, target), logits)
    parts = logits.detach().split(SIZES, 2)
    expected = [part.softmax(2) - F.one_hot(label, size) for part, label, size in zip(parts, target.T, SIZES, strict=True)]
    torch.testing.assert_close(gradient, torch.cat(expected, 2) / 6, rtol=1e-12, atol=1e-15)


def test_half_precision_becomes_float32() -> None:
    logits, target = example()
    assert Hierarchical(levels=SIZES)(logits.bfloat16(), target).dtype == torch.float32


def test_levels_come_from_the_data_set() -> None:
    logits, target = example()
    objective = Hierarchical(level_weights=[1, 2, 3])
    objective.set_levels(SIZES)
    assert objective(logits, target) == Hierarchical(level_weights=[1, 2, 3], levels=SIZES)(logits, target)
    objective.set_levels(list(SIZES))
    with pytest.raises(ValueError, match=r"levels are \(5, 3, 2\) for this objective, but the data set has \(5, 2\)"):
        objective.set_levels((5, 2))


def test_errors() -> None:
    logits, target = example()
    with pytest.raises(ValueError, match=r"labels have 3 levels: give the class count of each"):
        Hierarchical()(logits, target)
    with pytest.raises(ValueError, match=r"levels \(5, 3\) need 8 logits and 2 labels per image, got 10 and 3"):
        Hierarchical(levels=(5, 3))(logits, target)
    with pytest.raises(ValueError, match=r"need 10 logits and 3 labels per image, got 10 and 1"):
        Hierarchical(levels=SIZES)(logits, target[:, 0])
    with pytest.raises(ValueError, match=r"one weight for each of 3 levels, got \[1\.0, 2\.0\]"):
        Hierarchical(level_weights=(1, 2), levels=SIZES)
    with pytest.raises(ValueError, match=r"at least 0 and not all 0, got \[0\.0, 0\.0\]"):
        Hierarchical(level_weights=(0, 0))
    with pytest.raises(ValueError, match=r"levels must be at least 1 class each, got \(5, 0\)"):
        Hierarchical(levels=(5, 0))
    with pytest.raises(ValueError, match=r"did you mean 'sieve'"):
        Hierarchical("sive")


def test_from_the_command_line() -> None:
    flags = ["--objective.level_weights", "[1, 0.5]", "--objective.levels", "[10, 2]", "--objective.weights", "sieve"]
    section = parse(["--model", "anytimenet", "--data", "digits", "--objective", "hierarchical", *flags])["objective"]
    objective = find("objective", section["class_path"])(**section["init_args"])
    assert isinstance(objective, Hierarchical)
    assert (objective.weights, objective.level_weights, objective.levels) == ("sieve", [1, 0.5], (10, 2))
