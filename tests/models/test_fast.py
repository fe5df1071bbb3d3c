"""The fast network: its whitening, its exact cost, and what it learns in a few hundred steps."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import anytime
from anytime.analysis.curves import accuracy
from anytime.data import Digits
from anytime.models.fast import FastNet
from anytime.training.config import parse
from anytime.training.launch import start_training

CONTRACT_ARGUMENTS = {
    "fast": {"widths": (8, 8, 8), "head_widths": (4, 4)},
    "fast_views": {"widths": (8, 8, 8), "head_widths": (4, 4)},
    "fast_branched": {"widths": (8, 12, 12), "head_widths": (4, 0), "convs": (2, 1, 1)},
}


def test_cost() -> None:
    first = 31**2 * (12 * 24 + 9 * 24 * 64) + 15**2 * 9 * 64 * 64
    heads = [7**2 * 9 * 64 * 32 + 32 * 9 * 10, 3**2 * 9 * 256 * 64 + 64 * 9 * 10, 256 * 10]
    trunk = [first, 15**2 * 9 * 64 * 256 + 7**2 * 9 * 256**2, 7**2 * 9 * 256**2 + 3**2 * 9 * 256**2]
    wanted = [sum(trunk[: t + 1]) + sum(heads[: t + 1]) for t in range(3)]
    model = anytime.create_model("fast")
    assert anytime.step_macs(model, (3, 32, 32)) == wanted
    assert wanted[0] < 0.2 * wanted[-1]
    assert 2 * sum(p.numel() for p in model.parameters()) < 5e6  # bytes in float16


def test_branches_and_shortcuts() -> None:
    model = FastNet(100, widths=(6, 9, 9), head_widths=(5, 0), convs=(2, 1, 1), branches=1).double().eval()
    x = torch.rand(2, 3, 22, 22, dtype=torch.float64)

    def halving(h: Tensor, module: torch.nn.Module) -> Tensor:
        return F.gelu(module.norm(F.max_pool2d(module.conv(h), 2)))

    first, second, third = model.groups
    a = halving(F.gelu(model.whitening(model.normalize(x))), first[0])
    (conv1, conv2), (norm1, norm2) = first[1].convs, first[1].norms
    h1 = F.gelu(a + norm2(conv2(F.gelu(norm1(conv1(a))))))
    before, block = model.branches[0]
    b = F.gelu(before.norm(before.conv(F.max_pool2d(h1, 2))))
    b = F.gelu(b + block.norms[0](block.convs[0](b)))
    c = halving(h1, second[0])
    h2 = F.gelu(c + second[1].norms[0](second[1].convs[0](c))) + b
    h3 = F.gelu(h2 + third[0].norms[0](third[0].convs[0](h2)))
    wanted = torch.stack([head(h) for head, h in zip(model.heads, (b, h2, h3), strict=True)])
    torch.testing.assert_close(model(x), wanted, rtol=0, atol=1e-13)


def test_cost_of_branches() -> None:
    groups = [
        31**2 * (12 * 24 + 9 * 24 * 64) + 2 * 15**2 * 9 * 64**2,
        15**2 * 9 * 64 * 192 + 7**2 * 9 * 192**2,
        7**2 * 9 * 192 * 440 + 3**2 * 9 * 440**2,
        2 * 3**2 * 9 * 440**2,  # as wide as the one before it: two convolutions and no halving
    ]
    branch = 7**2 * 9 * (64 * 192 + 192**2)
    heads = [3**2 * (9 * 192 * 192 + 192 * 100), 3**2 * (9 * 192 * 256 + 256 * 100), 440 * 100, 440 * 100]
    wanted = [sum(groups[: t + 1]) + branch + sum(heads[: t + 1]) for t in range(4)]
    assert anytime.step_macs(anytime.create_model("fast_branched", 100), (3, 32, 32)) == wanted
    assert all(macs <= 1e6 * budget for macs, budget in zip(wanted, (56, 101, 155, 198), strict=True))  # those of DFS


def test_further_answers_are_means_over_views() -> None:
    model = FastNet(widths=(4, 8), head_widths=(2,), views=4).double().eval()
    x = torch.rand(5, 3, 12, 12, dtype=torch.float64)
    wide = F.pad(x, (1, 1, 1, 1), "reflect")
    seen = [x, x.flip(-1), wide[..., 2:, 2:], wide.flip(-1)[..., :-2, :-2]]
    last = torch.stack([model(image)[1] for image in seen])
    answers = model(x)
    assert len(answers) == 5
    for t, wanted in zip(range(1, 5), last.cumsum(0) / torch.arange(1, 5)[:, None, None], strict=True):
        torch.testing.assert_close(answers[t], wanted, rtol=0, atol=1e-14)
    model.train()
    repeated = model(x)
    assert all(torch.equal(answer, repeated[1]) for answer in repeated[2:])


def test_cost_of_further_views() -> None:
    single, more = (anytime.step_macs(anytime.create_model(name), (3, 32, 32)) for name in ("fast", "fast_views"))
    early_heads = 7**2 * 9 * 64 * 32 + 32 * 9 * 10 + 3**2 * 9 * 256 * 64 + 64 * 9 * 10
    assert more == [*single, *(single[-1] + k * (single[-1] - early_heads) for k in (1, 2, 3))]


def test_views_have_no_weights_and_do_not_change_the_training(tmp_path: Path) -> None:
    flags = ["--data=Digits", "--data.limit=64", "--data.batch_size=32", "--epochs=2", "--progress=false", "--logger=csv"]
    flags += ["--model.widths=[4,8,8]", "--model.head_widths=[2,4]", "--precision=bf16-mixed"]
    runs = [
        start_training(parse([*flags, f"--model={name}", f"--objective.weights={weights}"]), tmp_path / name)
        for name, weights in (("fast", [0.2, 0.3, 1]), ("fast_views", [0.2, 0.3, 1, 0, 0, 0]))
    ]
    single, more = (anytime.load(run).state_dict() for run in runs)
    assert single.keys() == more.keys()
    assert all(torch.equal(single[name], more[name]) for name in single)


def test_whitened_patches_are_uncorrelated() -> None:
    torch.manual_seed(0)
    smooth = F.avg_pool2d(torch.rand(64, 3, 34, 34), 3, 1)
    model = FastNet(widths=(4,), head_widths=())
    model.set_normalization(smooth.mean((0, 2, 3)).tolist(), smooth.std((0, 2, 3)).tolist())
    model.initialize_from(smooth)
    with torch.no_grad():
        white = model.whitening(model.normalize(smooth)).transpose(0, 1).flatten(1).double()
    moments = white[:12] @ white[:12].T / white.shape[1]
    assert torch.allclose(white[:12], -white[12:])
    variances = moments.diagonal()
    assert torch.allclose(moments, torch.diag(variances), atol=1e-4)
    assert variances.min() > 0.9  # v / (v + 5e-4)
    assert variances.max() < 1.0001


def test_untrained_whitening_passes_pixels() -> None:
    x = torch.rand(2, 3, 5, 5)
    white = FastNet(widths=(4,), head_widths=()).whitening(x)
    assert torch.equal(white[:, 0], x[:, 0, :-1, :-1])
    assert torch.equal(white[:, 12], -x[:, 0, :-1, :-1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"widths": ()}, r"widths must be at least 1 in every group, got \(\)"),
        ({"widths": (8, 0, 8)}, r"got \(8, 0, 8\)"),
        ({"head_widths": (4,)}, r"needs 2 widths .* \(64, 256, 256\), or none for a single answer, got \(4,\)"),
        ({"convs": (1, 1)}, r"convs needs 3 numbers of at least 1, one a group, or none, got \(1, 1\)"),
        ({"convs": (1, 0, 1)}, r"got \(1, 0, 1\)"),
        ({"branches": 3}, r"branches must be a whole number in 0..2, .*, got 3 for widths \(64, 256, 256\)"),
        ({"branches": True}, r"branches must be a whole number, got True"),
        ({"widths": (8, 8.5, 8)}, r"widths must be a whole number, got 8.5"),
        ({"convs": (1, 10_000, 1)}, r"convs must add up to at most 10,000, got 10,002"),
        ({"branches": 2, "convs": (1, 1, 1)}, r"a group after them that halves, got 2 for widths \(64, 256, 256\)"),
        ({"branches": 1, "head_widths": ()}, r"in 0..0, .*, got 1"),
        ({"scale": 0.0}, r"scale must be above 0 and finite, got 0.0"),
        ({"scale": float("inf")}, r"scale must be above 0 and finite, got inf"),
        ({"widths": 8}, r"widths must be a list of whole numbers, got 8"),
        ({"convs": None}, r"convs must be a list of whole numbers, got None"),
        ({"widths": (1,) * 10_001, "head_widths": ()}, r"widths must add up to at most 10,000, got 10,001"),
        ({"views": 5}, r"views must be a whole number in 1..4, got 5"),
        ({"views": 0}, r"views must be a whole number in 1..4, got 0"),
    ],
)
def test_bad_arguments(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FastNet(**arguments)  # type: ignore[arg-type]


def test_learns_in_a_few_hundred_steps(tmp_path: Path) -> None:
    recipe = Path(__file__).parents[2] / "recipes" / "fast_cifar10.yaml"
    flags = ["--data=Digits", "--data.batch_size=32", "--data.validation=0.2", "--data.flip=random", "--epochs=6"]
    flags += ["--model=fast", "--objective.weights=[0.2,0.3,1]"]  # mirrored digits are others
    flags += ["--model.widths=[16,32,32]", "--model.head_widths=[8,16]", "--precision=32-true", "--progress=false"]
    run = start_training(parse(flags, [recipe]), tmp_path / "run")
    model = anytime.load(run)
    patches = model.whitening.weight.detach()
    assert not torch.equal(patches[:4], FastNet(in_channels=1).whitening.weight[:4])  # from the images
    data = Digits()
    data.setup("test")
    reached = accuracy(anytime.record(model, data.test_dataloader(), progress=False))
    assert reached.min() > 0.8, reached
    assert reached[-1] > 0.95


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch compiles with g++")
def test_compiled_in_bfloat16_its_gradients_are_as_near_to_float32_as_in_eager_mode() -> None:
    torch.manual_seed(0)
    model = FastNet(widths=(8,), head_widths=(), scale=1.0)
    images = torch.rand(16, 3, 14, 14)

    def last_answer(x: Tensor, mixed: bool) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            return model(x)[-1].float().square().sum()

    def gradient(function: Callable[..., Tensor], mixed: bool) -> Tensor:
        parameters = [p for p in model.parameters() if p.requires_grad]
        return torch.cat([g.flatten() for g in torch.autograd.grad(function(images, mixed), parameters)])

    exact, eager, limit = gradient(last_answer, False), gradient(last_answer, True), sys.getrecursionlimit()
    try:
        compiled = gradient(torch.compile(last_answer), True)
    finally:
        sys.setrecursionlimit(limit)  # which the compiler raises
    assert 0 < (compiled - exact).norm() < 1.5 * (eager - exact).norm()
