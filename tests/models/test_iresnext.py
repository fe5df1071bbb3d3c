"""I-ResNeXt against the counts of its paper and its defining sum over branches; its stand-alone sub-networks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

from anytime.cost import step_macs
from anytime.models.slicing.iresnext import IResNeXt, iresnext, iresnext29
from anytime.models.slicing.sliced import SliceBatchNorm2d, widen
from anytime.testing import check_anytime_model

CONTRACT_ARGUMENTS = {
    "iresnext": {"blocks": (1, 2), "width": 12, "steps": 3, "cardinality": 6, "bottleneck": 2},
    "iresnext29": {"blocks": (1, 1, 1), "width": 8, "steps": 2, "cardinality": 2, "batch_norm": "shared"},
}

TINY: dict[str, Any] = {"blocks": (1, 2, 1), "width": 12, "steps": 3, "cardinality": 6, "bottleneck": 2}


def randomise(model: IResNeXt, seed: int = 0) -> IResNeXt:
    """Puts a model into float64 and eval mode, with parameters and running statistics as after training."""
    generator = torch.Generator().manual_seed(seed)
    model.double()
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_floating_point():
            noise = torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype)
            tensor.data += noise if "running" in name else 0.2 * (noise - 0.5)
    return model.eval()


def images(*size: int, seed: int = 0) -> Tensor:
    return torch.rand(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-10)


def on_meta(factory: Callable[..., IResNeXt], *arguments: Any) -> IResNeXt:
    """Builds the model without numbers, so that counts of full size take no time."""
    with torch.device("meta"):
        return factory(*arguments)


def counts(blocks: int, classes: int, width: int = 64, branch: int = 4, cardinality: int = 8) -> list[dict[str, int]]:
    """Parameters and MACs of the sub-networks k = 1..8 on 32x32 pixels, `blocks` at each of three scales."""
    rows = []
    for k in range(1, 9):
        row = Counter(conv=27 * width, macs=27 * width * 32**2)
        for scale in range(3):
            trunk, unit, pixels = width * 2**scale, branch * 2**scale, (32 // 2**scale) ** 2
            thin = k * cardinality // 8 * unit
            conv = trunk * thin + 9 * thin * unit + thin * trunk
            row.update(conv=blocks * conv, macs=blocks * conv * pixels, norm=blocks * (2 * trunk + 4 * thin))
        last = 4 * width
        row.update(head=2 * last + last * classes + classes, macs=last * classes)
        rows.append(dict(row))
    return rows


MACS = {  # MACs of the sub-networks, in millions
    iresnext29: [7.8, 13.9, 19.9, 26.0, 32.0, 38.0, 44.1, 50.1],
    iresnext: [15.9, 30.0, 44.1, 58.2, 72.3, 86.4, 100.5, 114.6],
}
PARAMETERS = [  # model, L / 3, classes, millions in the sub-networks and in all
    (iresnext29, 3, 10, {1: 0.049, 8: 0.341}, 0.391),
    (iresnext, 7, 10, dict(enumerate([0.108, 0.206, 0.303, 0.400, 0.497, 0.594, 0.692, 0.789], 1)), 0.876),
    (iresnext, 7, 100, {1: 0.131, 8: 0.812}, 1.061),
]


@pytest.mark.parametrize(("factory", "blocks"), [(iresnext29, 3), (iresnext, 7)])
def test_macs_of_the_paper(factory: Any, blocks: int) -> None:
    """Exact counts, and in millions to one digit."""
    model, expected = on_meta(factory), [row["macs"] for row in counts(blocks, 10)]
    assert step_macs(model, (3, 32, 32), contract=True) == expected
    assert [round(cost / 1e6, 1) for cost in expected] == MACS[factory]
    if factory is iresnext:
        stream, stem = step_macs(model, (3, 32, 32)), 27 * 64 * 32**2
        assert stream == [sum(expected[:k]) - (k - 1) * stem for k in range(1, 9)]
        assert round(stream[-1] / 1e6, 1) == 509.6
        assert round(stream[-1] / expected[-1], 2) == 4.45


@pytest.mark.parametrize(("factory", "blocks", "classes", "sizes", "stored"), PARAMETERS)
def test_parameters_of_the_paper(factory: Any, blocks: int, classes: int, sizes: dict[int, float], stored: float) -> None:
    """Exact counts, and in millions to three digits. A sub-network: convolutions, one set of batch norms, its classifier."""
    model, rows = on_meta(factory, classes), counts(blocks, classes)
    for k, size in sizes.items():
        thin = sum(p.numel() for p in model.subnetwork(k).parameters())
        assert thin == rows[k - 1]["conv"] + rows[k - 1]["norm"] + rows[k - 1]["head"]
        assert round(thin / 1e6, 3) == size
    parts = rows[-1]["conv"], sum(row["norm"] for row in rows), sum(row["head"] for row in rows)
    assert sum(p.numel() for p in model.parameters()) == sum(parts)
    assert round(sum(parts) / 1e6, 3) == stored
    if blocks == 7 and classes == 10:
        assert [round(part / 1e6, 3) for part in parts] == [0.773, 0.078, 0.025]


def test_depth() -> None:
    model = on_meta(iresnext)
    assert len(model.blocks) == 21
    layers = sum(isinstance(module, nn.Conv2d | nn.Linear) for module in model.subnetwork(8).modules())
    assert layers == 3 * 21 + 2 == 65


def reference(model: IResNeXt, x: Tensor, k: int, blocks: Sequence[int], cardinality: int, shared: bool) -> Tensor:
    """x + F_1(x) + ... + F_{kC/K}(x) in each block, branch by branch."""

    def norm(layer: SliceBatchNorm2d, h: Tensor, start: int, channels: slice) -> Tensor:
        start = 0 if shared else start
        of = slice(start + channels.start, start + channels.stop)
        numbers = layer.running_mean[of], layer.running_var[of], layer.weight[of], layer.bias[of]
        mean, var, weight, bias = (number[:, None, None] for number in numbers)
        return torch.relu((h - mean) / (var + 1e-5).sqrt() * weight + bias)

    h = F.conv2d(model.normalize(x), model.stem.weight, padding=1)
    widenings = [sum(blocks[:s]) for s in range(1, len(blocks))]
    for index, block in enumerate(model.blocks):
        if index in widenings:
            h = F.avg_pool2d(h, 2, ceil_mode=True)
            h = torch.cat([h, torch.zeros_like(h)], 1)
        parts: Any = block
        width, inner = parts.conv1.weight.shape[1], parts.conv1.weight.shape[0]
        unit, step = inner // cardinality, inner // model.num_steps
        y, first = h, norm(parts.norm1, h, (k - 1) * width, slice(0, width))
        for i in range(k * cardinality // model.num_steps):
            of = slice(i * unit, (i + 1) * unit)
            a = F.conv2d(first, parts.conv1.weight[of])
            b = F.conv2d(norm(parts.norm2, a, step * k * (k - 1) // 2, of), parts.conv2.weight[of], padding=1)
            y = y + F.conv2d(norm(parts.norm3, b, step * k * (k - 1) // 2, of), parts.conv3.weight[:, of])
        h = y
    head: Any = model.heads[k - 1]
    mean, var, weight, bias = (
        number[:, None, None] for number in (head[0].running_mean, head[0].running_var, head[0].weight, head[0].bias)
    )
    return head[4](torch.relu((h - mean) / (var + 1e-5).sqrt() * weight + bias).mean((2, 3)))


@settings(deadline=None, max_examples=20)
@given(
    st.lists(st.integers(1, 2), min_size=1, max_size=3),
    st.integers(1, 4),
    st.integers(1, 2),
    st.integers(1, 3),
    st.integers(1, 9),
    st.sampled_from(["independent", "shared"]),
    st.tuples(st.integers(4, 9), st.integers(4, 9)),
)
def test_any_model_is_the_sum_of_its_branches(
    blocks: list[int], steps: int, branches: int, bottleneck: int, width: int, batch_norm: Any, size: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    cardinality = steps * branches
    model = randomise(IResNeXt(3, 2, blocks, width, steps, cardinality, bottleneck, batch_norm=batch_norm))
    x = images(2, 2, *size)
    with torch.no_grad():
        logits, streamed = model(x), torch.stack(list(model.stream(x)))
        assert logits.shape == (steps, 2, 3)
        close(streamed, logits)
        for k in range(1, steps + 1):
            close(logits[k - 1], reference(model, x, k, blocks, cardinality, batch_norm == "shared"))
            close(model(x, step=k), logits[k - 1])
            close(model.subnetwork(k)(x), logits[k - 1])
            close(torch.stack(list(model.stream(x, start=k))), logits[k - 1 :])


def test_zero_channels_are_interleaved_by_group() -> None:
    x = torch.arange(1.0, 5.0).view(1, 4, 1, 1).expand(1, 4, 2, 2)
    assert widen(x, 1).flatten().tolist() == [1, 2, 3, 4, 0, 0, 0, 0]
    assert widen(x, 2).flatten().tolist() == [1, 2, 0, 0, 3, 4, 0, 0]
    assert widen(x, 4).flatten().tolist() == [1, 0, 2, 0, 3, 0, 4, 0]
    assert widen(torch.tensor([[[[1.0, 3.0, 7.0]]]]), 1).tolist() == [[[[2.0, 7.0]], [[0.0, 0.0]]]]
    assert widen(images(2, 6, 4, 4).to(memory_format=torch.channels_last), 3).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("batch_norm", ["independent", "shared"])
def test_a_stand_alone_sub_network_trains_as_inside(batch_norm: Any) -> None:
    """It has the same answers and gradients by the batch's statistics, and the same running statistics afterwards."""
    for k in (1, 2, 3):
        model = randomise(iresnext(4, **TINY, batch_norm=batch_norm)).train()
        thin = model.subnetwork(k)
        assert thin.training
        before = {name: buffer.clone() for name, buffer in model.named_buffers()}
        x = images(4, 3, 8, 8)
        inside, outside = model(x, step=k), thin(x)
        close(inside, outside)
        inside.square().sum().backward()
        outside.square().sum().backward()
        for index, (block, plain) in enumerate(zip(model.blocks, thin.blocks, strict=True)):
            for name in ("norm1", "norm2", "norm3"):
                norm, other = getattr(block, name), getattr(plain, name)
                channels, start = other.num_features, norm.starts[k - 1]
                for number in ("running_mean", "running_var"):
                    now, then = getattr(norm, number).clone(), before[f"blocks.{index}.{name}.{number}"]
                    close(now[start : start + channels], getattr(other, number))
                    now[start : start + channels] = then[start : start + channels]
                    assert torch.equal(now, then), "the other sub-networks' statistics are unchanged"
                for number in ("weight", "bias"):
                    grad = getattr(norm, number).grad
                    close(grad[start : start + channels], getattr(other, number).grad)
                    assert grad.count_nonzero() <= channels
            inputs = plain.conv3.weight.shape[1]
            close(block.conv3.weight.grad[:, :inputs], plain.conv3.weight.grad)
            close(block.conv2.weight.grad[:inputs], plain.conv2.weight.grad)
            assert not block.conv1.weight.grad[inputs:].any()


@pytest.mark.parametrize("batch_norm", ["independent", "shared"])
def test_one_backward_sums_the_gradients_of_k_passes(batch_norm: Any) -> None:
    def gradients(loss: Callable[[IResNeXt], None]) -> list[Tensor]:
        torch.manual_seed(0)
        model = randomise(iresnext(4, **TINY, batch_norm=batch_norm)).train()
        loss(model)
        return [p.grad for p in model.parameters() if p.grad is not None]

    x, target = images(6, 3, 8, 8), torch.arange(6) % 4

    def at_once(model: IResNeXt) -> None:
        sum(F.cross_entropy(logits, target) for logits in model(x)).backward()  # type: ignore[union-attr]

    def one_by_one(model: IResNeXt) -> None:
        for k in (1, 2, 3):
            F.cross_entropy(model(x, step=k), target).backward()

    for one, other in zip(gradients(at_once), gradients(one_by_one), strict=True):
        close(one, other)


def test_batch_norm_independent_or_shared() -> None:
    one, other = (iresnext(4, **TINY, batch_norm=kind) for kind in ("independent", "shared"))  # type: ignore[arg-type]
    norms = {kind: [m for m in model.modules() if isinstance(m, SliceBatchNorm2d)] for kind, model in ((1, one), (2, other))}
    assert [len(norm.weight) for norm in norms[1][:3]] == [3 * 12, 4 + 8 + 12, 4 + 8 + 12]
    assert [len(norm.weight) for norm in norms[2][:3]] == [12, 12, 12]
    for model, untouched in ((one, True), (other, False)):
        model.train()(images(4, 3, 8, 8).float(), step=1)
        last = model.blocks[0].norm1.running_mean[-12:]  # type: ignore[union-attr, index]
        assert torch.equal(last, torch.zeros(12)) is untouched
        assert len({id(p) for head in model.heads for p in head.parameters()}) == 3 * 4, "classifiers are always independent"


def test_a_sub_network_is_a_copy_of_plain_layers() -> None:
    model = randomise(iresnext(4, **TINY))
    x = images(1, 3, 8, 8)
    thin, logits = model.subnetwork(2), model(x, step=2)
    assert not thin.training
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        thin(x)
    assert counter.get_total_flops() == 2 * step_macs(model, (3, 8, 8), contract=True)[1]
    kinds = {type(module).__name__ for module in thin.modules() if not any(module.children())}
    assert kinds == {"Conv2d", "BatchNorm2d", "Linear", "ReLU", "AdaptiveAvgPool2d", "Flatten", "Identity"}
    conv: Any = thin.blocks[3].conv2
    assert (conv.in_channels, conv.out_channels, conv.groups) == (32, 32, 4)
    model.set_normalization([0.5] * 3, [0.1] * 3)
    for parameter in model.parameters():
        parameter.data.zero_()
    close(thin(x), logits)


def test_a_single_thin_network_is_a_model_of_one_step() -> None:
    """Needed for the paper's comparison of jointly and separately trained sub-networks."""
    single = on_meta(lambda: IResNeXt(cardinality=3, steps=1))
    assert sum(p.numel() for p in single.parameters()) == sum(p.numel() for p in on_meta(iresnext).subnetwork(3).parameters())


def test_only_the_stem_is_reused() -> None:
    model = randomise(iresnext(4, **TINY))
    runs = Counter[str]()
    for name, module in [("stem", model.stem), *((f"head{k}", head) for k, head in enumerate(model.heads, 1))]:
        module.register_forward_hook(lambda *_, name=name: runs.update([name]))
    state = model.initial_state(images(2, 3, 8, 8))
    for k in (1, 2, 3):
        _, state = model.step(state)
        assert runs == {"stem": 1} | {f"head{j}": 1 for j in range(1, k + 1)}
        tensors = [leaf for leaf in pytree.tree_leaves(state) if isinstance(leaf, Tensor)]
        assert [list(tensor.shape) for tensor in tensors] == [[2, 12, 8, 8]]
    with pytest.raises(ValueError, match="all 3 steps are done"):
        model.step(state)


def test_a_stream_may_start_at_any_step() -> None:
    model = randomise(iresnext(4, **TINY))
    x = images(1, 3, 8, 8)
    contract = step_macs(model, (3, 8, 8), contract=True)
    runs = Counter[int]()
    for k, head in enumerate(model.heads, 1):
        head.register_forward_hook(lambda *_, k=k: runs.update([k]))
    stream = model.stream(x, start=2)
    with FlopCounterMode(display=False) as counter:
        close(next(stream), model(x, step=2))
    assert counter.get_total_flops() == 2 * 2 * contract[1]
    assert len(list(stream)) == 1
    assert runs == {2: 2, 3: 1}
    for start in (0, 4, -1):
        with pytest.raises(ValueError, match=rf"start must lie in 1\.\.3, got {start}"):
            model.stream(x, start=start)


def test_imagenet_layout() -> None:
    model = on_meta(lambda: IResNeXt(5, blocks=(1, 1, 1, 1), width=8, steps=2, cardinality=2, layout="imagenet"))
    sizes: list[list[int]] = []
    for block in model.blocks:
        block.register_forward_hook(lambda _, args, out: sizes.append(list(out.shape)))
    model(torch.zeros(1, 3, 224, 224, device="meta"), step=1)
    assert sizes == [[1, 8, 56, 56], [1, 16, 28, 28], [1, 32, 14, 14], [1, 64, 7, 7]]
    assert list(model.stem.weight.shape) == [8, 3, 7, 7]
    with pytest.raises(ValueError, match="images must be at least 32x32 pixels, got 40x31"):
        model(torch.zeros(1, 3, 40, 31, device="meta"))
    small = randomise(IResNeXt(5, blocks=(1, 1), width=6, steps=2, cardinality=2, layout="imagenet"))
    close(small.subnetwork(2)(images(2, 3, 11, 9)), small(images(2, 3, 11, 9))[1])


def test_several_label_levels() -> None:
    model = iresnext((4, 2), **TINY)
    assert model(torch.rand(2, 3, 8, 8)).shape == (3, 2, 6)
    assert model.levels == (4, 2)


@pytest.mark.parametrize("arguments", [{}, {"batch_norm": "shared"}])
def test_contract(arguments: dict[str, Any]) -> None:
    check_anytime_model(iresnext(3, **TINY, **arguments), (3, 8, 8))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 3}, r"steps \(K\) must divide cardinality \(C\), got steps=3 and cardinality=8"),
        ({"steps": 16}, r"steps \(K\) must divide cardinality \(C\), got steps=16 and cardinality=8"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"steps": "3"}, "steps must be a whole number, got '3'"),
        ({"blocks": 3}, "blocks must be a list, one number for each scale, got 3"),
        ({"width": 0}, "width must be at least 1, got 0"),
        ({"cardinality": -8}, "cardinality must be at least 1, got -8"),
        ({"bottleneck": 0}, "bottleneck must be at least 1, got 0"),
        ({"blocks": ()}, r"blocks must be at least 1 at every scale, got \(\)"),
        ({"blocks": (2, 0)}, r"blocks must be at least 1 at every scale, got \(2, 0\)"),
        ({"layout": "mnist"}, "layout must be 'cifar' or 'imagenet', got 'mnist'"),
        ({"batch_norm": "none"}, "batch_norm must be 'independent' or 'shared', got 'none'"),
        ({"num_classes": 0}, "num_classes must be at least 1, got 0"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        iresnext(**arguments)


def test_wrong_steps() -> None:
    model = iresnext(4, **TINY)
    for step in (0, 4, -1):
        with pytest.raises(ValueError, match=rf"step must lie in 1\.\.3, got {step}"):
            model(torch.rand(1, 3, 8, 8), step=step)
        with pytest.raises(ValueError, match=rf"step must lie in 1\.\.3, got {step}"):
            model.subnetwork(step)
    with pytest.raises(ValueError, match="images must be at least 4x4 pixels, got 4x3"):
        model(torch.rand(1, 3, 4, 3))
