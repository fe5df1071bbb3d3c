"""What a predictor does besides keeping time."""

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch

from anytime import Predictor, create_model
from anytime.combine import Product
from anytime.stopping import MacBudget

X = torch.rand(2, 3, 8, 8)


def tiny(**arguments):
    torch.manual_seed(0)
    return create_model("anytimenet", blocks=(2, 2, 2), scheme=(1, 1), width=4, **arguments)


def test_answers_are_those_of_the_model_in_eval_mode() -> None:
    model = tiny().train()
    predictor = Predictor(model)
    assert not model.training
    expected = model(X).softmax(2)
    for t, answer in enumerate(predictor.stream(X)):
        torch.testing.assert_close(answer.probabilities, expected[t])
        assert not answer.probabilities.requires_grad


def test_answers_are_combined() -> None:
    model = tiny()
    expected = Product()(model.eval()(X))
    for t, answer in enumerate(Predictor(model, combine="product").stream(X)):
        torch.testing.assert_close(answer.probabilities, expected[t])


def test_first_level_of_several() -> None:
    answer = Predictor(tiny(num_classes=(4, 2)))(X)
    assert answer.probabilities.shape == (2, 4)
    torch.testing.assert_close(answer.probabilities.sum(1), torch.ones(2))


def test_a_rule_that_counts_macs_needs_a_profile(timed_case: Callable) -> None:
    with pytest.raises(ValueError, match="needs macs: give Predictor a profile"):
        Predictor(tiny(), stop=MacBudget(100))
    clock, model, profile = timed_case([0.01] * 4)
    answer = Predictor(model, profile, stop=MacBudget(25), clock=clock)(torch.rand(1, 3, 2, 2))
    assert answer.macs.tolist() == [20]


def test_import_is_light() -> None:
    heavy = {"lightning", "matplotlib", "torchvision", "sklearn", "jsonargparse", "scipy", "timm", "torchmetrics"}
    code = f"import sys, anytime, anytime.runtime; print(sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300)
    assert done.stdout == "[]\n"
