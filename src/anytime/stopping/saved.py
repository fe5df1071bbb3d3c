"""Fitted rules that belong to a model: stored in its `info`, and thus saved, loaded and published with it as JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from anytime.combine import Caching, Combiner, Last, Mixture, Product, combiner
from anytime.model import AnytimeModel
from anytime.stopping.rules import Never, Rule, rule
from anytime.support.names import nearest
from anytime.support.units import parse_budget

_SIMPLE = (Last.kind, Caching.kind, Product.kind)  # combiners that need no fitting


@dataclass(frozen=True)
class Fitted:
    """A stopping rule and the combiner to whose answers it was fitted.

    Attributes:
        stop: The rule.
        combine: The combiner.
        facts: JSON-able facts: the goal and data of the fit, and the outcome on other data.
    """

    stop: Rule = field(default_factory=Never)
    combine: Combiner = field(default_factory=Last)
    facts: Mapping[str, Any] = field(default_factory=dict)


def save_rule(model: AnytimeModel, name: str, fitted: Fitted) -> None:
    """Adds a fitted rule to a model's `info` under a name; `model.save` writes it to `config.json`.

    Raises ValueError if thresholds were never fitted, or fitted to another number of steps.

    Example:
        >>> import anytime
        >>> from anytime.stopping import Confidence, Fitted, save_rule, saved_rules
        >>> model = anytime.create_model("anytimenet", width=4)
        >>> save_rule(model, "sure", Fitted(Confidence(0.9)))
        >>> saved_rules(model)["sure"].stop  # anytime.Predictor(model, stop="sure") stops by it
        Confidence(threshold=0.9)
    """
    _check_task(model, fitted.stop, fitted.combine)
    fitted.stop.start(model.num_steps)
    fitted.combine.start(model.num_steps)
    values = {"stop": fitted.stop.to_dict(), "combine": fitted.combine.to_dict(), "facts": dict(fitted.facts)}
    model.info.rules = {**model.info.rules, name: values}


def saved_rules(model: AnytimeModel) -> dict[str, Fitted]:
    """The fitted rules saved with a model, by name; raises ValueError that names a damaged one."""
    return {name: _read(model, name) for name in model.info.rules}


def _read(model: AnytimeModel, name: str) -> Fitted:
    values = model.info.rules[name]
    try:
        return Fitted(Rule.from_dict(values["stop"]), Combiner.from_dict(values["combine"]), values.get("facts", {}))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"the rule {name!r} that was saved with the model is damaged: {error}") from error


def resolve(
    model: AnytimeModel,
    stop: str | Rule | None = None,
    combine: str | Combiner | None = None,
    macs: Sequence[float] | None = None,
) -> tuple[Rule | None, Combiner]:
    """Rule and combiner; either may be the name of one saved with the model, the rule also text like `"confidence=0.9"`.

    Args:
        model: The model, with its saved rules (see `save_rule`).
        stop: A rule, the name of a saved one, a name and a number (`"patience=3"`), or None for none.
        combine: A combiner, the name of a simple or a saved one ("temperature"), or None: the one that the saved rule was
            fitted to, or the last answer.
        macs: Cumulative MACs of the steps, the weights of "mixture".

    Raises:
        ValueError: If a name is unknown, the rule was never fitted to this model, or it was fitted to the answers of another
            combiner than `combine`; or if the model is no classifier, but the rule or combiner needs probabilities.
        TypeError: If `stop` or `combine` is of another type.
    """
    if stop is not None and not isinstance(stop, str | Rule):
        raise TypeError(f"stop must be a rule, or text such as 'confidence=0.9', got {stop!r}")
    if combine is not None and not isinstance(combine, str | Combiner):
        raise TypeError(f"combine must be a combiner, or a name such as 'product', got {combine!r}")
    saved = model.info.rules
    fitted = None
    if isinstance(stop, str) and "=" in stop and stop not in saved:
        stop = rule_from_text(stop)
    elif isinstance(stop, str):
        if stop not in saved:
            raise ValueError(_never_fitted(stop, saved))
        fitted = _read(model, stop)
        stop = fitted.stop
    _check_task(model, stop, combine)
    if combine is None:
        return stop, fitted.combine if fitted else Last()
    if isinstance(combine, str):
        simple = combine in _SIMPLE or (combine == Mixture.kind and macs is not None)
        combine = combiner(combine, macs) if simple or combine not in saved else _read(model, combine).combine
    if fitted is not None and combine != fitted.combine:
        raise ValueError(
            f"the saved rule was fitted to the answers of {fitted.combine!r}, not of {combine!r}: leave combine out, "
            "or fit the rule again with that combiner"
        )
    return stop, combine


def _check_task(model: AnytimeModel, stop: Rule | None, combine: str | Combiner | None) -> None:
    """Raises ValueError if a rule or a combiner needs probabilities and the model, which is no classifier, has none."""
    task = model.info.task
    if task == "classification":
        return
    if combine not in (None, Last.kind, Last()):
        raise ValueError(f"combiners make probabilities, and a model of task {task!r} has none: leave out {combine!r}")
    if stop is not None and stop.reads_probabilities:
        raise ValueError(f"the rule {stop.kind!r} reads probabilities, and a model of task {task!r} has none")


def rule_from_text(text: str) -> Rule:
    """A rule from its name and the number that it is made with first; ValueError if it is no such text.

    Examples: `"confidence=0.9"`, `"deadline=5ms"`, `"mac_budget=20M"`.
    """
    name, _, value = (part.strip() for part in text.partition("="))
    if name not in Rule.kinds:
        return rule(name)  # raises an error with the nearest name
    number = _number(name, value)
    try:
        return Rule.kinds[name](number)
    except TypeError:
        raise ValueError(f"a rule {name!r} is not made from one number, got {text!r}") from None


def _number(name: str, value: str) -> float:
    """A number, or an amount with a unit where the rule reads that cost."""
    with suppress(ValueError):
        return int(value) if value.isdecimal() else float(value)
    example = {"seconds": " or a time such as 5ms", "macs": " or an amount such as 20M"}
    cost = getattr(Rule.kinds[name], "cost", "")
    with suppress(ValueError):
        amount, unit = parse_budget(value, math.nan)
        if unit == cost and not math.isnan(amount):
            return amount
    raise ValueError(f"{name}=VALUE needs a number{example.get(cost, '')}, got {value!r}")


def _never_fitted(name: str, saved: Mapping[str, Any]) -> str:
    known = f"saved with this model: {', '.join(saved)}" if saved else "no rules are saved with this model"
    if name not in Rule.kinds:
        return f"unknown rule {name!r} ({known}){nearest(name, [*saved, *Rule.kinds])}"
    return (
        f"the rule {name!r} was never fitted to this model ({known}); fit it with `anytime fit`, "
        "or give a rule with its value, such as 'confidence=0.8'"
    )
