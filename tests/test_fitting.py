"""`anytime fit`: goals as typed, and the rules fitted to them."""

from dataclasses import replace

import pytest
import torch

from anytime.combine import Last, Temperature, fit_temperatures
from anytime.stopping import Never, certified, mean_loss, measure
from anytime.stopping.fitting import Goal, fit_rule, unspent
from anytime.support.units import parse_budget
from anytime.trace import Trace


def make(seed: int, samples: int = 600) -> Trace:
    """Logits that grow towards the label; MACs 100 200 300, as many microseconds."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(4, (samples,), generator=generator)
    logits = torch.randn(3, samples, 4, generator=generator)
    logits[:, torch.arange(samples), labels] += torch.rand(samples, generator=generator) * torch.tensor([[2.0], [4.0], [6.0]])
    macs = torch.tensor([100, 200, 300])
    return Trace(logits, labels, macs, None, macs.double() / 1e6, tuple("abcd"), meta={"dataset": "made", "groups": None})


VALIDATION, TEST = make(0), make(1)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        *[("50%", (150.0, "macs")), ("40M", (4e7, "macs")), ("1.2 G", (1.2e9, "macs")), (".5k", (500.0, "macs"))],
        *[("2ms", (0.002, "seconds")), ("800us", (0.0008, "seconds")), ("0.5s", (0.5, "seconds"))],
    ],
)
def test_budgets_with_units(text: str, wanted: tuple) -> None:
    assert parse_budget(text, 300.0) == (pytest.approx(wanted[0]), wanted[1])


@pytest.mark.parametrize("text", ["", "50", "half", "-5%", "nan%", "5 m"])
def test_bad_budgets(text: str) -> None:
    with pytest.raises(ValueError, match="--budget must be a mean cost like 50%, 40M"):
        parse_budget(text, 300.0)


def test_impossible_goals() -> None:
    with pytest.raises(ValueError, match=r"at least the cost of the first step, 33.3% of all MACs, got '20%'"):
        Goal.of("confidence", "20%", None, None, None, VALIDATION)
    with pytest.raises(ValueError, match=r"at least the cost of the first step, 0.1ms, got '50us'"):
        Goal.of("confidence", "50us", None, None, None, VALIDATION)
    with pytest.raises(ValueError, match=r"counts MACs: give --budget 50% or 40M, got '2ms'"):
        Goal.of("budgeted", "2ms", None, None, None, VALIDATION)


@pytest.mark.parametrize("method", ["confidence", "budgeted"])
@pytest.mark.parametrize("combine", ["last", "product", "mixture", "temperature"])
def test_a_budget_is_kept_on_validation_and_measured_on_test(method: str, combine: str) -> None:
    fitted = fit_rule(VALIDATION, TEST, combine, Goal.of(method, "60%", None, None, None, VALIDATION))
    assert measure(fitted.stop, VALIDATION, fitted.combine).macs <= 180 + 1e-6
    outcome = measure(fitted.stop, TEST, fitted.combine)
    assert fitted.facts["test_accuracy"] == outcome.accuracy
    assert fitted.facts["test_macs"] == outcome.macs == pytest.approx(180, rel=0.1)
    assert fitted.facts["test_loss"] == mean_loss(TEST, fitted.stop, fitted.combine)
    assert fitted.combine.kind == combine


def test_a_budget_in_seconds() -> None:
    fitted = fit_rule(VALIDATION, TEST, "last", Goal.of("confidence", "0.18ms", None, None, None, VALIDATION))
    assert fitted.stop == fit_rule(VALIDATION, TEST, "last", Goal.of("confidence", "60%", None, None, None, VALIDATION)).stop


def test_a_guarantee_is_calibrated_on_images_that_the_temperatures_never_saw() -> None:
    goal = Goal.of("confidence", None, 0.05, 0.9, None, VALIDATION)
    assert fit_rule(VALIDATION, TEST, "last", goal).stop == certified(VALIDATION, 0.05, 1 - 0.9, combiner=Last()).rule
    fitted = fit_rule(VALIDATION, TEST, "temperature", goal)
    assert fitted.facts["fitted_on"] == 300
    assert isinstance(fitted.combine, Temperature)
    assert mean_loss(TEST, fitted.stop, fitted.combine) < 0.08
    assert fit_rule(VALIDATION, TEST, "last", goal._replace(sure=None)).stop != Never()


def test_the_temperatures_and_a_guarantee_share_no_group() -> None:
    groups = [n // 10 for n in range(600)]
    declared = replace(VALIDATION, meta=VALIDATION.meta | {"groups": groups})
    goal = Goal.of("confidence", None, 0.1, 0.8, None, declared)
    fitted = fit_rule(declared, TEST, "temperature", goal)
    assert (fitted.facts["fitted_on"], fitted.facts["groups"]) == (300, 30)
    odd = torch.tensor(groups) % 2 == 1
    half = replace(VALIDATION, logits=VALIDATION.logits[:, ~odd], labels=VALIDATION.labels[~odd])
    assert fitted.combine == fit_temperatures(half)
    assert fit_rule(declared, TEST, "last", goal).facts["groups"] == 60
    assert "groups" not in fit_rule(declared, TEST, "last", Goal.of("confidence", "60%", None, None, None, declared)).facts


def test_prices() -> None:
    free = fit_rule(VALIDATION, TEST, "last", Goal.of("value", None, None, None, 0.0, VALIDATION))
    dear = fit_rule(VALIDATION, TEST, "last", Goal.of("value", None, None, None, 5.0, VALIDATION))
    assert free.facts["test_macs"] > 200
    assert dear.facts["test_macs"] == 100
    assert dear.facts["price"] == 5.0 / 300


def test_without_a_rule_only_the_combiner_is_fitted() -> None:
    fitted = fit_rule(VALIDATION, TEST, "temperature", Goal.of(None, None, None, None, None, VALIDATION))
    assert fitted.stop == Never()
    assert fitted.combine == Temperature(fitted.combine.temperatures)


@pytest.mark.parametrize("share", [0.4, 0.5, 0.7, 0.9, 1.0])
@pytest.mark.parametrize("method", ["confidence", "budgeted"])
def test_a_rule_spends_its_budget_or_says_why_not(method: str, share: float) -> None:
    goal = Goal.of(method, f"{share:.0%}", None, None, None, VALIDATION)
    outcome = measure(fit_rule(VALIDATION, TEST, "last", goal).stop, VALIDATION)
    why = unspent(goal, outcome, VALIDATION)
    assert (why is None) == (outcome.macs >= 0.98 * 300 * share)
    if why is not None:
        assert why.startswith(f"the rule spends {outcome.macs / (300 * share):.1%} of the budget on the validation images: ")


def test_why_a_budget_is_not_spent() -> None:
    goal = Goal.of("confidence", "150%", None, None, None, VALIDATION)
    outcome = measure(Never(), VALIDATION)
    assert unspent(goal, outcome, VALIDATION) == (
        "the rule spends 66.7% of the budget on the validation images: all steps cost only 66.7% of it"
    )
    worse = replace(VALIDATION, logits=VALIDATION.logits.flip(0))  # the first answer is the best
    goal = Goal.of("confidence", "80%", None, None, None, worse)
    why = unspent(goal, measure(fit_rule(worse, TEST, "last", goal).stop, worse), worse)
    assert why is not None
    assert why.endswith("no thresholds were found that spend more and are more accurate there")
    few = replace(VALIDATION, logits=VALIDATION.logits[:, :4], labels=VALIDATION.labels[:4])
    goal = Goal.of("budgeted", "60%", None, None, None, few)
    why = unspent(goal, measure(fit_rule(few, TEST, "last", goal).stop, few), few)
    assert why is not None
    assert why.endswith("its exit shares are rounded to whole images, and images of equal confidence leave together")
