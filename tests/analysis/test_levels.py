"""Every metric on a trace with several label levels: right per level, or an error."""

import importlib
import inspect
import pkgutil

import pytest
import torch

from anytime import analysis
from anytime.analysis import summary
from anytime.combine import fit_temperatures

ANY = {"level_accuracies", "level_errors", "costs", "measured_costs", "macs_saved", "cost_at_error"}
ANY |= {"require_features", "similarity"}  # of features and activations, whatever the labels


def metrics():
    """The public functions of `anytime.analysis` that need nothing but a trace."""
    modules = [
        importlib.import_module(f"anytime.analysis.{module.name}") for module in pkgutil.iter_modules(analysis.__path__)
    ]
    for module in modules:
        for name, function in inspect.getmembers(module, inspect.isfunction):
            parameters = list(inspect.signature(function).parameters.values())
            required = [p.name for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
            if function.__module__ == module.__name__ and required == ["trace"] and not name.startswith("_"):
                yield function


METRICS = {function.__name__: function for function in metrics()}


def test_the_metrics_are_found():
    assert {"accuracy", "threshold_curve", "ece", "per_class", "summary", "speed_accuracy", "largest_drop"} <= METRICS.keys()
    assert len(METRICS) > 20


@pytest.mark.parametrize("name", sorted(METRICS.keys() - ANY))
def test_a_metric_of_one_level_needs_a_choice(levels, name):
    with pytest.raises(ValueError, match=r"2 label levels of \(3, 2\) classes; pick one: trace.level\(0\)"):
        METRICS[name](levels)


def test_metrics_with_more_arguments_need_a_choice(levels):
    with pytest.raises(ValueError, match="pick one"):
        summary.comparison({"one": levels})
    with pytest.raises(ValueError, match="pick one"):
        fit_temperatures(levels)


def test_metrics_by_level(levels):
    accuracies = METRICS["level_accuracies"](levels)
    for level in (0, 1):
        assert torch.equal(accuracies[:, level], METRICS["accuracy"](levels.level(level)))
