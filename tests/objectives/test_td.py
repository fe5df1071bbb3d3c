"""TD(lambda): targets against the sum in the paper, gradients against closed forms, incremental against batch form."""

from __future__ import annotations

import math
import weakref
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from anytime.models.anytimenet import anytimenet
from anytime.objectives import Classification, HeatMaps, IncrementalTD, Objective, TDLambda, step_losses, td_targets

LAMBDAS = st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0, 1))
exactly = {"rtol": 1e-12, "atol": 1e-14}


def example(steps: int = 4, batch: int = 5, classes: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(steps, batch, classes, generator=generator, dtype=torch.float64)
    return logits, torch.randint(classes, (batch,), generator=generator)


def direct_targets(predictions: Tensor, truth: Tensor, lam: float) -> Tensor:
    """Eq. 2 of the paper, written out; Python has 0.0 ** 0 = 1."""
    last = len(predictions) - 1
    return torch.stack(
        [
            (1 - lam) * sum((lam ** (i - 1) * predictions[t + i] for i in range(1, last - t + 1)), torch.zeros_like(truth))
            + lam ** (last - t) * truth
            for t in range(last + 1)
        ]
    )


@settings(deadline=None)
@given(LAMBDAS, st.integers(1, 9), st.integers(1, 4), st.integers(1, 5))
def test_recursion_is_the_papers_sum(lam: float, steps: int, batch: int, classes: int) -> None:
    logits, labels = example(steps, batch, classes)
    predictions, truth = logits.softmax(-1), F.one_hot(labels, classes).double()
    targets = td_targets(predictions, truth, lam)
    torch.testing.assert_close(targets, direct_targets(predictions, truth, lam), **exactly)
    torch.testing.assert_close(targets.sum(-1), torch.ones(steps, batch, dtype=torch.float64), **exactly)
    assert torch.equal(targets[-1], truth)


def test_special_cases_are_the_general_recursion() -> None:
    logits, labels = example()
    predictions, truth = logits.softmax(-1), F.one_hot(labels, 3).double()
    for lam in (0.0, 1.0):
        expected = [truth]
        for prediction in reversed(predictions[1:]):
            expected.insert(0, (1 - lam) * prediction + lam * expected[0])
        assert torch.equal(td_targets(predictions, truth, lam), torch.stack(expected))
    assert torch.equal(td_targets(predictions, truth, 0.0)[:-1], predictions[1:])
    assert torch.equal(td_targets(predictions, truth, 1.0), truth.expand(4, -1, -1))


@pytest.mark.parametrize("lam", [0.0, 0.4, 1.0])
def test_loss_equals_a_loop(lam: float) -> None:
    logits, labels = example()
    targets = direct_targets(logits.softmax(-1), F.one_hot(labels, 3).double(), lam)
    expected = 0.0
    for answer, target in zip(logits.tolist(), targets.tolist(), strict=True):
        for row, y in zip(answer, target, strict=True):
            total = sum(math.exp(value) for value in row)
            expected -= sum(y_c * math.log(math.exp(a_c) / total) for y_c, a_c in zip(y, row, strict=True)) / len(labels)
    assert TDLambda(lam)(logits, labels).item() == pytest.approx(expected, rel=1e-12)
    assert TDLambda(lam, reduction="mean")(logits, labels).item() == pytest.approx(expected / 4, rel=1e-12)


def test_lambda_one_is_the_sum_of_cross_entropies() -> None:
    logits, labels = example()
    assert torch.equal(TDLambda(1.0)(logits, labels), step_losses(logits, labels).sum())
    one_answer = logits[:1]
    for lam in (0.0, 0.3, 1.0):
        torch.testing.assert_close(TDLambda(lam)(one_answer, labels), F.cross_entropy(logits[0], labels), **exactly)


@settings(deadline=None)
@given(LAMBDAS, st.integers(1, 6), st.sampled_from(["sum", "mean"]))
def test_gradients_are_the_closed_forms(lam: float, steps: int, reduction: Any) -> None:
    logits, labels = example(steps)
    gradient = torch.autograd.grad(TDLambda(lam, reduction)(logits.requires_grad_(), labels), logits)[0]
    gradient *= 5 * (steps if reduction == "mean" else 1)  # the batch has 5 images
    with torch.no_grad():
        predictions, truth = logits.softmax(-1), F.one_hot(labels, 3).double()
        # A gradient through the targets would show here.
        torch.testing.assert_close(gradient, predictions - direct_targets(predictions, truth, lam), **exactly)
        deltas = torch.cat([predictions, truth[None]]).diff(dim=0)
        for t in range(steps):
            expected = -sum((lam ** (k - t) * deltas[k] for k in range(t, steps)), torch.zeros_like(truth))
            torch.testing.assert_close(gradient[t], expected, **exactly)


@pytest.mark.parametrize("lam", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_skipped_answers_change_nothing_else(lam: float, reduction: Any) -> None:
    logits, labels = example()
    skipping, whole = TDLambda(lam, reduction, skip=1), TDLambda(lam, reduction)
    assert torch.equal(skipping(logits, labels), whole(logits[1:], labels))
    gradient = torch.autograd.grad(skipping(logits.requires_grad_(), labels), logits)[0]
    assert not gradient[0].any()
    if reduction == "sum":
        torch.testing.assert_close(gradient[1:], torch.autograd.grad(whole(logits, labels), logits)[0][1:], **exactly)


@pytest.mark.parametrize("lam", [0.0, 0.5, 1.0])
def test_huge_logits(lam: float) -> None:
    logits = torch.tensor([[[1e4, -1e4]], [[-1e4, 1e4]]], dtype=torch.float32, requires_grad=True)
    loss = TDLambda(lam)(logits, torch.tensor([1]))
    assert loss.item() == 2e4  # answer 1 differs from the truth, which answer 2 predicts
    assert torch.autograd.grad(loss, logits)[0].tolist() == [[[1, -1]], [[0, 0]]]


@pytest.mark.parametrize("lam", [0.0, 0.5, 1.0])
def test_half_precision_answers_have_a_float32_loss(lam: float) -> None:
    logits, labels = example()
    half = logits.bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = TDLambda(lam)(half, labels)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), TDLambda(lam)(half.detach().double(), labels), rtol=1e-5, atol=0)
    loss.backward()
    assert half.grad is not None
    assert half.grad.dtype == torch.bfloat16


def heat_maps(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    answers = torch.randn(3, 2, 4, 5, 6, generator=generator, dtype=torch.float64)
    truth = torch.rand(2, 4, 5, 6, generator=generator, dtype=torch.float64)
    return answers, truth, torch.randint(2, (2, 4), generator=generator)


@settings(deadline=None, max_examples=25)
@given(LAMBDAS, st.booleans())
def test_heat_maps(lam: float, weighted: bool) -> None:
    answers, truth, weights = heat_maps()
    target = (truth, weights) if weighted else truth
    loss = TDLambda(lam, outputs="heat_maps")(answers.requires_grad_(), target)
    with torch.no_grad():
        w = (weights if weighted else torch.ones(2, 4)).double()[..., None, None]
        targets = direct_targets(answers, truth, lam)
        expected = sum(
            0.5 * F.mse_loss(w[:, j] * answers[t, :, j], w[:, j] * targets[t, :, j]) / 4 for t in range(3) for j in range(4)
        )
        torch.testing.assert_close(loss, torch.as_tensor(expected), **exactly)
    gradient = torch.autograd.grad(loss, answers)[0]
    torch.testing.assert_close(gradient, w * (answers - targets).detach() / answers[0].numel(), **exactly)


def test_custom_outputs() -> None:
    class Angles(HeatMaps):
        def predict(self, answers: Tensor) -> Tensor:
            return answers.remainder(2 * math.pi)

    answers, truth, _ = heat_maps()
    targets = direct_targets(answers.remainder(2 * math.pi), truth, 0.3)
    expected = HeatMaps().losses(answers, targets, truth).sum()
    torch.testing.assert_close(TDLambda(0.3, outputs=Angles())(answers, truth), expected, **exactly)


class Chain(nn.Module):
    """h <- tanh(W h + U x), a = V h; the first answer does not depend on W. V and an extra bias see the same gradient."""

    def __init__(self, steps: int, seed: int = 0, detached: bool = False) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        shapes = {"W": (4, 4), "U": (4, 2), "V": (3, 4), "b": (3,), "c": (3,), "late": (3,)}
        for name, shape in shapes.items():
            setattr(self, name, nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64)))
        self.x = torch.randn(5, 2, generator=generator, dtype=torch.float64)
        self.labels = torch.randint(3, (5,), generator=generator)
        self.steps, self.detached = steps, detached

    def answers(self) -> Any:
        h = torch.tanh(self.x @ self.U.T)
        for step in range(self.steps):
            yield h @ self.V.T + self.b + self.c + (self.late if step > 1 else 0)
            h = torch.tanh((h.detach() if self.detached else h) @ self.W.T + self.x @ self.U.T)


def gradients(model: nn.Module) -> list[Tensor]:
    found = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    return found


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert (one - other).norm() <= 1e-12 * other.norm()


def batch_gradients(model: Chain, lam: float) -> list[Tensor]:
    TDLambda(lam)(torch.stack(list(model.answers())), model.labels).backward()
    return gradients(model)


def incremental_gradients(model: Chain, lam: float) -> list[Tensor]:
    td = IncrementalTD(model.parameters(), lam)
    for logits in model.answers():
        td.observe(logits)
    td.finish(model.labels)
    return gradients(model)


@pytest.mark.parametrize("lam", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_incremental_is_the_batch_form(lam: float, steps: int) -> None:
    model = Chain(steps)
    expected = batch_gradients(model, lam)
    assert any(gradient.any() for gradient in expected)
    assert_same(incremental_gradients(model, lam), expected)


@settings(deadline=None, max_examples=30)
@given(LAMBDAS, st.integers(1, 6), st.integers(0, 99))
def test_incremental_is_the_batch_form_for_any_lambda(lam: float, steps: int, seed: int) -> None:
    model = Chain(steps, seed)
    assert_same(incremental_gradients(model, lam), batch_gradients(model, lam))


@pytest.mark.parametrize("lam", [0.0, 0.3])
def test_incremental_gradient_through_a_batch_normed_network(lam: float) -> None:
    torch.manual_seed(0)
    model = anytimenet(3, blocks=(2, 2), scheme=(1, 1), width=2).double()
    x, labels = torch.rand(3, 3, 6, 6, dtype=torch.float64), torch.tensor([2, 0, 1])
    TDLambda(lam)(model(x), labels).backward()
    expected = gradients(model)
    td = IncrementalTD(model.parameters(), lam)
    for logits in model.stream(x):
        td.observe(logits)
    td.finish(labels)
    for one, other in zip(gradients(model), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("lam", [0.0, 0.3, 1.0])
def test_incremental_adds_up_at_once_and_starts_again(lam: float) -> None:
    model = Chain(3)
    expected = batch_gradients(model, lam)
    td = IncrementalTD(model.parameters(), lam)
    for _ in range(2):  # sequences of two batches
        for t, logits in enumerate(model.answers()):
            td.observe(logits)
            if t == 1:  # the first answer's term is added as soon as the second is known
                assert model.V.grad is not None
                assert model.V.grad.any()
        td.finish(model.labels)
    assert_same(gradients(model), [2 * gradient for gradient in expected])


def test_stored_traces_and_logits() -> None:
    model = Chain(3)
    answers = list(model.answers())
    for lam in (0.0, 0.3):
        td = IncrementalTD(model.parameters(), lam)
        for logits in answers:
            td.observe(logits)
        traces = [trace for trace in td._trace if trace is not None]
        if lam:
            assert [list(trace.shape) for trace in traces] == [[15, *p.shape] for p in model.parameters()]  # B K = 15
            assert td._logits is None
        else:
            assert not traces
            assert td._logits is answers[-1]


@pytest.mark.parametrize("lam", [0.0, 0.3])
def test_a_detached_state_frees_the_graphs_of_past_steps(lam: float) -> None:
    class SavedTensor:
        def __init__(self, tensor: Tensor) -> None:
            self.tensor = tensor.detach()  # a saved output would hold its own graph

    alive: weakref.WeakSet[SavedTensor] = weakref.WeakSet()

    def pack(tensor: Tensor) -> SavedTensor:
        alive.add(saved := SavedTensor(tensor))
        return saved

    def saved_tensors(detached: bool) -> list[int]:
        model = Chain(6, detached=detached)
        td, counts = IncrementalTD(model.parameters(), lam), []
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved.tensor):
            for logits in model.answers():
                td.observe(logits)
                counts.append(len(alive))
        td.finish(model.labels)
        assert_same(gradients(model), batch_gradients(model, lam))
        return counts

    assert len(set(saved_tensors(detached=True)[2:])) == 1
    growing = saved_tensors(detached=False)
    assert growing == sorted(set(growing))


def test_tdlambda_has_no_state() -> None:
    objective = TDLambda()
    assert isinstance(objective, Objective)
    assert (objective.lam, objective.reduction, objective.skip) == (0.0, "sum", 0)
    assert isinstance(objective.outputs, Classification)
    assert not objective.state_dict()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lam": 1.5}, r"lam must lie in \[0, 1\], got 1.5"),
        ({"lam": -0.1}, r"lam must lie in \[0, 1\], got -0.1"),
        ({"lam": math.nan}, r"lam must lie in \[0, 1\], got nan"),
        ({"reduction": "none"}, "reduction must be 'sum' or 'mean', got 'none'"),
        ({"skip": -1}, "skip must be a whole number and at least 0, got -1"),
        ({"outputs": "heatmaps"}, "unknown outputs 'heatmaps'; did you mean 'heat_maps'?"),
        ({"outputs": HeatMaps}, "outputs must be one of classification, heat_maps, or an Outputs object, got <class"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TDLambda(**arguments)


@pytest.mark.parametrize("lam", [0.0, 0.5, 1.0])
def test_wrong_targets(lam: float) -> None:
    logits, labels = example()
    with pytest.raises(ValueError, match=r"labels must be \[5\], one per image, got \[5, 2\]; choose one level"):
        TDLambda(lam)(logits, torch.stack([labels, labels], 1))
    with pytest.raises(ValueError, match=r"labels must lie in 0\.\.2, got 0\.\.3"):
        TDLambda(lam)(logits, torch.tensor([0, 1, 2, 3, 0]))
    with pytest.raises(ValueError, match="skip must be below the number of answers, 4, got 4"):
        TDLambda(lam, skip=4)(logits, labels)
    with pytest.raises(ValueError, match=r"logits must be \[T, B, K\], got \[4, 5, 3, 2\]"):
        TDLambda(lam)(torch.stack([logits, logits], 3), labels)
    torch.testing.assert_close(TDLambda(lam)(logits, labels.int()), TDLambda(lam)(logits, labels), rtol=0, atol=0)
    answers, truth, weights = heat_maps()
    objective = TDLambda(lam, outputs=HeatMaps())
    with pytest.raises(ValueError, match=r"true heat-maps must be \[B, J, H, W\] = \[2, 4, 5, 6\], got \[2, 4, 5, 5\]"):
        objective(answers, truth[..., 1:])
    with pytest.raises(ValueError, match=r"weights must be \[B, J\] = \[2, 4\], got \[2, 3\]"):
        objective(answers, (truth, weights[:, 1:]))


def test_misfits_raise_before_training() -> None:
    TDLambda(skip=3).check(4)
    with pytest.raises(ValueError, match="skip must be below the number of answers, 4, got 4"):
        TDLambda(skip=4).check(4)
    TDLambda().set_levels((10,))
    TDLambda(outputs="heat_maps").set_levels((10, 2))
    with pytest.raises(ValueError, match="takes one level of labels, the data set has 2; choose one"):
        TDLambda().set_levels((10, 2))


def test_wrong_use_of_targets_and_increments() -> None:
    logits, labels = example()
    with pytest.raises(ValueError, match=r"the truth must be \[5, 3\], like a prediction, got \[5\]"):
        td_targets(logits, labels.double(), 0.5)
    with pytest.raises(ValueError, match=r"lam must lie in \[0, 1\], got 2"):
        IncrementalTD([], 2)
    model = Chain(2)
    td = IncrementalTD(model.parameters())
    with pytest.raises(ValueError, match="call observe at least once before finish"):
        td.finish(labels)
    with pytest.raises(ValueError, match="logits carry no graph"):
        td.observe(logits[0])
    first, second = model.answers()
    td.observe(first)
    with pytest.raises(ValueError, match=r"logits must be \[5, 3\] as before, got \[4, 3\]"):
        td.observe(second[1:])
    with pytest.raises(ValueError, match=r"labels must be \[5\], one per image, got \[4\]"):
        td.finish(labels[1:])
