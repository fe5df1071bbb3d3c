"""Logits that are NaN or infinite: the last finite answer stays, the reason says so, and no rule is satisfied by them."""

import math
import threading
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from anytime import Answer, AnytimeModel, Predictor, Profile
from anytime.combine import Caching, Combiner, Last, Mixture, Product, Temperature
from anytime.runtime.profile import BatchProfile, Latency, architecture, fingerprint
from anytime.stopping import Confidence, Deadline, Entropy, MacBudget, Margin, Patience, Rule, SelectionLatency

STEPS, CLASSES, SIZE = 5, 4, (3, 2, 2)
KINDS = {"NaN": math.nan, "infinity": math.inf, "all -infinity": -math.inf}
COMBINERS = [Last(), Caching(), Product(), Mixture([1, 2, 3, 4, 5]), Temperature([2.0] * STEPS, Caching())]
RULES: list[Rule | None] = [
    None,
    Confidence(0.7),
    Margin(0.4),
    Entropy(0.9),
    Patience(2),
    Patience(3),
    SelectionLatency(0.5, 2),
    Confidence(0.9) | Patience(3),
    Confidence(0.3) & Patience(2),
    Patience(3) | MacBudget(45),
]
AMPLE: list[Rule] = [  # with budgets that nothing exceeds
    Confidence(0.7) | Deadline(1e6),
    Confidence((0.9, 0.9, 0.3, 0, 0)) | MacBudget(1e9),
    Patience(1) | MacBudget(1e9),
    SelectionLatency(0.5, 2) | Deadline(1e6) | MacBudget(1e9),
    Confidence(0.7) & (Patience(2) | Deadline(1e6)),
]


class Broken(AnytimeModel):
    """Random logits for each image, or `value` at the steps `bad[n]`, where n is an image's number: its pixels times 100."""

    def __init__(self, bad: dict[int, set[int]], value: float = math.nan, levels: tuple[int, ...] | int = CLASSES) -> None:
        super().__init__(levels)
        self.num_steps, self.bad, self.value = STEPS, bad, value
        self.weight = torch.nn.Parameter(torch.zeros(1))
        random = torch.Generator().manual_seed(1)
        self.logits = 2 * torch.randn(8, STEPS, self.num_classes, generator=random)

    def initial_state(self, x: Tensor) -> tuple[int, Tensor]:
        return 0, (x[:, 0, 0, 0].float() * 100).round().long() % 8

    def step(self, state: tuple[int, Tensor]) -> tuple[Tensor, tuple[int, Tensor]]:
        state = self.advance(state)
        return self.read(state), state

    def advance(self, state: tuple[int, Tensor]) -> tuple[int, Tensor]:
        return state[0] + 1, state[1]

    def read(self, state: tuple[int, Tensor]) -> Tensor:
        step, numbers = state
        logits = self.logits[numbers, step - 1].clone()
        for row, number in enumerate(numbers.tolist()):
            if step in self.bad.get(number, ()):
                logits[row, slice(0, 1) if self.value > 0 else slice(None)] = self.value
        return logits


def images(*numbers: int) -> Tensor:
    return (torch.tensor(numbers) / 100)[:, None, None, None].expand(-1, *SIZE)


def measured(model: AnytimeModel) -> Profile:
    rows = (Latency.of([1e-6]),) * STEPS
    macs = tuple(range(10, 60, 10))
    return Profile(architecture(model), SIZE, fingerprint(model), {4: BatchProfile(rows, rows, rows)}, macs, macs)


def in_session(predictor: Predictor, x: Tensor) -> Answer:
    with predictor.session(x) as session:
        return session.wait(60)


WAYS: dict[str, Callable] = {
    "call": lambda predictor, x: predictor(x),
    "stream": lambda predictor, x: list(predictor.stream(x))[-1],
    "session": in_session,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("value", KINDS)
def test_the_last_finite_answer_is_kept_and_the_reason_says_so(value: str, lazy: bool, way: str) -> None:
    model = Broken({0: {3, 4, 5}}, KINDS[value])
    answer = WAYS[way](Predictor(model, measured(model), lazy_exits=lazy), images(0))
    torch.testing.assert_close(answer.probabilities, model.logits[:1, 1].softmax(1))
    assert (answer.steps.tolist(), answer.step, answer.missed) == ([2], 2, False)
    assert answer.not_finite[-1] == 5
    assert answer.reason.startswith("complete; step")
    assert answer.reason.endswith("NaN or infinite, so the last finite answer was kept")
    if not lazy:
        assert answer.not_finite == (3, 4, 5)
        assert answer.reason.startswith("complete; steps 3, 4, 5 were NaN")


def test_only_the_samples_concerned_keep_an_answer() -> None:
    model = Broken({1: {5}, 2: {1, 2, 3, 4, 5}})
    predictor = Predictor(model, measured(model), prior=torch.tensor([0.7, 0.1, 0.1, 0.1]))
    answer = predictor(images(0, 1, 2))
    assert answer.steps.tolist() == [5, 4, -1]
    assert answer.macs.tolist() == [50] * 3  # spent all the same
    expected = [model.logits[0, 4].softmax(0), model.logits[1, 3].softmax(0), torch.tensor([0.7, 0.1, 0.1, 0.1])]
    torch.testing.assert_close(answer.probabilities, torch.stack(expected))
    lazy = Predictor(model, measured(model), prior=torch.tensor([0.7, 0.1, 0.1, 0.1]), lazy_exits=True)(images(0, 1, 2))
    torch.testing.assert_close(lazy.probabilities, answer.probabilities)
    assert lazy.steps.tolist() == [5, 4, -1]


def test_a_contract_answer_that_is_not_finite_is_the_prior() -> None:
    model = Broken({1: {5}})
    answer = Predictor(model, measured(model))(images(0, 1), contract=True)
    assert answer.steps.tolist() == [5, -1]
    torch.testing.assert_close(answer.probabilities[1], torch.full((CLASSES,), 0.25))
    assert answer.reason == "complete; step 5 was NaN or infinite, so the last finite answer was kept"


def test_a_finite_answer_after_a_nan_counts_again() -> None:
    model = Broken({0: {2, 3}})
    answers = list(Predictor(model).stream(images(0)))
    assert [answer.step for answer in answers] == [1, 1, 1, 4, 5]
    assert [answer.reason for answer in answers[:-1]] == [""] * 4
    assert answers[-1].reason == "complete; steps 2, 3 were NaN or infinite, so the last finite answer was kept"
    torch.testing.assert_close(answers[-1].probabilities, model.logits[:1, 4].softmax(1))


def test_an_interrupted_session_says_so() -> None:
    model = Broken({0: {2}})
    began, go, inner = threading.Event(), threading.Event(), model.step

    def step(state: tuple[int, Tensor]) -> tuple[Tensor, tuple[int, Tensor]]:
        if state[0] == 1:
            began.set()
            assert go.wait(10)
        return inner(state)

    model.step = step
    with Predictor(model).session(images(0)) as session:
        assert began.wait(10)
        session.interrupt()
        go.set()
        answer = session.wait(10)
    assert answer.step == 1
    assert answer.reason == "interrupted; step 2 was NaN or infinite, so the last finite answer was kept"
    torch.testing.assert_close(answer.probabilities, model.logits[:1, 0].softmax(1))


def test_half_precision_that_overflows() -> None:
    class Growing(Broken):
        def read(self, state: tuple[int, Tensor]) -> Tensor:
            return self.logits[state[1], 0].half() * torch.tensor(20.0 ** state[0]).half()

    answer = Predictor(Growing({}).half())(images(0).half())
    assert answer.step == 3
    assert answer.not_finite == (4, 5)
    assert not answer.probabilities.isnan().any()


def test_one_label_level_that_is_not_finite_keeps_the_answer_in_all() -> None:
    model = Broken({0: {4, 5}}, math.inf, levels=(3, 2))  # infinity in the first level only
    answer = Predictor(model)(images(0, 1))
    assert answer.steps.tolist() == [3, 5]
    for level, part in zip(answer.levels, model.logits[:2].split((3, 2), 2), strict=True):
        torch.testing.assert_close(level, torch.stack([part[0, 2].softmax(0), part[1, 4].softmax(0)]))


PATTERNS = st.lists(st.sets(st.integers(1, STEPS)), min_size=4, max_size=4)


@settings(deadline=None, max_examples=60)
@given(rule=st.sampled_from(RULES), combine=st.sampled_from(COMBINERS), bad=PATTERNS, value=st.sampled_from(sorted(KINDS)))
def test_every_sample_is_answered_as_if_alone(rule: Rule | None, combine: Combiner, bad: list[set[int]], value: str) -> None:
    model = Broken(dict(enumerate(bad)), KINDS[value])
    predictor = Predictor(model, measured(model), combine, rule)
    answer = predictor(images(0, 1, 2, 3))
    assert not answer.probabilities.isnan().any()
    torch.testing.assert_close(answer.probabilities.sum(1), torch.ones(4))
    for number in range(4):
        alone = predictor(images(number))
        assert (alone.steps, alone.macs) == (answer.steps[number], answer.macs[number])
        torch.testing.assert_close(alone.probabilities[0], answer.probabilities[number])
        if alone.reason.startswith("stopped") and rule is not None and not rule.needs:
            assert alone.macs == 10 * alone.steps  # it stopped at a finite answer


@settings(deadline=None, max_examples=60)
@given(rule=st.sampled_from(RULES[1:9] + AMPLE), combine=st.sampled_from(COMBINERS[:3]), bad=PATTERNS)
def test_steps_that_are_not_finite_do_not_exist_for_rules_and_combiners(
    rule: Rule, combine: Combiner, bad: list[set[int]]
) -> None:
    """As a network without these steps, each step in its own place."""
    model = Broken(dict(enumerate(bad)))
    for number, steps in enumerate(bad):
        found = Predictor(model, measured(model), combine, rule)(images(number))
        state, memory, expected = combine.start(STEPS), rule.start(STEPS), (-1, torch.full((1, CLASSES), 0.25))
        for step in sorted({*range(1, STEPS + 1)} - steps):
            probabilities, state = combine.update(state, model.logits[number : number + 1, step - 1], step)
            expected = step, probabilities
            if step < STEPS:
                stop, memory = rule.update(memory, step, probabilities, 0.0, 0.0)
                if stop:
                    break
        assert found.step == expected[0]
        torch.testing.assert_close(found.probabilities, expected[1])


def test_patience_is_not_satisfied_by_nan() -> None:
    model = Broken({0: {2, 3, 4, 5}})
    assert int(model.logits[0, 0].argmax()) == int(Predictor(model)(images(0)).label)
    answer = Predictor(model, stop=Patience(2))(images(0))
    assert answer.step == 1
    assert answer.reason.startswith("complete; steps 2, 3, 4, 5")


@pytest.mark.parametrize(
    "rule", [Confidence(0.9) | Deadline(1e6), Patience(1) | MacBudget(1e9), Confidence(0.2) & MacBudget(15)]
)
def test_a_prior_satisfies_no_part_of_a_combined_rule(rule: Rule) -> None:
    model = Broken({0: {1, 2, 3, 4, 5}})
    prior = torch.tensor([0.97, 0.01, 0.01, 0.01])
    answer = Predictor(model, measured(model), stop=rule, prior=prior)(images(0))
    assert (answer.step, answer.macs.tolist()) == (-1, [50])
    assert answer.reason.startswith("complete; steps 1, 2, 3, 4, 5")


def test_the_last_frames_answer_satisfies_no_rule() -> None:
    model = Broken({1: {1}})
    model.logits[0], model.logits[1] = torch.tensor([9.0, 0, 0, 0]), torch.tensor([0, 9.0, 0, 0])
    predictor = Predictor(model, measured(model), stop=Confidence(0.9) | Deadline(1e6))
    first = predictor(images(0))
    second = predictor(images(1), prior=first)
    assert (first.step, second.step) == (1, 2)
    assert (int(first.label), int(second.label)) == (0, 1)


def test_a_budget_is_kept_without_a_finite_answer() -> None:
    model = Broken({0: {1, 2, 3, 4, 5}})
    for rule in (MacBudget(25), Patience(4) | MacBudget(25), Patience(4) | (MacBudget(25) & MacBudget(15))):
        answer = Predictor(model, measured(model), stop=rule)(images(0))
        assert (answer.step, answer.macs.tolist()) == (-1, [20])
        assert answer.reason.startswith("stopped; steps 1, 2 were NaN")


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_with_several_steps_in_flight(depth: int) -> None:
    model = Broken({0: {2, 5}, 1: {1, 4, 5}})
    predictor = Predictor(model)
    predictor._depth = depth
    assert [answer.steps.tolist() for answer in predictor.stream(images(0, 1))] == [[1, -1], [1, 2], [3, 3], [4, 3], [4, 3]]


def test_answers_share_nothing_with_the_computation() -> None:
    model = Broken({})
    for combine in COMBINERS:
        predictor = Predictor(model, combine=combine)
        expected = [answer.probabilities.clone() for answer in predictor.stream(images(0, 1))]
        with torch.inference_mode():
            for answer, want in zip(predictor.stream(images(0, 1)), expected, strict=True):
                assert torch.equal(answer.probabilities, want)
                answer.probabilities.fill_(math.nan)
                answer.steps.fill_(9)
