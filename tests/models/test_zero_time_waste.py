"""Zero-Time-Waste: cascade heads on any model, the geometric ensemble, and what the published code does otherwise."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor

import anytime
from anytime.combine import Combiner, Geometric, combiner, fit_geometric, fit_temperatures
from anytime.cost import step_macs
from anytime.model import AnytimeModel, create_model
from anytime.models.zero_time_waste import ZeroTimeWaste
from anytime.stopping import Confidence, Fitted, measure, save_rule, saved_rules
from anytime.stopping.fitting import Goal, fit_rule
from anytime.testing import check_anytime_model
from anytime.trace import Trace
from anytime.training.regimes.freezing import find_heads

MSDNET: dict[str, Any] = {"exits": 3, "base": 1, "step": 1, "width": 2, "growth": 2, "factors": (1, 2), "head_width": 2}
CONTRACT_ARGUMENTS = {
    "zero_time_waste": {"base": "ann", "arguments": {"units": 1, "width": 2, "period": 1}},
}


def cascade(levels: int | tuple[int, ...] = 5) -> tuple[AnytimeModel, ZeroTimeWaste]:
    """A network, and the same one with cascade heads whose weights are not zero."""
    torch.manual_seed(0)
    plain = create_model("msdnet", levels, **MSDNET).double().eval()
    model = create_model("zero_time_waste", levels, arguments=MSDNET).double().eval()
    assert isinstance(model, ZeroTimeWaste)
    model.load_state_dict(plain.state_dict())
    for head in model.heads:
        torch.nn.init.normal_(head)
    return plain, model


def test_answers_by_hand() -> None:
    plain, model = cascade((3, 2))
    check_anytime_model(model, (3, 8, 8), batch_size=2)
    x = torch.rand(4, 3, 8, 8, dtype=torch.float64)
    f = plain(x)
    expected = [f[0]]
    for t in (1, 2):
        before = torch.cat([expected[-1][:, :3].softmax(1), expected[-1][:, 3:].softmax(1)], 1)
        expected.append(f[t] + before @ model.heads[t - 1].T)
    assert torch.allclose(model(x), torch.stack(expected), atol=1e-13)


def test_a_head_on_its_features_and_the_answer_before_is_one_linear_layer() -> None:
    plain, model = cascade()
    x = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    head = plain.heads[1]  # type: ignore[index]
    features = head[:-1](plain.trunk_features(x)[1])  # type: ignore[operator,index]
    wide = torch.nn.Linear(2 + 5, 5).double()
    wide.weight.data = torch.cat([head[-1].weight, model.heads[0]], 1)  # type: ignore[index]
    wide.bias.data = head[-1].bias.data  # type: ignore[index,union-attr]
    answers = model(x)
    assert torch.allclose(wide(torch.cat([features, answers[0].softmax(1)], 1)), answers[1], atol=1e-13)


def test_no_gradient_passes_through_the_answer_before() -> None:
    _, model = cascade()
    loss = model.train()(torch.rand(3, 3, 8, 8, dtype=torch.float64))[1].sum()
    first = list(model.model.heads[0].parameters())  # type: ignore[index,union-attr]
    assert all(g is None or not g.any() for g in torch.autograd.grad(loss, first, allow_unused=True, retain_graph=True))
    assert torch.autograd.grad(loss, model.heads[0])[0].any()


def test_probabilities_are_passed_on_instead_of_logits() -> None:
    """A constant that is added to all logits of an answer changes no probability, so no later answer."""
    _, model = cascade()
    output, previous = torch.randn(2, 5, dtype=torch.float64), torch.randn(2, 5, dtype=torch.float64)
    assert torch.allclose(model.changed(output, previous + 7, 2), model.changed(output, previous, 2), atol=1e-13)


def test_starts_as_the_network_and_takes_its_weights(tmp_path: Any) -> None:
    plain = create_model("msdnet", 5, **MSDNET)
    plain.set_normalization([0.1, 0.2, 0.3], [0.5, 0.6, 0.7])
    model = create_model("zero_time_waste", 5, arguments=MSDNET)
    model.load_state_dict(plain.state_dict())
    x = torch.rand(2, 3, 8, 8)
    assert torch.allclose(model.eval()(x), plain.eval()(x), atol=1e-6)
    assert model.mean.tolist() == pytest.approx([0.1, 0.2, 0.3])
    model.save(tmp_path)
    assert torch.equal(anytime.load(tmp_path)(x), model(x))
    with pytest.raises(RuntimeError, match="Missing key"):
        model.load_state_dict({name: value for name, value in plain.state_dict().items() if name != "std"})


def test_only_heads_are_trained_on_a_frozen_network() -> None:
    assert list(find_heads(create_model("zero_time_waste", arguments=MSDNET))) == ["heads", "model.heads"]


def test_a_cascade_head_costs_one_product() -> None:
    plain, model = cascade()
    assert step_macs(model, 8) == [macs + 25 * t for t, macs in enumerate(step_macs(plain, 8))]


def test_no_classifier() -> None:
    model = create_model("msdnet", **MSDNET)
    model.info.task = "regression"
    with pytest.raises(ValueError, match="zero_time_waste needs the logits of a classifier"):
        ZeroTimeWaste(model)


# The ensemble


def trace(logits: Tensor, labels: Tensor) -> Trace:
    names = [str(k) for k in range(logits.shape[2])]
    return Trace.from_logits(logits, labels, macs=range(1, len(logits) + 1), class_names=names)


def noisy(samples: int = 400) -> Trace:
    """Three answers, each right logits with noise of its own; labels of class 0 are twice as frequent as the others."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.multinomial(torch.tensor([2.0, 1, 1, 1]), samples, True, generator=generator)
    noise = torch.randn(3, samples, 4, generator=generator) * torch.tensor([2.0, 1.5, 1.0])[:, None, None]
    return trace(noise + 2 * torch.nn.functional.one_hot(labels, 4), labels)


@pytest.mark.parametrize("name", ["zero_time_waste", "boosted"])
def test_the_number_of_steps_inside_stays(name: str) -> None:
    model: Any = create_model(name, base="loop_vit", arguments={"width": 12, "expansion": 1, "num_steps": 2}).eval()
    x = torch.rand(1, 3, 8, 8)
    assert len(model(x)) == 2
    for steps in (3, 1):
        model.model.num_steps = steps
        for run in (model, lambda x: list(model.stream(x))):
            with pytest.raises(ValueError, match=f"the model inside has num_steps={steps}, but this .* was built for 2"):
                run(x)


def test_ensemble_by_hand() -> None:
    made = Geometric([[1], [0.5, 2]], [[1, 1, 1], [1, 3, 0.5]])
    p = torch.tensor([[[0.5, 0.25, 0.25]], [[0.2, 0.2, 0.6]]], dtype=torch.float64)
    expected = torch.tensor([1, 3, 0.5], dtype=torch.float64) * p[0] ** 0.5 * p[1] ** 2
    found = made(p.log())
    assert torch.allclose(found[0], p[0])
    assert torch.allclose(found[1], expected / expected.sum())
    assert Combiner.from_dict(json.loads(json.dumps(made.to_dict()))) == made


def test_fitted_ensemble_is_the_optimum_and_covers_the_last_answer() -> None:
    data = noisy()
    fitted = fit_geometric(data)
    assert fitted.num_steps == 3
    own, combined = data.logits.softmax(2), fitted(data.logits)
    rows = torch.arange(data.num_samples)

    def loss(p: Tensor) -> Tensor:
        return -p[rows, data.labels].log().mean()

    for t in range(3):
        assert loss(combined[t]) < loss(own[t])
        w = torch.tensor(fitted.weights[t], dtype=torch.float64, requires_grad=True)
        b = torch.tensor(fitted.biases[t], dtype=torch.float64).log().requires_grad_()
        experts = data.logits.double().log_softmax(2)[: t + 1]
        loss((torch.einsum("t,tnk->nk", w, experts) + b).softmax(1)).backward()
        assert w.grad is not None
        assert b.grad is not None
        assert (w.grad * w.detach()).abs().max() < 1e-4  # no slope, unless at the bound 0
        assert w.grad.min() > -1e-4
        assert b.grad.abs().max() < 1e-4


def test_early_stops_need_no_later_answer_and_the_rule_is_saved() -> None:
    data = noisy()
    fitted = fit_geometric(data)
    cut = data.logits.clone()
    cut[2] = 100.0
    assert torch.equal(fitted(cut)[1], fitted(data.logits)[1])
    outcome = measure(Confidence(0.9), data, fitted)
    assert outcome.accuracy > measure(Confidence(0.9), data).accuracy
    assert 1 < outcome.macs < 3
    model = create_model("ann", 4, units=1, width=2)
    save_rule(model, "ztw", Fitted(Confidence(0.9), fitted))
    assert saved_rules(model)["ztw"].combine == fitted


def test_fitted_by_name() -> None:
    data = noisy()
    assert fit_rule(data, data, "geometric", Goal(None)).combine == fit_geometric(data)


def test_answers_that_exclude_classes_are_fitted_and_combined() -> None:
    """A logit of -inf is a probability of 0; its logarithm made the loss nan, and the weights stayed as they began."""
    data = noisy()
    logits = data.logits.clone()
    logits[0, ::7, 1] = logits[1, ::5, 3] = -math.inf
    fitted = fit_geometric(trace(logits, data.labels))
    assert fitted.weights[0][0] != 1
    floored = logits.double().log_softmax(2).clamp(min=-100)
    same = fit_geometric(trace(floored.float(), data.labels))
    for given, other in zip(fitted.weights, same.weights, strict=True):
        assert given == pytest.approx(other, abs=1e-3)
    found = Geometric([[1], [0.5, 2]], [[1] * 4] * 2)(logits[:2])
    assert torch.allclose(found[1], (0.5 * floored[0] + 2 * floored[1]).softmax(1).float(), atol=1e-5)
    assert torch.allclose(found.sum(2), torch.ones(2, 400))


def test_no_temperature_makes_up_for_an_excluded_label() -> None:
    logits = torch.zeros(2, 4, 3)
    logits[1, 2, 1] = -math.inf
    assert fit_temperatures(trace(logits, torch.tensor([0, 1, 2, 0]))).num_steps == 2
    with pytest.raises(ValueError, match="loss of step 2 finite: 1 of 4 labels have a logit of -inf"):
        fit_temperatures(trace(logits, torch.tensor([0, 1, 1, 0])))


def test_a_search_that_ends_early_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    import scipy.optimize

    search = scipy.optimize.minimize

    def short(*args: Any, **given: Any) -> Any:
        return search(*args, **{**given, "options": {"maxiter": 1}})

    monkeypatch.setattr(scipy.optimize, "minimize", short)
    with pytest.warns(UserWarning, match="the weights of step 1 may not have the least cross-entropy: "):
        fit_geometric(trace(noisy().logits[:1], noisy().labels))


def test_separable_answers_have_finite_weights() -> None:
    fitted = fit_geometric(trace(9 * torch.eye(3)[None], torch.arange(3)))
    assert 1 <= fitted.weights[0][0] <= 50


@pytest.mark.parametrize(
    ("weights", "biases", "message"),
    [
        ([], [], r"weights must be t numbers for step t = 1, 2, ..., got rows of \[\]"),
        ([[1], [1]], [[1], [1]], r"weights must be t numbers .* got rows of \[1, 1\]"),
        ([[1]], [[1, 1], [1, 1]], r"biases must be 1 rows of one number per class, got rows of \[2, 2\]"),
        ([[-1]], [[1, 1]], r"weights must be finite and at least zero, got \(\(-1.0,\),\)"),
        ([[1]], [[0, 1]], "biases must be finite and above zero"),
        (3, [[1]], "weights must be a row of numbers for each step, got 3"),
    ],
)
def test_wrong_ensembles(weights: Any, biases: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Geometric(weights, biases)


def test_ensembles_of_other_networks() -> None:
    made = Geometric([[1]], [[1, 1, 1]])
    with pytest.raises(ValueError, match="made for 1 steps, the model has 2"):
        made(torch.zeros(2, 1, 3))
    with pytest.raises(ValueError, match="made for 3 classes, got 4 logits"):
        made(torch.zeros(1, 1, 4))
    with pytest.raises(ValueError, match=r"'geometric' is fitted on a validation trace: use fit_geometric\(trace\)"):
        combiner("geometric")
