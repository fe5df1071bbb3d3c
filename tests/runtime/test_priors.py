"""What users give as a prior: tensors, arrays and lists, all of them checked."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from anytime import Predictor
from anytime.runtime.prior import Priors, probabilities

X = torch.full((1, 3, 2, 2), 0.5)
GIVEN = [0.5, 0.125, 0.125, 0.25, 0.0]
TAKEN = [
    torch.tensor(GIVEN),
    torch.tensor(GIVEN, dtype=torch.float64),
    torch.tensor(GIVEN, dtype=torch.bfloat16),
    torch.tensor(GIVEN, requires_grad=True),
    np.array(GIVEN),
    np.array(GIVEN, np.float16),
    np.array(GIVEN[::-1])[::-1],
    GIVEN,
    tuple(GIVEN),
]


@pytest.mark.parametrize("given", TAKEN, ids=lambda given: type(given).__name__)
def test_probabilities_of_any_type_are_taken(timed_case: Callable, given) -> None:
    clock, model, profile = timed_case([0.01])
    answer = Predictor(model, profile, prior=given, clock=clock)(X, 0.001)
    assert answer.step == -1
    assert torch.equal(answer.probabilities, torch.tensor([GIVEN]))
    assert answer.probabilities.requires_grad is False


@pytest.mark.parametrize("given", [torch.tensor([1, 0, 0, 0, 0]), np.array([1, 0, 0, 0, 0]), [1, 0, 0, 0, 0]], ids=repr)
def test_whole_numbers_are_taken(timed_case: Callable, given) -> None:
    clock, model, profile = timed_case([0.01])
    answer = Predictor(model, profile, prior=given, clock=clock)(X, 0.001)
    assert torch.equal(answer.probabilities, torch.tensor([[1.0, 0, 0, 0, 0]]))


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (torch.tensor([-1.0, 2, 0, 0, 0]), ValueError, r"got \[5\] torch.float32 from -1 to 2"),
        (torch.full((5,), torch.nan), ValueError, r"got \[5\] torch.float32, 5 of 5 NaN or infinite"),
        ([0.5, 0.5, 0, 0, np.nan], ValueError, r"from 0 to 0.5, 1 of 5 NaN or infinite"),
        ([0.5, np.inf, 0, 0, 0], ValueError, r"got sums of inf"),
        (np.full(5, 0.1), ValueError, r"got sums of 0.5"),
        (np.full(10, 0.1), ValueError, r"got \[10\] torch.float32 from 0.1 to 0.1"),
        (0.2, ValueError, r"got \[\] torch.float32"),
        (torch.full((1, 5), 0.2), ValueError, r"got \[1, 5\] torch.float32"),
        ("uniform", TypeError, "got 'uniform'"),
        ([0.2, None], TypeError, r"got \[0.2, None\]"),
        (np.array(["a"] * 5), TypeError, "got array"),
        (torch.tensor([True, False, False, False, False]), TypeError, r"got \[5\] torch.bool from 0 to 1"),
        (torch.full((5,), 0.2 + 0j), TypeError, r"\[5\] torch.complex64"),
        (torch.full((5,), 0.2).to_sparse(), TypeError, r"got \[5\] torch.float32 \(sparse_coo\)"),
        (torch.full((5,), 0.2, device="meta"), TypeError, r"\[5\] torch.float32 \(meta\)"),
    ],
    ids=lambda value: None if isinstance(value, type) else repr(value)[:24],
)
def test_what_is_no_prior_is_repeated(timed_case: Callable, given, error: type[Exception], message: str) -> None:
    _, model, profile = timed_case([0.01])
    with pytest.raises(error, match=f"prior must be 5 probabilities that sum to 1, .*{message}"):
        Predictor(model, profile, prior=given)


def test_every_label_level_sums_to_one() -> None:
    assert [level.tolist() for level in probabilities([0.25, 0.75, 1, 0], (2, 2))] == [[0.25, 0.75], [1, 0]]
    with pytest.raises(ValueError, match=r"sum to 1 in each of the levels \(2, 2\), got sums of 0.5, 1.5"):
        probabilities([0.25, 0.25, 1, 0.5], (2, 2))


def test_values_and_maps_of_other_tasks(timed_case: Callable) -> None:
    _, model, _ = timed_case([0.01])
    model.info.task = "regression"
    assert Priors(model, [-1, 2, 0, 3, 4]).answer(X, 0.0, None).outputs.tolist() == [[-1, 2, 0, 3, 4]]
    for task, wrong in (("regression", [[1.0]] * 5), ("regression", [1.0]), ("dense", [1.0] * 5), ("dense", [[1.0]])):
        model.info.task = task
        with pytest.raises(
            ValueError, match=r"prior must be the output of one image, \[5.*\], got \[.* torch.float32 from 1 to"
        ):
            Priors(model, wrong)
    with pytest.raises(TypeError, match=r"the output of one image, .*, got 'x'"):
        Priors(model, "x")


@pytest.mark.parametrize("given", [torch.full((1, 5), 0.2), np.full(5, 0.2), GIVEN, 3])
def test_the_prior_of_a_call_is_an_answer(timed_case: Callable, given) -> None:
    clock, model, profile = timed_case([0.01])
    predictor = Predictor(model, profile, clock=clock)
    for ask in (predictor, predictor.stream, predictor.session):
        with pytest.raises(
            TypeError, match=f"prior must be an answer, such as the last one, got {type(given).__name__}; Pred"
        ):
            ask(X, prior=given)
    with pytest.raises(TypeError, match="prior must be an answer"):
        predictor(X, -1, prior=given)
