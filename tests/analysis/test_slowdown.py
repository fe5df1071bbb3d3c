"""The slowdown attack, on a network whose outcome is known in closed form, and on a small AnytimeNet."""

import math

import pytest
import torch

from anytime import AnytimeModel, create_model, record
from anytime.analysis.slowdown import EPSILON, delayed, delayed_batches, slowdown
from anytime.stopping import Confidence, Entropy, MacBudget, Never, Patience
from anytime.trace import Trace

SLOPE, THRESHOLD = 10.0, 0.8


class Brightness(AnytimeModel):
    """The first answer is as sure as the image is far from grey, p = sigmoid(SLOPE |x - 0.5|); the second always is."""

    def __init__(self) -> None:
        super().__init__(num_classes=2, in_channels=1)
        self.num_steps = 2
        self.slope = torch.nn.Parameter(torch.tensor(SLOPE))

    def initial_state(self, x):
        return 0, x

    def step(self, state):
        t, x = state
        far = self.slope * (x.mean((1, 2, 3)) - 0.5) * (1 if t == 0 else 1000)
        return torch.stack([-far / 2, far / 2], 1), (t + 1, x)


def trace(model: AnytimeModel, x: torch.Tensor) -> Trace:
    with torch.no_grad():
        logits = model(x)
    return Trace(logits, torch.zeros(len(x), dtype=torch.int64), torch.tensor([10, 100]), None, None, ("dark", "bright"))


@pytest.mark.parametrize("epsilon", [EPSILON, 0.1])
def test_exactly_the_images_near_the_threshold_are_delayed(epsilon):
    model = Brightness()
    shades = torch.tensor([0.0, 0.2, 0.34, 0.36, 0.45, 0.49, 0.5, 0.52, 0.6, 0.65, 0.7, 0.97, 1.0])
    x = shades.view(-1, 1, 1, 1).expand(-1, 1, 3, 3).clone()
    found = delayed(model, x, epsilon)
    distance = (shades - 0.5).abs()
    nearest = (distance - epsilon).clamp(min=0)  # no image can be nearer to grey
    reached = (found.mean((1, 2, 3)) - 0.5).abs()
    far = distance > epsilon
    torch.testing.assert_close(reached[far], nearest[far], rtol=0, atol=1e-6)
    assert bool((reached[~far] <= 2.5 * epsilon / 20).all()), "within a step of grey"
    surely = math.log(THRESHOLD / (1 - THRESHOLD)) / SLOPE  # the first answer stops from this distance on
    clean, attacked = (trace(model, images) for images in (x, found))
    result = slowdown(clean, attacked, Confidence(THRESHOLD))
    assert result.saved == pytest.approx(0.9 * float((distance >= surely).double().mean()))
    assert result.saved_attacked == pytest.approx(0.9 * float((nearest >= surely).double().mean()))
    assert 0 < result.lost < 1
    assert result.lost == pytest.approx(1 - float((nearest >= surely).sum() / (distance >= surely).sum()))


def test_a_rule_that_does_not_look_at_answers_loses_nothing():
    model, x = Brightness(), torch.full((4, 1, 2, 2), 0.64)
    clean, attacked = trace(model, x), trace(model, delayed(model, x))
    for rule in (Confidence(THRESHOLD), Entropy(0.55)):
        assert (slowdown(clean, attacked, rule).saved, slowdown(clean, attacked, rule).lost) == (0.9, 1.0)
    assert slowdown(clean, attacked, MacBudget(50)).lost == 0
    assert slowdown(clean, attacked, Patience(1)).lost == 0
    never = slowdown(clean, attacked, Never())
    assert never.saved == 0
    assert math.isnan(never.lost)


def test_bounds_hold_the_model_is_unchanged_and_record_takes_the_batches():
    torch.manual_seed(0)
    model = create_model("anytimenet", blocks=(1, 2, 1), scheme=((1, 1, 1), (0, 1, 0)), width=4).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x, labels = torch.rand(3, 3, 8, 8), torch.tensor([0, 1, 2])
    x[0, 0] = 0.0
    x[1, 1] = 1.0
    found = delayed(model, x, iterations=3)
    assert float((found - x).abs().max()) <= EPSILON + 1e-6
    assert 0 <= float(found.min()) <= float(found.max()) <= 1
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    model.eval()

    def unsure(images):
        with torch.no_grad():
            return -model(images)[:-1].log_softmax(2).mean(2).sum(0)

    assert bool((unsure(found) < unsure(x)).all())
    kept = record(model, delayed_batches(model, [(x, labels)], iterations=3), seconds=False, progress=False)
    with torch.no_grad():
        torch.testing.assert_close(kept.logits, model(found))


def test_what_cannot_be_attacked():
    model, x = Brightness(), torch.rand(1, 1, 2, 2)
    for arguments, message in (
        ({"epsilon": 0}, "epsilon must be above 0"),
        ({"epsilon": 8}, "at most 1"),
        ({"iterations": 0}, "iterations must be at least 1"),
        ({"iterations": 2.5}, "iterations must be at least 1"),
        ({"size": 0}, "size above 0"),
        ({"size": math.inf}, "size above 0"),
    ):
        with pytest.raises(ValueError, match=message):
            delayed(model, x, **arguments)
    for images in (x + 1, 0.5 - x, torch.full_like(x, math.nan), (255 * x).to(torch.uint8)):
        with pytest.raises(ValueError, match=r"must be of floating point and lie in \[0, 1\], got torch"):
            delayed(model, images)
    single = create_model("anytimenet_baseline", blocks=(1, 1, 1), width=4)
    with pytest.raises(ValueError, match="at least 2 answers"):
        delayed(single, torch.rand(1, 3, 8, 8))
    with pytest.raises(ValueError, match="the same images"):
        slowdown(trace(model, x), trace(model, torch.rand(2, 1, 2, 2)), Never())
