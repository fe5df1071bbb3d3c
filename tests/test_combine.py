import json
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anytime.combine import Caching, Combiner, Geometric, Last, Mixture, Product, Temperature, combiner, fit_temperatures
from anytime.model import select_samples
from anytime.trace import Trace

LOGITS = torch.tensor([[[2.0, 1.0, -1.0]], [[1.0, 3.0, 0.5]], [[-1.0, -2.0, -3.0]]])  # T = 3, N = 1, K = 3
COMBINERS = [
    Last(),
    Caching(),
    Product(),
    Product([0.5, 1, 2]),
    Mixture([1, 4, 10]),
    Temperature([0.5, 1, 2]),
    Temperature([0.5, 1, 2], Caching()),
    Temperature([2, 1, 0.5], Mixture([1, 2, 3])),
    Geometric([[1], [0, 2], [0.5, 0.25, 1]], [[1, 1, 1, 1], [0.5, 1, 2, 1], [3, 1, 1, 1]]),
]


def make_trace(logits, labels=None):
    steps, samples, classes = logits.shape
    macs = torch.arange(1, steps + 1)
    labels = torch.zeros(samples, dtype=torch.int64) if labels is None else labels
    return Trace(logits, labels, macs, None, None, tuple(map(str, range(classes))))


def test_last_by_hand():
    torch.testing.assert_close(Last()(LOGITS), LOGITS.softmax(2))


def test_caching_keeps_the_most_confident_answer():
    logits = torch.tensor([[0.7, 0.3], [0.4, 0.6], [0.1, 0.9], [0.8, 0.2]]).log()[:, None]
    found = Caching()(logits)[:, 0]
    torch.testing.assert_close(found, torch.tensor([[0.7, 0.3], [0.7, 0.3], [0.1, 0.9], [0.1, 0.9]]))


def test_caching_keeps_the_earliest_of_equals():
    logits = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])
    assert Caching()(logits).argmax(2).flatten().tolist() == [0, 0]


def test_product_by_hand():
    found = Product()(LOGITS)[:, 0].double()
    first = torch.tensor([2.0, 1.0, 0.0]).double() ** (1 / 3)
    second = first * torch.tensor([1.0, 3.0, 0.5]).double() ** (2 / 3)
    torch.testing.assert_close(found[0], first / first.sum(), atol=1e-6, rtol=0)
    torch.testing.assert_close(found[1], second / second.sum(), atol=1e-6, rtol=0)
    torch.testing.assert_close(found[2], LOGITS[2, 0].double().softmax(0), atol=1e-6, rtol=0)  # every class is out


def test_product_with_weights_by_hand():
    found = Product([1, 2, 1])(LOGITS)[1, 0]
    torch.testing.assert_close(found, torch.tensor([2.0, 9.0, 0.0]) / 11)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**31))
def test_product_support_only_shrinks(seed):
    logits = torch.randn(5, 8, 6, generator=torch.Generator().manual_seed(seed))
    found = Product()(logits)
    support = (logits > 0).int().cumprod(0).bool()
    alive = support.any(2)
    assert torch.equal((found > 0)[alive], support[alive])
    torch.testing.assert_close(found[~alive], logits.softmax(2)[~alive])


def test_heaviside_experts_are_monotone():
    """Experts of equal height: the product is uniform on its support, so the true class never falls while it is in."""
    logits = (torch.randn(6, 200, 5, generator=torch.Generator().manual_seed(0)) > -1).float()
    logits[..., 0] = 1  # the true class is in every support
    assert bool((Product()(logits)[..., 0].diff(dim=0) >= -1e-6).all())


def test_mixture_by_hand():
    first, second, third = LOGITS[:, 0].softmax(1)
    found = Mixture([1, 4, 10])(LOGITS)[:, 0]
    torch.testing.assert_close(found[1], (first + 4 * second) / 5)
    torch.testing.assert_close(found[2], (first + 4 * second + 10 * third) / 15)


def test_temperature_by_hand():
    found = Temperature([0.5, 1, 2])(LOGITS)
    torch.testing.assert_close(found[0], (LOGITS[0] * 2).softmax(1))
    torch.testing.assert_close(found[2], (LOGITS[2] / 2).softmax(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("made", COMBINERS, ids=repr)
@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**31), scale=st.sampled_from([1e-3, 1.0, 30.0, 1e4]))
def test_steps_with_compaction_equal_the_whole(made, dtype, seed, scale):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, 7, 4, generator=generator, dtype=dtype) * scale
    whole = made(logits)
    assert whole.dtype == dtype
    assert bool(whole.isfinite().all())
    torch.testing.assert_close(whole.sum(2), torch.ones_like(whole[..., 0]))
    alive, state = torch.arange(7), made.start(3)
    for step in range(1, 4):
        before = [tensor.clone() for tensor in torch.utils._pytree.tree_leaves(state) if isinstance(tensor, torch.Tensor)]
        found, after = made.update(state, logits[step - 1, alive], step)
        torch.testing.assert_close(found, whole[step - 1, alive], atol=1e-6, rtol=1e-5)
        left = [tensor for tensor in torch.utils._pytree.tree_leaves(state) if isinstance(tensor, torch.Tensor)]
        assert all(map(torch.equal, before, left))  # pure
        keep = torch.rand(len(alive), generator=generator) < 0.7
        alive, state = alive[keep], select_samples(after, keep)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("made", COMBINERS, ids=repr)
def test_a_step_that_is_not_finite_leaves_no_trace_in_the_state(made, value):
    """With the same weights, the answers after it are as without it; other samples do not notice."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 2, 4, generator=generator)
    whole = made(logits)
    for bad in (0, 1):
        broken = logits.clone()
        broken[bad, 0, : None if value < 0 else 1] = value
        found = made(broken)
        assert not found[2].isnan().any()
        torch.testing.assert_close(found[:, 1], whole[:, 1])
        assert bad == 0 or found[1, 0].isnan().all() or torch.equal(found[1, 0], found[0, 0])


def test_a_step_that_is_not_finite_by_hand():
    first, second, third = LOGITS[:, 0].softmax(1)
    gap, late = LOGITS.clone(), LOGITS.clone()
    gap[1, 0, 0], late[0, 0, 0] = math.nan, math.nan
    torch.testing.assert_close(Mixture([1, 4, 10])(gap)[1:, 0], torch.stack([first, (5 * first + 10 * third) / 15]))
    torch.testing.assert_close(Mixture([1, 4, 10])(late)[1:, 0], torch.stack([second, (5 * second + 10 * third) / 15]))
    torch.testing.assert_close(Caching()(gap)[1:, 0], torch.stack([first, first]))
    torch.testing.assert_close(Caching()(late)[1:, 0], torch.stack([second, second]))
    torch.testing.assert_close(Product([1, 2, 1])(late)[1, 0], torch.tensor([1.0, 9.0, 0.25]) / 10.25)
    torch.testing.assert_close(Product([1, 2, 1])(gap)[1, 0], torch.tensor([2.0, 1.0, 0.0]) / 3)


@pytest.mark.parametrize("made", COMBINERS, ids=repr)
def test_saved_and_read_exactly(made):
    assert Combiner.from_dict(json.loads(json.dumps(made.to_dict(), allow_nan=False))) == made


def test_fitted_temperatures_undo_a_scale():
    generator = torch.Generator().manual_seed(0)
    true = torch.randn(4000, 5, generator=generator)
    labels = torch.multinomial(true.softmax(1), 1, generator=generator)[:, 0]
    fitted = fit_temperatures(make_trace(torch.stack([true * 4, true, true / 4]), labels))
    assert fitted.temperatures == pytest.approx((4, 1, 0.25), rel=0.06)
    assert fitted.combiner == Last()


def test_fitted_temperatures_have_no_slope():
    generator = torch.Generator().manual_seed(1)
    logits, labels = torch.randn(2, 500, 3, generator=generator), torch.randint(3, (500,), generator=generator)
    logits[:, torch.arange(500), labels] += 1
    fitted = fit_temperatures(make_trace(logits, labels), Caching())
    inverse = (1 / torch.tensor(fitted.temperatures, dtype=torch.float64)).requires_grad_()
    for step in range(2):
        torch.nn.functional.cross_entropy(logits[step].double() * inverse[step], labels).backward()
    assert inverse.grad.abs().max() < 1e-5
    assert fitted.combiner == Caching()


def test_fitted_temperatures_of_a_perfect_network_stay_in_their_range():
    (temperature,) = fit_temperatures(make_trace(torch.eye(3)[None] * 9, torch.arange(3))).temperatures
    assert 1 / 50 <= temperature < 0.2


def test_names():
    assert combiner("last") == Last()
    assert combiner("product") == Product()
    assert combiner("mixture", [1, 2]) == Mixture([1, 2])
    with pytest.raises(ValueError, match="unknown combiner 'prodct'; did you mean 'product'"):
        combiner("prodct")
    with pytest.raises(ValueError, match="macs="):
        combiner("mixture")
    with pytest.raises(ValueError, match="fit_temperatures"):
        combiner("temperature")


def test_weights_may_be_arrays():
    for weights in (torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0]).numpy(), [torch.tensor(1), 2]):
        assert Mixture(weights) == Mixture((1.0, 2.0))


def test_clear_errors():
    for wrong in ([], [1, 0], [1, -1], [math.nan], [math.inf], 3, torch.tensor(2.0), [None], ["a"]):
        with pytest.raises(ValueError, match="above zero, one per step"):
            Mixture(wrong)
    with pytest.raises(ValueError, match="made for 2 steps, the model has 3"):
        Mixture([1, 2])(LOGITS)
    with pytest.raises(ValueError, match="made for 2 steps, the model has 3"):
        Product([1, 2]).start(3)
    with pytest.raises(ValueError, match="made for 1 steps, the model has 2"):
        Temperature([1, 2], Mixture([1])).start(2)
    with pytest.raises(ValueError, match="does not change with temperature"):
        Temperature([1, 2], Product())
    levels = replace(make_trace(LOGITS), labels=torch.zeros(1, 2, dtype=torch.int64), meta={"levels": [1, 2]})
    with pytest.raises(ValueError, match="2 label levels"):
        fit_temperatures(levels)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "lats"}, "did you mean 'last'"),
        ({}, "unknown combiner None"),
        ({"kind": "mixture", "weight": [1]}, "no argument 'weight'; did you mean 'weights'"),
        ({"kind": "mixture"}, "cannot be built"),
        ({"kind": "never"}, "unknown combiner 'never'"),
    ],
)
def test_damaged_descriptions_raise(values, message):
    with pytest.raises(ValueError, match=message):
        Combiner.from_dict(values)
