"""Everything about a predictor but its timing."""

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch

import anytime
from anytime import Predictor, create_model
from anytime.combine import Mixture, Product, combiner
from anytime.stopping import Confidence, MacBudget

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


@pytest.mark.parametrize("combine", ["last", "caching", "product"])
def test_every_label_level_has_its_answer(combine: str) -> None:
    model = tiny(num_classes=(4, 2))
    predictor = Predictor(model, combine=combine)
    fine, coarse = (combiner(combine)(logits) for logits in model.eval()(X).detach().split((4, 2), 2))
    for t, answer in enumerate(predictor.stream(X)):
        assert answer.probabilities is answer.levels[0]
        torch.testing.assert_close(answer.levels, (fine[t], coarse[t]))


def test_levels_when_samples_leave_and_in_contract_answers() -> None:
    model = tiny(num_classes=(4, 2)).eval()
    rule = Confidence(float(model(X).detach()[0, :, :4].softmax(1).amax(1).max()))  # one sample leaves after the first step
    answer = Predictor(model, stop=rule)(X)
    assert sorted(answer.steps.tolist())[0] == 1
    logits = torch.stack([model(X)[step - 1, n] for n, step in enumerate(answer.steps.tolist())]).detach()
    torch.testing.assert_close(answer.levels, tuple(part.softmax(1) for part in logits.split((4, 2), 1)))
    planned = Predictor(model, anytime.profile(model, (3, 8, 8), batch_sizes=(2,), repeats=1))(X, contract=True)
    torch.testing.assert_close(planned.levels, Predictor(model)(X).levels)


def test_priors_of_levels(timed_case: Callable) -> None:
    model = tiny(num_classes=(4, 2))
    first = Predictor(model).session(X).best
    assert [level.shape for level in first().levels] == [(2, 4), (2, 2)]
    given = torch.tensor([0.7, 0.1, 0.1, 0.1, 0.9, 0.1])
    with Predictor(model, prior=given).session(X) as session:
        session.interrupt()
    with pytest.raises(ValueError, match=r"prior must be 6 probabilities that sum to 1 in each of the levels \(4, 2\)"):
        Predictor(model, prior=given[:4])
    clock, timed, profile = timed_case([0.01])
    predictor = Predictor(timed, profile, clock=clock)
    before = predictor(torch.rand(1, 3, 2, 2))
    after = predictor(torch.rand(1, 3, 2, 2), 0.001, prior=before)
    assert (after.step, after.macs.tolist()) == (-1, [0])
    assert torch.equal(after.probabilities, before.probabilities)
    with pytest.raises(ValueError, match=r"prior must be an answer for as many images, \[\[2, 5\]\], got \[\[1, 5\]\]"):
        predictor(torch.rand(2, 3, 2, 2), prior=before)


def test_every_method_refuses_images_that_do_not_fit_the_model(timed_case: Callable) -> None:
    clock, model, profile = timed_case([0.01])
    predictor = Predictor(model, profile, clock=clock)
    x = torch.rand(1, 3, 2, 2)
    methods = (predictor, predictor.stream, predictor.session, lambda x: predictor(x, contract=True))
    bad = {
        "the images are torch.float64, the model torch.float32": x.double(),
        "the images are on meta, the model on cpu": x.to("meta"),
        "the images are 3x4x4, the profile is of 3x2x2": torch.rand(1, 3, 4, 4),
        "got list": [[1.0]],
        "NaN or infinite": x / 0,
        "the batch is empty": x[:0],
    }
    for message, images in bad.items():
        for method in methods:
            with pytest.raises((ValueError, TypeError), match=message):
                method(images)
    assert model.started == []
    assert predictor(x).step == 1


def test_depth_is_at_least_one() -> None:
    for depth, error in ((0, ValueError), (True, ValueError), ("2", TypeError), (1.5, TypeError), (None, TypeError)):
        with pytest.raises(error, match=f"depth must be at least 1 step, got {depth!r}"):
            Predictor(tiny(), depth=depth)
    assert Predictor(tiny(), depth=torch.tensor(3))(X[:1]).step == 4


def test_arguments_of_another_type_are_repeated() -> None:
    for given, message in (
        ({"stop": 0.9}, "stop must be a rule, or text such as 'confidence=0.9', got 0.9"),
        ({"stop": Confidence}, "stop must be a rule, .*, got <class 'anytime.stopping.rules.Confidence'>"),
        ({"combine": 3}, "combine must be a combiner, or a name such as 'product', got 3"),
        ({"combine": Product}, "combine must be a combiner, .*, got <class 'anytime.combine.Product'>"),
        ({"profile": "laptop.json"}, r"profile must be one of anytime.profile\(model, example\), got 'laptop.json'"),
    ):
        with pytest.raises(TypeError, match=message):
            Predictor(tiny(), **given)


def test_the_mixture_weighs_by_the_profiles_macs(timed_case: Callable) -> None:
    clock, model, profile = timed_case([0.01, 0.01])
    x = torch.rand(1, 3, 2, 2)
    expected = Mixture([10, 20])(model(x))[-1]
    torch.testing.assert_close(Predictor(model, profile, "mixture", clock=clock)(x).probabilities, expected.detach())
    with pytest.raises(ValueError, match="'mixture' weighs the steps by their MACs"):
        Predictor(model, combine="mixture")


def test_a_rule_that_counts_macs_needs_a_profile(timed_case: Callable) -> None:
    with pytest.raises(ValueError, match="needs macs: give Predictor a profile"):
        Predictor(tiny(), stop=MacBudget(100))
    clock, model, profile = timed_case([0.01] * 4)
    answer = Predictor(model, profile, stop=MacBudget(25), clock=clock)(torch.rand(1, 3, 2, 2))
    assert answer.macs.tolist() == [20]


def test_import_is_light() -> None:
    heavy = {"lightning", "matplotlib", "torchvision", "sklearn", "jsonargparse", "scipy", "timm", "torchmetrics"}
    heavy |= {"torch._dynamo", "triton"}
    code = f"import sys, anytime, anytime.runtime; print(sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300)
    assert done.stdout == "[]\n"
