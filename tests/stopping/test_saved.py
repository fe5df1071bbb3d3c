"""Rules saved with the model that they were fitted to."""

import json
import math
from pathlib import Path

import pytest
import torch

import anytime
from anytime import Predictor
from anytime.combine import Caching, Last, Mixture, Product, Temperature
from anytime.stopping import (
    AllOf,
    Confidence,
    Deadline,
    Entropy,
    Fitted,
    MacBudget,
    Margin,
    Never,
    Patience,
    Rule,
    best_thresholds,
    conformal,
    mean_loss,
    measure,
    resolve,
    save_rule,
    saved_rules,
    value_of_computation,
)

X = torch.rand(3, 3, 8, 8)


def tiny():
    torch.manual_seed(0)
    return anytime.create_model("anytimenet", blocks=(2, 2, 1), scheme=((1, 1, 1), (1, 0, 0), (0, 1, 0)), width=4).eval()


RULES = [
    Fitted(Confidence([0.123456789, float("inf"), 0.0]), Product([0.1, 0.2, 0.3]), {"budget": 12.5}),
    Fitted(AllOf((Patience(2), MacBudget(5e6))), Mixture([1, 2, 3])),
    Fitted(Never(), Temperature([0.5, 1.5, 2.5], Caching())),
]


@pytest.mark.parametrize("fitted", RULES)
def test_a_rule_comes_back_exactly_with_the_model(fitted: Fitted, tmp_path: Path) -> None:
    model = tiny()
    save_rule(model, "mine", fitted)
    save_rule(model, "other", Fitted(Confidence(0.5)))
    model.save(tmp_path)
    json.loads((tmp_path / "config.json").read_text(), parse_constant=pytest.fail)  # infinity is not valid JSON
    again = saved_rules(anytime.load(tmp_path))
    assert list(again) == ["mine", "other"]
    assert again["mine"] == fitted
    assert again["other"] == Fitted(Confidence(0.5), Last())


def test_rules_fitted_on_a_trace_are_used_by_name(make_trace, tmp_path: Path) -> None:
    model, trace = tiny(), make_trace(300, steps=3, classes=10)
    for name, outcome in {
        "half": best_thresholds(trace, 0.5 * float(trace.macs[-1]), combiner=Product()),
        "safe": conformal(trace, 0.05, combiner=Product()),
        "worth": value_of_computation(trace, 1e-4, combiner=Product()),
    }.items():
        save_rule(model, name, Fitted(outcome.rule, Product()))
    model.save(tmp_path)
    loaded = anytime.load(tmp_path)
    for name, fitted in saved_rules(model).items():
        got, want = Predictor(loaded, stop=name)(X), Predictor(model, stop=fitted.stop, combine="product")(X)
        assert torch.equal(got.steps, want.steps)
        assert torch.equal(got.probabilities, want.probabilities)


def test_the_combiner_belongs_to_the_rule() -> None:
    model = tiny()
    save_rule(model, "warm", Fitted(Confidence(0.5), Temperature([2.0, 2.0, 2.0])))
    rule, combine = resolve(model, "warm")
    assert (rule, combine) == (Confidence(0.5), Temperature([2.0, 2.0, 2.0]))
    assert resolve(model, "warm", "warm") == (rule, combine)
    assert resolve(model, None, "warm") == (None, combine)
    assert resolve(model) == (None, Last())
    assert resolve(model, None, "mixture", [1, 2, 3]) == (None, Mixture([1, 2, 3]))
    with pytest.raises(ValueError, match=r"fitted to the answers of Temperature\(.*, not of Product\(.*leave combine out"):
        Predictor(model, stop="warm", combine="product")


def test_names_of_simple_combiners_mean_what_they_say() -> None:
    model = tiny()
    save_rule(model, "last", Fitted(Never(), Caching()))
    assert resolve(model, None, "last") == (None, Last())


def test_rules_that_were_never_fitted_have_clear_errors() -> None:
    model = tiny()
    message = r"'confidence' was never fitted to this model \(no rules are saved.*`anytime fit`, .*'confidence=0.8'"
    with pytest.raises(ValueError, match=message):
        Predictor(model, stop="confidence")
    with pytest.raises(ValueError, match=r"unknown rule 'confidenc' \(no rules are saved.*\); did you mean 'confidence'"):
        Predictor(model, stop="confidenc")
    with pytest.raises(ValueError, match="threshold of 'confidence' was never fitted"):
        Predictor(model, stop=Confidence())
    with pytest.raises(ValueError, match="threshold of 'confidence' was never fitted"):
        save_rule(model, "no", Fitted(Confidence()))
    with pytest.raises(ValueError, match="'temperature' is fitted on a validation trace"):
        Predictor(model, combine="temperature")
    with pytest.raises(ValueError, match="fitted to 2 steps, the model has 3"):
        Predictor(model, stop=Confidence([0.5, 0.5]))
    with pytest.raises(ValueError, match="fitted to 2 steps, the model has 3"):
        save_rule(model, "no", Fitted(Confidence([0.5, 0.5])))
    save_rule(model, "half", Fitted(Confidence(0.5)))
    with pytest.raises(ValueError, match=r"'margin' was never fitted to this model \(saved with this model: half\)"):
        Predictor(model, stop="margin")
    with pytest.raises(ValueError, match=r"unknown rule 'halv' \(saved with this model: half\); did you mean 'half'"):
        Predictor(model, stop="halv")
    save_rule(model, "confidence", Fitted(Confidence(0.5)))
    with pytest.raises(ValueError, match="unknown rule 'qqq'") as caught:
        Predictor(model, stop="qqq")
    assert str(caught.value).count("confidence,") == 1


@pytest.mark.parametrize("damage", [{"stop": {"kind": "evil"}}, {"stop": 3}, {}, {"stop": {"kind": "confidence", "x": 1}}, 5])
def test_damage_is_named(damage) -> None:
    model = tiny()
    model.info.rules = {"half": damage}
    with pytest.raises(ValueError, match="the rule 'half' that was saved with the model is damaged"):
        Predictor(model, stop="half")
    assert Predictor(model).model is model


def test_mean_loss_by_hand(from_probabilities) -> None:
    right, wrong = [0.1, 0.9], [0.9, 0.1]
    trace = from_probabilities([[wrong, right, right, wrong], [right, right, wrong, wrong]], labels=[1] * 4, macs=[1, 2])
    assert mean_loss(trace, Confidence(0.5)) == 0.25  # only the first sample: the third improved by stopping
    assert mean_loss(trace, Never()) == 0
    assert measure(Confidence(0.5), trace).accuracy == 0.5


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("confidence=0.9", Confidence(0.9)),
        (" margin = .5 ", Margin(0.5)),
        ("entropy=1e-1", Entropy(0.1)),
        ("patience=3", Patience(3)),
        ("confidence=inf", Confidence(math.inf)),
    ],
)
def test_a_rule_and_its_number_are_given_as_text(text: str, rule: Rule) -> None:
    model = tiny()
    assert resolve(model, text)[0] == rule
    assert Predictor(model, stop=text)._rule == rule
    save_rule(model, text, Fitted(Never()))  # a saved rule of that name comes first
    assert resolve(model, text)[0] == Never()


def test_budgets_in_text_may_have_units() -> None:
    assert resolve(tiny(), "deadline=5ms")[0] == Deadline(0.005) == resolve(tiny(), "deadline=0.005")[0]
    assert resolve(tiny(), "mac_budget=20M")[0] == MacBudget(20e6)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("confidenc=0.9", "did you mean 'confidence'"),
        ("confidence=", "confidence=VALUE needs a number, got ''"),
        ("confidence=high", "confidence=VALUE needs a number, got 'high'"),
        ("confidence=5ms", "confidence=VALUE needs a number, got '5ms'"),
        ("deadline=50%", "deadline=VALUE needs a number or a time such as 5ms, got '50%'"),
        ("mac_budget=50%", "mac_budget=VALUE needs a number or an amount such as 20M, got '50%'"),
        ("mac_budget=5ms", "needs a number or an amount such as 20M, got '5ms'"),
        ("confidence=2", "never stop; got 2"),
        ("confidence=nan", "must be at least 0"),
        ("patience=0.5", "whole number of steps"),
        ("never=1", "'never' is not made from one number, got 'never=1'"),
        ("all=1", "'all' is not made from one number"),
        ("confidence_bands=1", "'confidence_bands' is not made from one number"),
        ("recurrent=1", "'recurrent' is not made from one number"),
    ],
)
def test_text_that_is_no_rule(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Predictor(tiny(), stop=text)
