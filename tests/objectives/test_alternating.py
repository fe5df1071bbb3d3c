"""Amplified losses: frequencies of the draws, learning, and exact resumption of a training."""

from __future__ import annotations

import copy
import io
import math
import random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from anytime.analysis.curves import MILESTONES, errors_within
from anytime.objectives import AANN, AVGL, EXP3, RWM, Milestone, Weighted
from anytime.objectives.alternating import rewards
from anytime.objectives.weighting import sieve
from anytime.training.config import find, parse

ALL = [AANN, Milestone, EXP3, RWM, AVGL]
LABELS = torch.zeros(1, dtype=torch.int64)


def given_losses(logits: Tensor, target: Tensor) -> Tensor:
    """The loss is the answer itself."""
    return logits[:, 0, 0]


def at_once(kind: Any) -> dict[str, int]:
    """Arguments with which an objective that learns does so from the second step."""
    return {} if kind in (AANN, Milestone) else {"warmup": 0}


def answers(*losses: float) -> Tensor:
    return torch.tensor(losses, dtype=torch.float64)[:, None, None].requires_grad_()


def weights_of(objective: Any, losses: Tensor) -> Tensor:
    """dL/dl, the weights in this call."""
    losses = losses.detach().requires_grad_()
    objective(losses, LABELS).backward()
    assert losses.grad is not None
    return losses.grad[:, 0, 0]


def numbers(seed: int, steps: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(steps, 1, 1, generator=generator, dtype=torch.float64) + 0.5


@pytest.mark.parametrize("kind", ALL)
def test_one_answer_is_amplified_in_each_step(kind: Any) -> None:
    objective = (
        kind(tau=0.25, warmup=0, loss=given_losses) if kind not in (AANN, Milestone) else kind(tau=0.25, loss=given_losses)
    )
    base = torch.tensor(sieve(9), dtype=torch.float64)
    for step in range(20):
        losses = numbers(step, 9)
        weights = weights_of(objective, losses)
        extra = (weights - base) / base.sum()
        j = int(extra.argmax())
        assert j == int(objective.amplified) - 1
        assert extra.tolist() == pytest.approx([0.25 * (t == j) for t in range(9)], abs=1e-15)
        if step == 0:
            assert j == 8, "the first draw is the last answer"
        assert objective.probabilities.sum().item() == pytest.approx(1, abs=1e-12)


def draws(objective: Any, losses: Tensor, steps: int) -> list[int]:
    chosen = []
    for _ in range(steps):
        objective(losses, LABELS)
        chosen.append(int(objective.amplified))
    return chosen


def test_last_answer_is_drawn_half_the_time() -> None:
    """The frequency of the last answer is 0.5, that of the others their share of the sieve."""
    steps = 4000
    drawn = draws(AANN(loss=given_losses), answers(*[1.0] * 7), steps)
    shares = [weight / sum(sieve(7)) for weight in sieve(7)]
    assert shares[-1] == 0.5
    for t, share in enumerate(shares, 1):
        assert drawn.count(t) / steps == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / steps))


def test_draws_follow_seed_and_step() -> None:
    losses = answers(1.0, 1.0, 1.0, 1.0)
    one, again, other = (draws(AANN(seed=seed, loss=given_losses), losses, 40) for seed in (1, 1, 2))
    assert one == again != other
    cumulative = [sum(sieve(4)[: t + 1]) / 8 for t in range(4)]
    expected = [next(t + 1 for t, c in enumerate(cumulative) if random.Random(f"1 {i}").random() < c) for i in range(1, 40)]
    assert one[1:] == expected
    state = torch.get_rng_state()
    draws(AANN(loss=given_losses), losses, 5)
    assert torch.equal(torch.get_rng_state(), state), "torch's global generator is not used"


def test_an_answer_without_weight_is_never_drawn() -> None:
    drawn = draws(AANN([0.0, 1.0, 0.0, 1.0, 0.0], loss=given_losses), answers(*[1.0] * 5), 400)
    assert set(drawn[1:]) == {2, 4}


@pytest.mark.parametrize("kind", ALL)
def test_evaluation_is_the_expected_loss_and_changes_nothing(kind: Any) -> None:
    objective = kind(loss=given_losses, **at_once(kind))
    for step in range(5):
        objective(numbers(step, 9), LABELS)
    before, p = copy.deepcopy(objective.get_extra_state()), objective.probabilities.clone()
    objective.eval()
    base = torch.tensor(sieve(9), dtype=torch.float64)
    for _ in range(2):
        weights = weights_of(objective, numbers(7, 9))
        torch.testing.assert_close(weights, base + 0.5 * base.sum() * p, rtol=0, atol=1e-12)
    after = objective.get_extra_state()
    assert before["steps"] == after["steps"] == 5
    assert before["values"] is after["values"] is None or torch.equal(before["values"], after["values"])


def test_aann_in_expectation_is_ann_one_and_a_half_times() -> None:
    losses = numbers(0, 12)
    expected = 1.5 * Weighted("sieve", loss=given_losses)(losses, LABELS)
    torch.testing.assert_close(AANN(loss=given_losses).eval()(losses, LABELS), expected, rtol=0, atol=1e-10)


def distribution(kind: Any, steps: int, **arguments: Any) -> list[float]:
    objective = kind(loss=given_losses, **arguments).eval()
    objective(numbers(0, steps), LABELS)
    return objective.probabilities.tolist()


def test_milestones() -> None:
    p = distribution(Milestone, 15)
    assert [i for i, value in enumerate(p, 1) if value == 0.125] == [3, 7, 11, 15]
    assert [value for value in p if value != 0.125] == [0.5 / 11] * 11
    assert distribution(Milestone, 8) == [0.125] * 8
    assert distribution(Milestone, 7) == [1 / 7] * 7
    assert [i for i, value in enumerate(distribution(Milestone, 27), 1) if value == 0.125] == [6, 13, 20, 27]
    code = distribution(Milestone, 15, indices="code")
    assert [i for i, value in enumerate(code, 1) if value == 0.125] == [4, 8, 12, 15]
    with pytest.raises(ValueError, match="indices must be 'cost' or 'code', got 'paper'"):
        Milestone(indices="paper")  # type: ignore[arg-type]


@pytest.mark.parametrize("steps", [8, 15, 27, 39, 51, 75])
def test_milestones_are_the_answers_whose_error_is_reported(steps: int) -> None:
    spent = [float(step) for step in range(1, steps + 1)]
    reported = errors_within(spent, spent, [share * steps for share in MILESTONES])  # the "errors" are the steps
    amplified = torch.tensor(distribution(Milestone, steps))[[int(step) - 1 for step in reported]]
    assert amplified.tolist() == [0.125] * 4


def test_rewards() -> None:
    losses = torch.tensor([2.0, 1.0, 0.8, 1.0], dtype=torch.float64)
    assert rewards(losses, 0.8).tolist() == pytest.approx([0.5, 0.2, -0.25, 0.4])
    assert rewards(losses[:1], 0.8).tolist() == [0]
    assert rewards(torch.zeros(3), 0.8).tolist() == [0, 0, 0]
    assert rewards(torch.tensor([0.0, 0.5, 0.25, 0.75]), 0.8).tolist() == [-1, 0.5, -1, pytest.approx(0.4)]


@pytest.mark.parametrize("kind", [EXP3, RWM, AVGL])
def test_an_answer_with_a_loss_of_zero_is_drawn_again(kind: Any) -> None:
    """One batch with loss 0 at the first answer, then 40 in which it lags behind as much as the others."""
    objective = kind(warmup=0, loss=lambda logits, target: logits[:, 0, 0])
    for losses in [[0.5, 0.4, 0.3], [0.0, 0.5, 0.4], *[[0.8, 0.4, 0.2]] * 40]:
        objective(torch.tensor(losses)[:, None, None], LABELS)
    assert objective.probabilities[0] > 0.2


def v_of(objective: Any) -> list[float]:
    return [0.25] * 4 if objective.values is None else objective.values.tolist()


@pytest.mark.parametrize("kind", [EXP3, RWM])
def test_exponentiated_updates(kind: Any) -> None:
    """v_j exp(gamma r_j / (T p_j)), or v_t exp(gamma r_t / 2) for all t, normalised, mixed with 0.001 gamma / T."""
    gamma, eta = 0.3, 0.8
    objective = kind(gamma=gamma, eta=eta, warmup=0, loss=given_losses)
    assert v_of(objective) == [0.25] * 4
    for step in range(8):
        v, losses = v_of(objective), numbers(step, 4)
        objective(losses, LABELS)
        p = [(1 - gamma) * value + gamma / 4 for value in v]
        r = rewards(losses[:, 0, 0], eta).tolist()
        j = int(objective.amplified) - 1
        if step:
            gains = [gamma * r[t] / (4 * p[t]) * (t == j) if kind is EXP3 else 0.5 * gamma * r[t] for t in range(4)]
            v = [value * math.exp(gain) for value, gain in zip(v, gains, strict=True)]
            v = [(1 - 0.001 * gamma) * value / sum(v) + 0.001 * gamma / 4 for value in v]
        assert v_of(objective) == pytest.approx(v, abs=1e-12)
        assert objective.probabilities.tolist() == pytest.approx([0.7 * value + 0.075 for value in v], abs=1e-12)


def test_average_of_the_paper_and_of_the_code() -> None:
    paper = AVGL(warmup=0, loss=given_losses)
    code = AVGL(warmup=0, rule="code", gamma=0.3, loss=given_losses)
    a, b = [0.0] * 5, [0.2] * 5
    for step in range(12):
        losses = numbers(step, 5)
        for objective in (paper, code):
            objective(losses, LABELS)
        if step:
            r = rewards(losses[:, 0, 0], 0.8).tolist()
            a = [0.9 * value + 0.1 * reward for value, reward in zip(a, r, strict=True)]
            b = [max(0.0, 0.9 * value + reward) for value, reward in zip(b, r, strict=True)]
        positive = [max(0.0, value) for value in a]
        p = [value / sum(positive) if sum(positive) else 0.2 for value in positive]
        assert paper.probabilities.tolist() == pytest.approx(p, abs=1e-12)
        q = [0.7 * value / sum(b) + 0.06 if sum(b) else 0.2 for value in b]
        assert code.probabilities.tolist() == pytest.approx(q, abs=1e-12)


def test_average_is_uniform_where_no_answer_lags() -> None:
    objective = AVGL(warmup=0, loss=given_losses)
    for _ in range(3):
        objective(answers(1.0, 2.0, 3.0), LABELS)
    assert objective.probabilities is not None
    assert objective.probabilities.tolist() == pytest.approx([1 / 3] * 3)


@pytest.mark.parametrize("kind", [EXP3, RWM, AVGL])
def test_nothing_is_learned_during_warmup(kind: Any) -> None:
    objective = kind(warmup=4, loss=given_losses)
    for step in range(6):
        objective(numbers(step, 3), LABELS)
        uniform = objective.probabilities.tolist() == pytest.approx([1 / 3] * 3, abs=1e-15)
        assert uniform == (step < 4)


@pytest.mark.parametrize("kind", [EXP3, RWM])
def test_a_lagging_answer_is_drawn_more(kind: Any) -> None:
    objective = kind(warmup=0, loss=given_losses)
    for _ in range(300):
        objective(answers(1.0, 1.0, 0.5, 0.5), LABELS)
    p = objective.probabilities.tolist()
    assert p[1] > 0.5, "the second lags furthest behind the next"
    assert p[3] > p[0]
    assert min(p) >= 0.3 / 4


@settings(deadline=None, max_examples=30)
@given(st.sampled_from(ALL), st.integers(1, 12), st.lists(st.floats(0, 1e6), min_size=12, max_size=12))
def test_probabilities_are_probabilities(kind: Any, steps: int, values: list[float]) -> None:
    objective = kind(loss=given_losses, **at_once(kind))
    for shift in range(4):
        losses = torch.tensor([*values[shift:], *values[:shift]][:steps])[:, None, None]
        objective(losses, LABELS)
        p = objective.probabilities
        assert (p >= 0).all()
        assert p.sum().item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("stop", [0, 1, 7])
def test_resumed_training_is_the_same(kind: Any, stop: int) -> None:
    arguments = {"loss": given_losses, "seed": 3} | ({} if kind in (AANN, Milestone) else {"warmup": 2})
    whole, first, second = (kind(**arguments) for _ in range(3))
    expected = [weights_of(whole, numbers(step, 6)) for step in range(14)]
    for step in range(stop):
        weights_of(first, numbers(step, 6))
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second.load_state_dict(torch.load(file, weights_only=True))
    for step in range(stop, 14):
        assert torch.equal(weights_of(second, numbers(step, 6)), expected[step])
    assert torch.equal(second.probabilities, whole.probabilities)


def test_cross_entropy_by_default() -> None:
    torch.manual_seed(0)
    logits, target = torch.randn(5, 4, 3, dtype=torch.float64), torch.arange(4) % 3
    base = sieve(5)
    base[-1] += 0.5 * sum(base)
    for smoothing in (0.0, 0.1):
        expected = Weighted(base, smoothing)(logits, target)
        torch.testing.assert_close(AANN(label_smoothing=smoothing)(logits, target), expected, rtol=0, atol=1e-12)


def test_learning_from_half_precision_uses_float32() -> None:
    objective = RWM(warmup=0, loss=given_losses)
    for step in range(3):
        objective(numbers(step, 4).to(torch.bfloat16), LABELS)
    assert objective.values is not None
    assert objective.values.dtype == torch.float32


def test_on_the_command_line() -> None:
    base = ["--model", "anytimenet", "--data", "digits"]
    for name, kind in {"aann": AANN, "exp3": EXP3, "RWM": RWM, "avgl": AVGL, "milestone": Milestone}.items():
        config = parse([*base, "--objective", name, "--objective.weights", "exponential:2", "--objective.tau", "1"])[
            "objective"
        ]
        objective: Any = find("objective", config["class_path"])(**config["init_args"])
        assert type(objective) is kind
        assert (objective.weights, objective.tau) == ("exponential:2", 1.0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AANN(tau=-1), r"tau must lie in \[0, inf\), got -1"),
        (lambda: AANN(tau=math.inf), r"tau must lie in \[0, inf\), got inf"),
        (lambda: AANN("seive"), "unknown weights 'seive'; did you mean 'sieve'"),
        (lambda: AANN([0.0, 0.0]), "weights must be at least 0 and not all 0"),
        (lambda: AANN(normalize="all"), "normalize must be 'none', 'sum' or 'last', got 'all'"),  # type: ignore[arg-type]
        (lambda: EXP3(gamma=0), r"gamma must lie in \(0, 1\], got 0"),
        (lambda: RWM(gamma=1.5), r"gamma must lie in \(0, 1\], got 1.5"),
        (lambda: AVGL(gamma=-0.1), r"gamma must lie in \[0, 1\], got -0.1"),
        (lambda: EXP3(eta=1.1), r"eta must lie in \[0, 1\], got 1.1"),
        (lambda: EXP3(warmup=-1), "warmup must be at least 0 steps, got -1"),
        (lambda: AVGL(momentum=1), r"momentum must lie in \[0, 1\), got 1"),
        (lambda: AVGL(rule="both"), "rule must be 'paper' or 'code', got 'both'"),  # type: ignore[arg-type]
    ],
)
def test_wrong_arguments(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_another_number_of_answers() -> None:
    objective = EXP3(warmup=0, loss=given_losses)
    for _ in range(2):
        objective(numbers(0, 4), LABELS)
    with pytest.raises(ValueError, match="this objective has learned from 4 answers, got 3"):
        objective(numbers(0, 3), LABELS)
