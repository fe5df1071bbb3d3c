"""Fixed weights over all answers, a loss for one answer only, and the SDN ramp."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from anytime.objectives import Optimal, SDNRamp, Weighted, step_losses, weighting
from anytime.training.config import UsageError, find, parse


def example(steps: int, batch: int = 4, classes: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(steps)
    return torch.randn(steps, batch, classes, dtype=torch.float64), torch.randint(classes, (batch,))


def test_inverse_square_is_the_papers() -> None:
    weights = weighting.inverse_square(7)
    assert weights == [1 / 49, 1 / 36, 1 / 25, 1 / 16, 1 / 9, 1 / 4, 1]
    assert round(sum(weights), 4) == 1.5118
    shares = [round(100 * weight / sum(weights), 2) for weight in weights]
    assert shares == [1.35, 1.84, 2.65, 4.13, 7.35, 16.54, 66.15]


@given(st.integers(1, 50))
def test_schemes(n: int) -> None:
    assert weighting.constant(n) == [1] * n
    assert weighting.final_only(n) == [0] * (n - 1) + [1]
    weights = weighting.inverse_square(n)
    assert weights == sorted(weights)
    assert weights[-1] == 1
    assert all(len(scheme(n)) == n for scheme in weighting.SCHEMES.values())


@pytest.mark.parametrize("scheme", weighting.SCHEMES.values())
def test_schemes_need_an_answer(scheme: Any) -> None:
    with pytest.raises(ValueError, match="number of answers must be at least 1, got 0"):
        scheme(0)


def test_step_losses() -> None:
    logits, target = example(3)
    expected = torch.stack([F.cross_entropy(answer, target) for answer in logits])
    torch.testing.assert_close(step_losses(logits, target), expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(step_losses(logits.transpose(0, 1).contiguous().transpose(0, 1), target), expected)
    smooth = torch.stack([F.cross_entropy(answer, target, label_smoothing=0.2) for answer in logits])
    torch.testing.assert_close(step_losses(logits, target, 0.2), smooth, rtol=1e-12, atol=0)


@pytest.mark.parametrize("weights", ["inverse_square", "constant", "final_only", (0.5, 0.0, 2.0), [1, 2, 3]])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_weighted_equals_a_loop(weights: Any, label_smoothing: float) -> None:
    logits, target = example(3)
    numbers = weighting.SCHEMES[weights](3) if isinstance(weights, str) else weights
    expected = 0.0
    for t in range(3):
        for sample, label in zip(logits[t], target, strict=True):
            log_p = [value.item() - math.log(sum(math.exp(v) for v in sample.tolist())) for value in sample]
            cross_entropy = -(1 - label_smoothing) * log_p[label] - label_smoothing * sum(log_p) / len(log_p)
            expected += numbers[t] * cross_entropy / len(target)
    assert Weighted(weights, label_smoothing)(logits, target).item() == pytest.approx(expected, rel=1e-12)


def test_default_is_the_papers_loss() -> None:
    logits, target = example(7)
    expected = sum(F.cross_entropy(logits[j - 1], target) / (7 - j + 1) ** 2 for j in range(1, 8))
    torch.testing.assert_close(Weighted()(logits, target), expected, rtol=1e-12, atol=0)


def test_gradient_of_an_answer_is_proportional_to_its_weight() -> None:
    logits, target = example(1)
    same = logits.expand(3, -1, -1).clone().requires_grad_()
    Weighted([1.0, 2.0, 0.0])(same, target).backward()
    assert same.grad is not None
    torch.testing.assert_close(same.grad[1], 2 * same.grad[0])
    assert not same.grad[2].any()


def test_weighted_has_no_state() -> None:
    assert not Weighted().state_dict()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weights": "inverse_sqare"}, r"unknown weights 'inverse_sqare'; did you mean 'inverse_square'\?"),
        ({"weights": "zzz"}, "unknown weights 'zzz'; valid: constant, final_only, inverse_square"),
        ({"weights": {1: 0.5, 2: 1.0}}, r"weights must be a list, one for each answer, got {1: 0.5, 2: 1.0}"),
        ({"weights": [1.0, -0.5]}, r"weights must be at least 0 and not all 0, got \[1.0, -0.5\]"),
        ({"weights": [0.0, 0.0]}, "not all 0"),
        ({"weights": []}, r"not all 0, got \[\]"),
        ({"label_smoothing": 1.0}, r"label_smoothing must lie in \[0, 1\), got 1.0"),
        ({"label_smoothing": -0.1}, r"label_smoothing must lie in \[0, 1\), got -0.1"),
        ({"label_smoothing": 0.1, "loss": "a.b"}, "label_smoothing=0.1 belongs to cross-entropy, not to loss='a.b'"),
        ({"loss": "anytime.nowhere"}, "loss 'anytime.nowhere' is none of this library; valid: step_losses"),
        ({"loss": "nowhere"}, "loss 'nowhere' cannot be imported"),
        ({"loss": "math.pi"}, "loss 'math.pi' is a float, not a function"),
        ({"normalize": "all"}, "normalize must be 'none', 'sum' or 'last', got 'all'"),
        ({"weights": [1.0, 0.0], "normalize": "last"}, r"normalize='last' needs a last weight above 0, got \[1.0, 0.0\]"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Weighted(**arguments)


def test_wrong_number_of_weights() -> None:
    with pytest.raises(ValueError, match=r"2 weights for 3 answers: \[1.0, 2.0\]"):
        Weighted([1.0, 2.0])(*example(3))


@pytest.mark.parametrize(("normalize", "scale"), [("none", 1.0), ("sum", 50.0), ("last", 25.0)])
def test_normalisation_of_the_sieve(normalize: Any, scale: float) -> None:
    logits, target = example(15)
    expected = Weighted([weight / scale for weight in weighting.sieve(15)])(logits, target)
    torch.testing.assert_close(Weighted("sieve", normalize=normalize)(logits, target), expected, rtol=1e-12, atol=0)


def last_two_classes(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return logits[..., -2:].square().mean((1, 2)) + target.sum()


def test_another_loss_than_cross_entropy() -> None:
    logits, target = example(3)
    expected = sum(w * loss for w, loss in zip((0.5, 1, 2), last_two_classes(logits, target), strict=True))
    torch.testing.assert_close(Weighted((0.5, 1, 2), loss=last_two_classes)(logits, target), expected)
    torch.testing.assert_close(Optimal(2, loss=last_two_classes)(logits, target), last_two_classes(logits, target)[1])
    named = Weighted("sieve", loss="anytime.objectives.step_losses")(logits, target)
    assert torch.equal(named, Weighted("sieve")(logits, target))
    for path in ("anytime.pretrained.load", "anytime.support.names.import_object", "anytime.no.such"):
        with pytest.raises(ValueError, match=rf"loss '{path}' is none of this library; .*'?step_losses"):
            Weighted(loss=path)
    with pytest.raises(ValueError, match=r"loss must return \[3\], one number for each answer, got \[3, 4\]"):
        Weighted(loss=lambda logits, target: logits.mean(2))(logits, target)


def test_optimal_is_one_hot() -> None:
    logits, target = example(5)
    for exit in range(1, 6):
        expected = Weighted(weighting.one_hot(5, exit))(logits, target)
        torch.testing.assert_close(Optimal(exit)(logits, target), expected, rtol=1e-12, atol=0)
    with pytest.raises(ValueError, match=r"exit must lie in 1\.\.5, got 6"):
        Optimal(6)(logits, target)
    with pytest.raises(ValueError, match="exit must be at least 1, got 0"):
        Optimal(0)


def test_ramp_counts_training_steps() -> None:
    logits, target = example(4)
    ramp = SDNRamp(epochs=3, epoch_steps=2, largest=(0.2, 0.3, 1.0))
    for step in range(8):
        epoch = min(1 + step // 2, 3)
        expected = Weighted(weighting.sdn_ramp(4, epoch, 3, (0.2, 0.3, 1.0)))(logits, target)
        for training in (False, True):
            torch.testing.assert_close(ramp.train(training)(logits, target), expected, rtol=1e-12, atol=0)
        resumed = SDNRamp(3, 2, (0.2, 0.3, 1.0))
        resumed.load_state_dict(ramp.state_dict())
        assert resumed.steps == step + 1
    with pytest.raises(ValueError, match="epochs and epoch_steps must be at least 1, got 3 and 0"):
        SDNRamp(3, 0)


BASE = ["--model", "anytimenet", "--data", "digits"]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--objective.weights", "sieve", "--objective.normalize", "last"], Weighted("sieve", normalize="last")),
        (["--objective.weights", "exponential:0.5"], Weighted("exponential:0.5")),
        (["--objective.weights", "[0.5, 1, 2]"], Weighted([0.5, 1.0, 2.0])),
        (["--objective", "optimal", "--objective.exit", "2"], Optimal(2)),
        (["--objective", "sdn_ramp", "--objective.epochs=4", "--objective.epoch_steps=7"], SDNRamp(4, 7)),
    ],
)
def test_on_the_command_line(flags: list[str], expected: Any) -> None:
    config = parse([*BASE, *flags])["objective"]
    objective = find("objective", config["class_path"])(**config["init_args"])
    assert type(objective) is type(expected)
    logits, target = example(3)
    assert torch.equal(objective(logits, target), expected(logits, target))


def test_optimal_needs_an_exit() -> None:
    with pytest.raises(UsageError, match=r"objective\.exit must be given"):
        parse([*BASE, "--objective", "optimal"])


ONE_OF_TWO = """
import sys, torch
from anytime.objectives.weighted import process_mean
rank = int(sys.argv[1])
torch.distributed.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
mean = process_mean(torch.tensor([1.0 + rank, 4.0 * rank], requires_grad=True))
assert mean.tolist() == [1.5, 2.0] and not mean.requires_grad, mean
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_mean_over_two_processes(tmp_path: Path) -> None:
    command = [sys.executable, "-c", ONE_OF_TWO]
    both = [subprocess.Popen([*command, str(rank), str(tmp_path / "store")]) for rank in range(2)]
    assert [process.wait(300) for process in both] == [0, 0]
