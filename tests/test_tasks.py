"""Models whose outputs are not classes: values and maps, from training to an answer under a deadline."""

import copy
import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import anytime
from anytime import Answer, Predictor, objectives
from anytime.model import AnytimeModel
from anytime.objectives import pixel_cross_entropy, squared_error
from anytime.runtime.gathered import Gathered, pack
from anytime.saving import TASKS, ModelInfo
from anytime.stopping import Confidence, Deadline, Fitted, MacBudget, Never, Patience, save_rule
from anytime.support.hub_card import hub_card
from anytime.testing import check_anytime_model

STEPS, SIZE = 3, (1, 6, 6)


class Maps(AnytimeModel):
    """Every step adds one convolution to its features and reads K maps from them, or their means."""

    num_steps = STEPS

    def __init__(self, num_classes: int = 2, task: str = "dense") -> None:
        super().__init__(num_classes, in_channels=1)
        self.info.task = task
        widths = [1, 4, 4, 4]
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in itertools.pairwise(widths))
        self.heads = nn.ModuleList(nn.Conv2d(4, self.num_classes, 1) for _ in range(STEPS))

    def initial_state(self, x: Tensor):
        self.check_input(x)
        return self.normalize(x), 0

    def step(self, state):
        h, t = state
        h = F.silu(self.convs[t](h))
        maps = self.heads[t](h)
        return maps if self.info.task == "dense" else maps.mean((2, 3)), (h, t + 1)


def made(task: str, num_classes: int = 2) -> Maps:
    torch.manual_seed(0)
    return Maps(num_classes, task).eval()


@pytest.mark.parametrize("task", TASKS)
def test_the_contract_covers_every_task(task):
    check_anytime_model(made(task), SIZE)


def test_the_contract_names_what_is_wrong_with_a_task():
    class Flat(Maps):
        def step(self, state):
            maps, after = super().step(state)
            return maps.mean((2, 3)), after

    with pytest.raises(AssertionError, match=r"step 1 gave logits \[3, 2\], expected \[B, K, ...\] = \[3, 2, ...\]"):
        check_anytime_model(Flat(), SIZE)

    class Deep(Maps):
        def step(self, state):
            maps, after = super().step(state)
            return maps[:, :, None, None], after

    with pytest.raises(AssertionError, match=r"step 1 gave logits \[3, 2, 1, 1\], expected \[B, K\] = \[3, 2\]"):
        check_anytime_model(Deep(task="regression"), SIZE)
    with pytest.raises(AssertionError, match=r"info.task is 'ranking', not one of classification, regression, dense"):
        check_anytime_model(Maps(task="ranking"), SIZE)
    two_levels = Maps((2, 3), "regression")
    with pytest.raises(AssertionError, match=r"levels \(2, 3\) are only for classifiers"):
        check_anytime_model(two_levels, SIZE)


@pytest.mark.parametrize("task", ["regression", "dense"])
@pytest.mark.parametrize("profiled", [False, True])
def test_answers_are_the_raw_outputs(task, profiled):
    model, x = made(task), torch.rand(3, *SIZE)
    predictor = Predictor(model, anytime.profile(model, SIZE, [3], repeats=2, warmup=0) if profiled else None)
    with torch.inference_mode():
        outputs = model(x)
    streamed = list(predictor.stream(x))
    for answer, wanted in zip(streamed, outputs, strict=True):
        torch.testing.assert_close(answer.outputs, wanted)
        assert answer.levels == ()
    for name in ("probabilities", "label", "confidence"):
        assert not hasattr(streamed[-1], name)
    with pytest.raises(AttributeError, match="only the answers of classifiers have probabilities"):
        _ = streamed[-1].confidence
    assert streamed[-1].steps.tolist() == [STEPS] * 3
    with predictor.session(x) as session:
        torch.testing.assert_close(session.wait().outputs, outputs[-1])
    if profiled:
        torch.testing.assert_close(predictor(x, contract=True).outputs, outputs[-1])


def test_a_regression_is_never_a_confidence_of_one():
    model, x = made("regression", 1), torch.rand(2, *SIZE)
    answer = Predictor(model)(x)
    with torch.inference_mode():
        torch.testing.assert_close(answer.outputs, model(x)[-1])
    assert not hasattr(answer, "confidence")


@given(st.integers(1, 4), st.sampled_from(["last", "caching", "product"]))
def test_outputs_of_a_classifier_are_its_logits_whatever_combines_them(batch, combine):
    model = made("classification", 4)
    x = torch.rand(batch, *SIZE)
    with torch.inference_mode():
        logits = model(x)
    for answer, wanted in zip(Predictor(model, combine=combine).stream(x), logits, strict=True):
        torch.testing.assert_close(answer.outputs, wanted)
        assert answer.outputs.shape == answer.probabilities.shape
    assert torch.equal(Predictor(model)(x, deadline=0).outputs, torch.full((batch, 4), 0.25).log())


def test_each_sample_keeps_the_outputs_of_the_step_where_it_stopped():
    model, x = made("classification", 3), torch.rand(6, *SIZE)
    with torch.inference_mode():
        logits = model(x)
    threshold = float(logits[0].softmax(1).amax(1).median())
    answer = Predictor(model, stop=Confidence(threshold))(x)
    assert len(set(answer.steps.tolist())) > 1
    torch.testing.assert_close(answer.outputs, logits[answer.steps - 1, torch.arange(6)])
    torch.testing.assert_close(answer.probabilities, answer.outputs.softmax(1))


@pytest.mark.parametrize(("task", "shape"), [("regression", (2,)), ("dense", (2, 6, 6))])
def test_priors(task, shape):
    model, x = made(task), torch.rand(2, *SIZE)
    nothing = Predictor(model)(x, deadline=0)
    assert nothing.outputs.shape == (2, *shape)
    assert nothing.outputs.isnan().all()
    assert (nothing.step, nothing.missed, nothing.levels) == (-1, True, ())
    given_output = torch.rand(shape)
    predictor = Predictor(model, prior=given_output)
    assert torch.equal(predictor(x, deadline=-1).outputs, given_output.expand(2, *shape))
    last = predictor(x)
    again = predictor(x, deadline=0, prior=last)
    assert torch.equal(again.outputs, last.outputs)
    assert again.outputs is not last.outputs
    with pytest.raises(ValueError, match="prior must be an answer for as many images"):
        predictor(x[:1], deadline=0, prior=last)
    with pytest.raises(ValueError, match="prior must be an answer for as many images"):
        predictor(x, prior=Answer((torch.full((2, 2), 0.5),), torch.tensor([1, 1]), 0.0, None, torch.tensor([0, 0])))
    with pytest.raises(ValueError, match=r"prior must be the output of one image, \[2.*\], got \[3\]"):
        Predictor(model, prior=torch.zeros(3))


@pytest.mark.parametrize("profiled", [False, True])
def test_a_prior_of_maps_has_their_size(profiled):
    model, x = made("dense"), torch.rand(2, *SIZE)
    profile = anytime.profile(model, SIZE, [2], repeats=2, warmup=0) if profiled else None
    with pytest.raises(ValueError, match=r"the output of one image, \[2, 6, 6\] for images \[1, 6, 6\], got \[2, 3, 3\]"):
        Predictor(model, profile, prior=torch.zeros(2, 3, 3))(x)
    predictor = Predictor(model, prior=torch.zeros(2, 6, 6))
    assert predictor(x, deadline=0).outputs.shape == (2, 2, 6, 6)
    with pytest.raises(ValueError, match=r"\[2, 8, 8\] for images \[1, 8, 8\], got \[2, 6, 6\]"):
        predictor(torch.rand(1, 1, 8, 8), deadline=0)


@pytest.mark.parametrize("task", ["regression", "dense"])
def test_a_sample_that_is_not_finite_keeps_its_last_finite_outputs(task):
    model, x = made(task), torch.rand(2, *SIZE)
    with torch.inference_mode():
        wanted = model(x)
    plain = model.step

    def step(state):
        outputs, after = plain(state)
        outputs = outputs.clone()
        if state[1] == STEPS - 1:
            outputs[1].view(-1)[-1] = torch.nan
        return outputs, after

    model.step = step
    answer = Predictor(model)(x)
    torch.testing.assert_close(answer.outputs, torch.stack([wanted[-1, 0], wanted[-2, 1]]))
    assert answer.steps.tolist() == [STEPS, STEPS - 1]
    assert "step 3 was NaN or infinite" in answer.reason


def test_rules_and_combiners_that_need_probabilities_say_so():
    model = made("regression")
    for stop in (Confidence(0.9), Patience(2), Confidence(0.9) | MacBudget(5), "confidence=0.9"):
        with pytest.raises(ValueError, match="reads probabilities, and a model of task 'regression' has none"):
            Predictor(model, stop=stop)
    for combine in ("product", anytime.combine.Caching()):
        with pytest.raises(ValueError, match="combiners make probabilities, and a model of task 'regression' has none"):
            Predictor(model, combine=combine)
    with pytest.raises(ValueError, match="the rule 'confidence' reads probabilities"):
        save_rule(model, "mine", Fitted(Confidence(0.9)))
    save_rule(model, "never", Fitted(Never()))
    profile = anytime.profile(model, SIZE, [1], repeats=2, warmup=0)
    half = MacBudget(profile.macs[1])
    x = torch.rand(1, *SIZE)
    for rule in (half, half & Never() | half, Deadline(1e3) & half):
        answer = Predictor(model, profile, stop=rule, combine="last")(x)
        with torch.inference_mode():
            torch.testing.assert_close(answer.outputs, model(x)[answer.step - 1])
    assert Predictor(model, profile, stop=half)(x).step == 2


def test_commands_and_evaluation_need_a_classifier(tmp_path, capsys, monkeypatch):
    from anytime.cli import main
    from anytime.reporting.evaluation import evaluate_run, find_trace

    model = anytime.create_model("anytimenet", num_classes=2, blocks=(1, 1, 1), scheme=(1,), width=4)
    model.info.task = "regression"
    model.save(tmp_path)
    loaded = anytime.load(tmp_path)
    assert loaded.info.task == "regression"
    assert "pipeline_tag" not in hub_card(loaded)
    sentence = "needs the logits of a classifier, and this model is of task 'regression'"
    with pytest.raises(ValueError, match=f"an evaluation {sentence}"):
        evaluate_run(tmp_path)
    with pytest.raises(ValueError, match=f"what is fitted to a trace {sentence}"):
        find_trace(loaded, tmp_path, "test")
    with pytest.raises(ValueError, match=f"an EANN {sentence}"):
        anytime.chain_networks([tmp_path, tmp_path])
    from PIL import Image

    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    assert main(["predict", str(tmp_path), str(tmp_path / "a.png")]) == 1
    assert f"anytime predict {sentence}" in capsys.readouterr().err


def test_an_unknown_task_in_a_file_is_an_error():
    with pytest.raises(ValueError, match=r"metadata.task is 'ranking', not one of classification, regression, dense"):
        ModelInfo.from_dict({"task": "ranking"})


@given(st.integers(1, 4), st.integers(1, 3), st.integers(2, 4), st.data())
def test_losses_of_each_answer(steps, batch, classes, data):
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    outputs = torch.randn(steps, batch, classes, 2, 3, generator=generator, dtype=torch.float64)
    values = torch.randn(batch, classes, 2, 3, generator=generator, dtype=torch.float64)
    for t, loss in enumerate(squared_error(outputs, values)):
        torch.testing.assert_close(loss, F.mse_loss(outputs[t], values))
    pixels = torch.randint(-1, classes, (batch, 2, 3), generator=generator)
    pixels[0, 0, 0] = 0
    for t, loss in enumerate(pixel_cross_entropy(outputs, pixels)):
        torch.testing.assert_close(loss, F.cross_entropy(outputs[t], pixels, ignore_index=-1))


def test_losses_say_what_target_they_need():
    with pytest.raises(ValueError, match=r"the target must be \[2, 1\], like an answer, got \[2\]"):
        squared_error(torch.zeros(3, 2, 1), torch.zeros(2))
    with pytest.raises(
        ValueError, match=r"must be whole numbers \[2, 4, 4\], a class for each pixel, got torch.float32 \[2, 4, 4\]"
    ):
        pixel_cross_entropy(torch.zeros(3, 2, 5, 4, 4), torch.zeros(2, 4, 4))
    for pixels, wrong in ((torch.full((2, 4, 4), 255, dtype=torch.uint8), 255), (torch.full((2, 4, 4), -100), -100)):
        with pytest.raises(ValueError, match=f"classes 0..4, or -1 for pixels that do not count, got {wrong}: .* == {wrong}"):
            pixel_cross_entropy(torch.zeros(3, 2, 5, 4, 4), pixels)
    assert pixel_cross_entropy(torch.zeros(3, 0, 5, 4, 4), torch.zeros(0, 4, 4, dtype=torch.int64)).tolist() == [0] * 3


@pytest.mark.parametrize(
    "objective",
    [
        objectives.Weighted(),
        objectives.AANN(),
        objectives.AdaLoss(),
        objectives.SelfDistillation(),
        objectives.SelfDistillation(loss=squared_error),
        objectives.TDLambda(),
        objectives.TDLambda(1.0),
        objectives.Weighted(loss=pixel_cross_entropy),
    ],
    ids=repr,
)
def test_the_cross_entropy_of_one_class_trains_nothing_and_is_an_error(objective):
    shape = (3, 2, 1, 4, 4) if getattr(objective, "loss", None) is pixel_cross_entropy else (3, 2, 1)
    outputs = torch.zeros(shape, requires_grad=True)
    target = torch.zeros(2, *shape[3:], dtype=torch.int64)
    if getattr(objective, "loss", None) is squared_error:
        target = target[:, None]
    with pytest.raises(ValueError, match="cross-entropy needs logits of at least 2 classes, got 1, whose loss is always 0"):
        objective(outputs, target)


def test_a_level_of_one_class_beside_others_is_trained():
    objective = objectives.Hierarchical(levels=(3, 1))
    logits, target = torch.zeros(2, 4, 4), torch.zeros(4, 2, dtype=torch.int64)
    torch.testing.assert_close(objective(logits, target), 2 * torch.tensor(3.0).log())
    for objective in (objectives.Hierarchical(), objectives.Weighted(), objectives.TDLambda()):
        with pytest.raises(ValueError, match="at least 2 classes"):  # before a training begins
            objective.set_levels((1,))


def test_maps_are_not_distilled_along_their_width():
    objective = objectives.SelfDistillation(loss=pixel_cross_entropy)
    with pytest.raises(ValueError, match=r"distillation needs logits \[T, B, K\] of classes, got \[2, 1, 3, 4, 4\]"):
        objective(torch.zeros(2, 1, 3, 4, 4), torch.zeros(1, 4, 4, dtype=torch.int64))


@pytest.mark.parametrize("task", ["regression", "dense"])
def test_a_training_step_of_every_task_lowers_its_loss(task):
    model, x = made(task).train(), torch.rand(8, *SIZE)
    before = copy.deepcopy(model)
    if task == "dense":
        objective, target = objectives.Weighted("constant", loss=pixel_cross_entropy), (x[:, 0] > 0.5).long()
    else:
        objective, target = objectives.Weighted("constant", loss=squared_error), x.mean((2, 3)).expand(-1, 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(20):
        optimizer.zero_grad()
        objective(model(x), target).backward()
        optimizer.step()
    assert objective(model(x), target) < 0.9 * objective(before(x), target)


@given(st.integers(1, 4), st.lists(st.integers(1, 5), max_size=3), st.data())
def test_one_tensor_from_a_device_holds_the_same_as_its_parts(batch, sizes, data):
    shape = (batch, sum(sizes)) if sizes else (batch, *data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=3)))
    outputs = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    if data.draw(st.booleans()):
        outputs[0] = torch.nan
    levels = tuple(part.softmax(1) for part in outputs.split(sizes, 1)) if sizes else ()
    nothing, none = torch.full((batch,), -1), torch.zeros(batch, dtype=torch.int64)
    halves = tuple(torch.full_like(level, 0.5) for level in levels)
    prior = Answer(halves, nothing, 0.0, None, none, outputs=torch.zeros(shape))
    answers = []
    together = torch.cat([part.reshape(-1) for part in (*levels, outputs)]) if levels else outputs
    for packed in (pack(levels, outputs), together):
        gathered = Gathered(lambda: prior, sizes, [7])
        gathered.add(1, packed, None)
        answers.append(gathered.answer(0.0, None)(""))
    one, other = answers
    assert torch.equal(one.outputs, other.outputs)
    assert all(map(torch.equal, one.levels, other.levels))
    assert (one.steps.tolist(), one.not_finite) == (other.steps.tolist(), other.not_finite)
    assert one.outputs.isfinite().all()


def test_a_batch_without_a_class_costs_nothing() -> None:
    outputs = torch.randn(2, 3, 4, 5, 5, requires_grad=True)
    loss = pixel_cross_entropy(outputs, torch.full((3, 5, 5), -1))
    loss.sum().backward()
    assert loss.tolist() == [0, 0]
    assert not outputs.grad.any()
