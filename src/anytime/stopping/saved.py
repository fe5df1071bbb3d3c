"""Fitted rules that belong to a model: kept in its `info`, so saved, loaded and published with it as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from anytime.combine import Caching, Combiner, Last, Mixture, Product, combiner
from anytime.model import AnytimeModel
from anytime.stopping.rules import Never, Rule
from anytime.support.names import nearest

_SIMPLE = (Last.kind, Caching.kind, Product.kind)  # combiners that need no fitting


@dataclass(frozen=True)
class Fitted:
    """A stopping rule, with the combiner whose answers it was fitted to.

    Attributes:
        stop: The rule.
        combine: The combiner.
        facts: JSON-able facts: what it was fitted to, on which data, what it gave on others.
    """

    stop: Rule = field(default_factory=Never)
    combine: Combiner = field(default_factory=Last)
    facts: Mapping[str, Any] = field(default_factory=dict)


def keep(model: AnytimeModel, name: str, fitted: Fitted) -> None:
    """Makes a fitted rule known to a model under a name; `model.save` writes it into `config.json`.

    Raises:
        ValueError: Thresholds that were never fitted, or fitted to another number of steps.

    Example:
        >>> keep(model, "half", Fitted(best_thresholds(trace, 0.5 * float(trace.macs[-1])).rule))
        >>> model.save("runs/mine")
        >>> Predictor(anytime.load("runs/mine"), stop="half")
    """
    fitted.stop.start(model.num_steps)
    fitted.combine.start(model.num_steps)
    values = {"stop": fitted.stop.to_dict(), "combine": fitted.combine.to_dict(), "facts": dict(fitted.facts)}
    model.info.rules = {**model.info.rules, name: values}


def kept(model: AnytimeModel) -> dict[str, Fitted]:
    """The fitted rules that a model knows, by name.

    Raises:
        ValueError: One of them is damaged; names it.
    """
    return {name: _read(name, values) for name, values in model.info.rules.items()}


def _read(name: str, values: Any) -> Fitted:
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
    """Rule and combiner, of which either may be the name of one saved with the model.

    Args:
        model: Knows what was fitted to it, see `keep`.
        stop: A rule, the name of a saved one, or None for none.
        combine: A combiner, a simple one's name, the name of a saved one ("temperature"), or None: the one that the saved
            rule was fitted to, and else the last answer.
        macs: Cumulative MACs of the steps, the weights of "mixture".

    Raises:
        ValueError: A rule that was never fitted to this model or to other answers than `combine` gives, an unknown name.
    """
    saved: Mapping[str, Any] = model.info.rules
    fitted = None
    if isinstance(stop, str):
        if stop not in saved:
            raise ValueError(_never_fitted(stop, saved))
        fitted = _read(stop, saved[stop])
        stop = fitted.stop
    if combine is None:
        return stop, fitted.combine if fitted else Last()
    if isinstance(combine, str):
        simple = combine in _SIMPLE or (combine == Mixture.kind and macs is not None)
        combine = combiner(combine, macs) if simple or combine not in saved else _read(combine, saved[combine]).combine
    if fitted is not None and combine != fitted.combine:
        raise ValueError(
            f"the saved rule was fitted to the answers of {fitted.combine!r}, not of {combine!r}: leave combine out, "
            "or fit the rule again with that combiner"
        )
    return stop, combine


def _never_fitted(name: str, saved: Mapping[str, Any]) -> str:
    known = f"saved with this model: {', '.join(saved)}" if saved else "no rules are saved with this model"
    if name in Rule.kinds or not saved:
        hint = "" if name in Rule.kinds else nearest(name, Rule.kinds)
        return (
            f"the rule {name!r} was never fitted to this model ({known}){hint}; fit it with `anytime fit`, "
            "or give a rule with its values, such as Confidence(0.8)"
        )
    return f"unknown rule {name!r}{nearest(name, [*saved, *Rule.kinds])}"
