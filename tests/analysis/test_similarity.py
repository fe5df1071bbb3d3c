"""RSA and linear CKA against plain loops, and between the layers and steps of a trace."""

import math
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
import torch
from torch import nn

from anytime.analysis.similarity import dissimilarities, linear_cka, rsa, similarity
from anytime.model import create_model
from anytime.trace import record


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def brute_cka(x: np.ndarray, y: np.ndarray) -> float:
    """HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)) with linear kernels and the centring matrix H."""
    n = len(x)
    h = np.eye(n) - np.ones((n, n)) / n
    gram = [np.array([[float(a @ b) for b in rows] for a in rows]) for rows in (x, y)]

    def hsic(k, m):
        return np.trace(k @ h @ m @ h)

    return hsic(*gram) / math.sqrt(hsic(gram[0], gram[0]) * hsic(gram[1], gram[1]))


def brute_rsa(x: np.ndarray, y: np.ndarray) -> float:
    pairs = [(i, j) for i in range(len(x)) for j in range(i + 1, len(x))]
    far = [[1 - scipy.stats.pearsonr(rows[i], rows[j]).statistic for i, j in pairs] for rows in (x, y)]
    return scipy.stats.spearmanr(*far).statistic


@pytest.mark.parametrize("widths", [(3, 5), (40, 4), (40, 60)])
def test_measures_by_brute_force(widths):
    x, y = (random(12, width, seed=width) for width in widths)
    y = y + x[:, : y.shape[1]].mean(1, keepdim=True)
    a, b = (value.double().numpy() for value in (x, y))
    assert linear_cka(x, y) == pytest.approx(brute_cka(a, b))
    assert rsa(x, y) == pytest.approx(brute_rsa(a, b))
    assert linear_cka(x, y) == pytest.approx(linear_cka(y, x))
    pairs = [(i, j) for i in range(12) for j in range(i + 1, 12)]
    assert dissimilarities(x).tolist() == pytest.approx([1 - np.corrcoef(a)[i, j] for i, j in pairs])


def test_what_the_measures_ignore():
    x = random(20, 6)
    rotation = torch.linalg.qr(random(6, 6, seed=1))[0]
    assert linear_cka(x, 3 * x @ rotation + 2) == pytest.approx(1)
    assert linear_cka(x, x**3) < 0.99
    assert rsa(x, 3 * x + 2) == pytest.approx(1)
    assert linear_cka(x.view(20, 2, 3), x) == pytest.approx(1)
    assert math.isnan(linear_cka(torch.ones(5, 2), random(5, 2)))
    assert linear_cka(x.double() + 1e6, x) == pytest.approx(1)


@pytest.mark.parametrize("value", [0.1, 0.3, 1 / 3, 7.7])
def test_what_is_the_same_for_all_images_up_to_rounding_has_no_similarity(value):
    """The mean of equal numbers is not always that number."""
    for images in (3, 7, 10, 49):
        constant = torch.full((images, 5), value, dtype=torch.float64)
        assert math.isnan(linear_cka(constant, random(images, 4)))
        assert math.isnan(linear_cka(random(images, 60), constant))
        assert math.isnan(rsa(value * torch.eye(images), random(images, 4)))  # all pairs are equally far apart


def test_bad_activations():
    with pytest.raises(ValueError, match="of the same images, got 4 and 5"):
        linear_cka(random(4, 2), random(5, 2))
    with pytest.raises(ValueError, match="activations must be an array of numbers, got list"):
        linear_cka(["a", "b"], random(2, 2))
    assert rsa(random(4, 2).tolist(), random(4, 3).numpy()) == rsa(random(4, 2), random(4, 3))
    with pytest.raises(ValueError, match="RSA needs at least 3 images, got 2"):
        rsa(random(2, 3), random(2, 3))
    with pytest.raises(ValueError, match="needs finite activations, but 3 are NaN"):
        linear_cka(torch.full((3, 1), torch.nan), random(3, 1))
    with pytest.raises(ValueError, match="1 of 3 have no variance, the first at 1"):
        rsa(torch.tensor([[1.0, 2], [0.1, 0.1], [3, 1]]), random(3, 2))


def test_between_layers_and_steps(trace):
    layers = {"a": random(4, 3, 5), "b": random(4, 3, 2, 2, seed=1)}
    layers["b"][:, 0] = torch.nan  # has not run at step 1
    layers["a"][:, 0] = 0.5  # the same everywhere
    full = replace(trace, activations=layers)
    pairs, found = similarity(full)
    assert pairs == [("a", 1), ("a", 2), ("a", 3), ("b", 1), ("b", 2), ("b", 3)]
    unknown = [pairs.index(("a", 1)), pairs.index(("b", 1))]
    assert found[unknown].isnan().all()
    assert found[:, unknown].isnan().all()
    assert float(found[1, 5]) == pytest.approx(linear_cka(layers["a"][:, 1], layers["b"][:, 2]))
    assert torch.equal(found.nan_to_num(), found.T.nan_to_num())
    assert found[2, 2] == pytest.approx(1)
    some, values = similarity(full, ["b"], rsa, steps=[3, 2])
    assert some == [("b", 3), ("b", 2)]
    assert float(values[0, 1]) == pytest.approx(rsa(layers["b"][:, 2], layers["b"][:, 1]))


def test_bad_traces(trace):
    with pytest.raises(ValueError, match=r"this trace has no activations: record them with .*layers=\[\.\.\.\]"):
        similarity(trace)
    full = replace(trace, activations={"a": random(4, 3, 5), "flat": random(4, 2)})
    with pytest.raises(ValueError, match=r"no activations of layer 'c' \(it has those of a, flat\): record them"):
        similarity(full, ["c"])
    with pytest.raises(ValueError, match=r"steps must lie in 1..3, got 4"):
        similarity(full, ["a"], steps=[4])
    with pytest.raises(ValueError, match=r"activations of 'flat' must be \[N, 3, ...\], got \[4, 2\]"):
        similarity(full)


def test_blocks_of_a_cascade_settle_one_after_the_other():
    """Block k of a cascaded network has its last output from step k on, and the steps before differ from it."""
    torch.manual_seed(0)
    model = create_model("cascaded_resnet18", width=4)
    for norm in (m for m in model.modules() if hasattr(m, "running_mean") and m.running_mean is not None):
        nn.init.normal_(norm.bias, std=0.3)
    layers = ["stem", "blocks.0", "blocks.3", "blocks.7"]
    data = [torch.rand(6, 3, 8, 8)]
    found = record(model, data, layers=layers, features=True, progress=False, seconds=False)
    steps = model.num_steps
    for name, settles in zip(layers[1:], (1, 4, 8), strict=True):
        values = found.activations[name]
        still = [bool((values[:, t] == values[:, -1]).all()) for t in range(steps)]
        assert still == [t >= settles for t in range(steps)], name
    top = found.activations["blocks.7"].mean((3, 4))
    assert torch.allclose(top.transpose(0, 1), torch.stack(found.features), atol=1e-5)
    assert found.activations["stem"].diff(dim=1).abs().max() == 0
    pairs, cka = similarity(found, ["blocks.0", "blocks.7"])
    last = pairs.index(("blocks.7", steps))
    assert cka[last, last] == pytest.approx(1)
    assert cka[pairs.index(("blocks.7", 2)), last] < 1
