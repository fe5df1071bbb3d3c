"""IS-ResNeXt against the formulas of its branches: nesting, both schedules, streams, stand-alone sub-networks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

from anytime.cost import step_macs
from anytime.models.slicing.isresnext import ISResNeXt, TriangularConv, isresnext
from anytime.models.slicing.sliced import SliceBatchNorm2d
from anytime.testing import check_anytime_model

CONTRACT_ARGUMENTS = {
    "isresnext": {"blocks": (1, 2, 1), "width": 12, "steps": 3, "cardinality": 6, "bottleneck": 2},
    "isresnext_cub": {"blocks": (2, 1), "width": 8, "steps": 2, "cardinality": 4},
    "isresnext_imagenet": {"blocks": (1, 1), "width": 12, "steps": 3, "cardinality": 3},
}

TINY: dict[str, Any] = {"blocks": (1, 2, 1), "width": 12, "steps": 3, "cardinality": 6, "bottleneck": 2}


def randomise(model: ISResNeXt, seed: int = 0) -> ISResNeXt:
    """Puts a model into float64 and eval mode, with parameters and running statistics as after training."""
    generator = torch.Generator().manual_seed(seed)
    model.double()
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_floating_point():
            noise = torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype)
            tensor.data += noise if "running" in name else 0.2 * (noise - 0.5)
    return model.eval()


def tiny(classes: int = 4, **arguments: Any) -> ISResNeXt:
    torch.manual_seed(0)
    return randomise(isresnext(classes, **(TINY | arguments)))


def images(*size: int, seed: int = 0) -> Tensor:
    return torch.rand(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-10)


def reference(model: ISResNeXt, x: Tensor, k: int, blocks: Sequence[int], cardinality: int) -> Tensor:
    """Sub-network k by the formulas of section 3.2, branch by branch, with trunk groups x_1, ..., x_k as separate tensors."""
    steps = model.num_steps

    def norm(layer: SliceBatchNorm2d, h: Tensor, start: int) -> Tensor:
        of = slice(start, start + h.shape[1])
        numbers = layer.running_mean[of], layer.running_var[of], layer.weight[of], layer.bias[of]
        mean, var, weight, bias = (number[:, None, None] for number in numbers)
        return torch.relu((h - mean) / (var + 1e-5).sqrt() * weight + bias)

    def dense(conv: TriangularConv) -> Tensor:
        """The matrix of conv1, put together entry by entry."""
        matrix = torch.zeros(conv.unit * steps, conv.width * steps, dtype=torch.float64)
        rows = iter(conv.weight)
        for out in range(conv.unit * steps):
            for j in range(out // conv.unit + 1):
                matrix[out, j * conv.width : (j + 1) * conv.width] = next(rows)
        return matrix[:, :, None, None]

    stem = F.conv2d(model.normalize(x), model.stem.weight, padding=1)
    trunk = list(stem.chunk(steps, 1))[:k]
    widenings = [sum(blocks[:s]) for s in range(1, len(blocks))]
    for index, block in enumerate(model.blocks):
        if index in widenings:
            trunk = [F.avg_pool2d(h, 2, ceil_mode=True) for h in trunk]
            trunk = [torch.cat([h, torch.zeros_like(h)], 1) for h in trunk]
        parts: Any = block
        width, unit = trunk[0].shape[1], parts.conv2.weight.shape[0] // cardinality
        matrix, outputs = dense(parts.conv1), []
        for g in range(1, k + 1):
            read = torch.cat([norm(parts.norm1, h, j * width) for j, h in enumerate(trunk[:g])], 1)
            own = [i for i in range(1, cardinality + 1) if -(-i * steps // cardinality) == g]
            branches = []
            for i in own:
                of = slice((i - 1) * unit, i * unit)
                a = F.conv2d(read, matrix[of, : g * width])
                b = F.conv2d(norm(parts.norm2, a, of.start), parts.conv2.weight[of], padding=1)
                branches.append(norm(parts.norm3, b, of.start))
            y = F.conv2d(torch.cat(branches, 1), parts.conv3.weight[(g - 1) * width : g * width])
            outputs.append(y + trunk[g - 1])
        trunk = outputs
    head: Any = model.heads[k - 1]
    numbers = head[0].running_mean, head[0].running_var, head[0].weight, head[0].bias
    mean, var, weight, bias = (number[:, None, None] for number in numbers)
    return head[4](torch.relu((torch.cat(trunk, 1) - mean) / (var + 1e-5).sqrt() * weight + bias).mean((2, 3)))


@settings(deadline=None, max_examples=20)
@given(
    st.lists(st.integers(1, 2), min_size=1, max_size=3),
    st.integers(1, 4),
    st.integers(1, 2),
    st.integers(1, 3),
    st.integers(1, 3),
    st.tuples(st.integers(4, 9), st.integers(4, 9)),
)
def test_any_model_is_that_of_the_formulas(
    blocks: list[int], steps: int, branches: int, bottleneck: int, width: int, size: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    model = randomise(ISResNeXt(3, 2, blocks, width * steps, steps, branches * steps, bottleneck))
    x = images(2, 2, *size)
    with torch.no_grad():
        logits, streamed = model(x), torch.stack(list(model.stream(x)))
        assert logits.shape == (steps, 2, 3)
        close(streamed, logits)
        for k in range(1, steps + 1):
            close(logits[k - 1], reference(model, x, k, blocks, branches * steps))
            close(model(x, step=k), logits[k - 1])
            close(model.subnetwork(k)(x), logits[k - 1])
            close(torch.stack(list(model.stream(x, start=k))), logits[k - 1 :])


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_features_of_a_stand_alone_sub_network(training: bool) -> None:
    """At every layer they are the first k groups of the full network's, also when normalised by the batch."""
    x = images(4, 3, 8, 8)
    for k in (1, 2, 3):
        model = tiny().train(training)
        thin = model.subnetwork(k)
        assert thin.training is training
        features: dict[str, list[Tensor]] = {"inside": [], "outside": []}
        for block, plain in zip(model.blocks, thin.blocks, strict=True):
            block.register_forward_hook(lambda _, args, out, seen=features["inside"]: seen.append(out[0]))
            plain.register_forward_hook(lambda _, args, out, seen=features["outside"]: seen.append(out))
        close(model(x)[k - 1], thin(x))
        assert len(features["inside"]) == 4
        for many, few in zip(*features.values(), strict=True):
            assert few.shape[1] == many.shape[1] * k // 3
            close(many[:, : few.shape[1]], few)
        for block, plain in zip(model.blocks, thin.blocks, strict=True):
            for name in ("norm1", "norm2", "norm3"):
                for number in ("running_mean", "running_var"):
                    few = getattr(getattr(plain, name), number)
                    close(getattr(getattr(block, name), number)[: len(few)], few)


def of_group(tensors: dict[str, Tensor], group: int) -> list[Tensor]:
    """Views of the parts that belong to one of 3 groups, of tensors shaped like the parameters of stem and blocks."""
    parts = []
    for name, tensor in tensors.items():
        if "conv1" in name:
            unit = len(tensor) // 6  # 1 + 2 + 3 blocks
            parts.append(tensor[unit * group * (group - 1) // 2 : unit * group * (group + 1) // 2])
        elif "heads" not in name:
            parts.append(tensor.chunk(3)[group - 1])
    return parts


@pytest.mark.parametrize("group", [2, 3])
def test_later_groups_change_no_earlier_answer(group: int) -> None:
    model = tiny()
    x = images(2, 3, 8, 8)
    with torch.no_grad():
        before, streamed = model(x), list(model.stream(x))
        for part in (*of_group(dict(model.named_parameters()), group), *model.heads[group - 1].parameters()):
            part += images(*part.shape, seed=group)
        after, again = model(x), list(model.stream(x))
    for k in range(1, group):
        assert torch.equal(after[k - 1], before[k - 1])
        assert torch.equal(again[k - 1], streamed[k - 1])
    for k in range(group, 4):
        assert not torch.allclose(after[k - 1], before[k - 1])


def test_gradients_of_an_answer_reach_only_its_groups() -> None:
    for k in (1, 2, 3):
        model = tiny().train()
        model(images(4, 3, 8, 8))[k - 1].square().sum().backward()
        grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        for group in (1, 2, 3):
            assert [bool(part.any()) for part in of_group(grads, group)] == [group <= k] * (1 + 4 * 9)
            heads = [grad for name, grad in grads.items() if name.startswith(f"heads.{group - 1}.")]
            assert [bool(grad.any()) for grad in heads] == [group == k] * 4


def test_both_schedules_have_the_same_gradients() -> None:
    def gradients(answers: Callable[[ISResNeXt], Sequence[Tensor]]) -> tuple[list[Tensor], list[Tensor]]:
        model = tiny().train()
        target = torch.arange(6) % 4
        sum(F.cross_entropy(logits, target) for logits in answers(model)).backward()  # type: ignore[union-attr]
        statistics = [buffer for name, buffer in model.named_buffers() if "running" in name]
        return [p.grad for p in model.parameters() if p.grad is not None], statistics

    x = images(6, 3, 8, 8)
    for one, other in zip(gradients(lambda model: model(x)), gradients(lambda model: list(model.stream(x))), strict=True):
        assert len(one) == len(other) > 0
        for a, b in zip(one, other, strict=True):
            close(a, b)


def test_triangular_convolution() -> None:
    torch.manual_seed(0)
    conv = TriangularConv(width=2, unit=3, groups=4).double()
    h = images(2, 8, 5, 5)
    dense = conv.dense()[:, :, 0, 0]
    triangle = torch.ones(4, 4).tril().repeat_interleave(3, 0).repeat_interleave(2, 1).bool()
    assert torch.equal(dense != 0, triangle)
    for g in range(1, 5):
        assert torch.equal(conv.rows(g)[:, :, 0, 0], dense[3 * (g - 1) : 3 * g, : 2 * g])
    full = conv(h, 0, 4, dense=True)
    for first in range(4):
        for last in range(first + 1, 5):
            close(conv(h[:, : 2 * last], first, last, dense=False), full[:, 3 * first : 3 * last])
    full.square().sum().backward()
    assert conv.weight.grad is not None
    assert conv.weight.grad.all()
    wide = TriangularConv(width=64, unit=64, groups=3)
    for g in (1, 2, 3):  # He's initialisation, by the number of inputs of each group
        assert abs(wide.rows(g).std().item() / (2 / (64 * g)) ** 0.5 - 1) < 0.05


def test_a_step_runs_only_its_group() -> None:
    model = tiny()
    x = images(1, 3, 8, 8)
    ran: list[tuple[str, list[int]]] = []
    layers = {"stem": model.stem, **{f"conv{i}": getattr(model.blocks[0], f"conv{i}") for i in (1, 2, 3)}}
    for name, layer in layers.items():
        layer.register_forward_hook(lambda _, args, out, name=name: ran.append((name, [args[0].shape[1], out.shape[1]])))
    for k, _ in enumerate(model.stream(x), 1):
        assert ran == [("stem", [3, 4]), ("conv1", [4 * k, 4]), ("conv2", [4, 4]), ("conv3", [4, 4])]
        ran.clear()
    list(model.stream(x, start=2))
    assert ran[:4] == [("stem", [3, 8]), ("conv1", [8, 8]), ("conv2", [8, 8]), ("conv3", [8, 8])]
    assert ran[4:] == [("stem", [3, 4]), ("conv1", [12, 4]), ("conv2", [4, 4]), ("conv3", [4, 4])]


def test_a_stream_may_start_at_any_step() -> None:
    model = tiny()
    x = images(1, 3, 8, 8)
    contract, stream = (step_macs(model, (3, 8, 8), contract=contract) for contract in (True, False))
    answers = model.stream(x, start=2)
    for cost in (contract[1], stream[2] - stream[1]):
        with FlopCounterMode(display=False) as counter:
            next(answers)
        assert counter.get_total_flops() == 2 * cost
    assert next(answers, None) is None
    for start in (0, 4):
        with pytest.raises(ValueError, match=rf"start must lie in 1\.\.3, got {start}"):
            model.stream(x, start=start)


def test_state_shapes_and_end() -> None:
    model = tiny()
    state = model.initial_state(images(2, 3, 8, 8))
    for k in (1, 2, 3):
        _, state = model.step(state)
        shapes = [list(leaf.shape) for leaf in pytree.tree_leaves(state) if isinstance(leaf, Tensor)]
        assert shapes == [
            *([2, 3, 8, 8], [2, 4 * k, 8, 8], [2, 8 * k, 4, 4], [2, 8 * k, 4, 4], [2, 16 * k, 2, 2], [2, 16 * k, 2, 2]),
        ]
    with pytest.raises(ValueError, match="all 3 steps are done"):
        model.step(state)


def test_a_sub_network_is_a_copy_of_plain_layers() -> None:
    model = tiny()
    x = images(1, 3, 8, 8)
    thin, logits = model.subnetwork(2), model(x, step=2)
    kinds = {type(module).__name__ for module in thin.modules() if not any(module.children())}
    assert kinds == {"Conv2d", "BatchNorm2d", "Linear", "ReLU", "AdaptiveAvgPool2d", "Flatten", "Identity"}
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        thin(x)
    assert counter.get_total_flops() == 2 * step_macs(model, (3, 8, 8), contract=True)[1]
    for parameter in model.parameters():
        parameter.data.zero_()
    close(thin(x), logits)


def test_imagenet_layout_and_channels_last() -> None:
    model = tiny(layout="imagenet", blocks=(1, 1))
    x = images(2, 3, 19, 16)
    logits = model(x)
    last = model.to(memory_format=torch.channels_last)
    x = x.to(memory_format=torch.channels_last)
    close(last(x), logits)
    close(torch.stack(list(last.stream(x))), logits)
    close(last.subnetwork(2)(x), logits[1])
    with pytest.raises(ValueError, match="images must be at least 8x8 pixels, got 7x9"):
        model(images(1, 3, 7, 9))


def test_several_label_levels() -> None:
    model = isresnext((4, 2, 1), **TINY)
    assert model(torch.rand(2, 3, 8, 8)).shape == (3, 2, 7)
    assert model.levels == (4, 2, 1)


def test_a_classifier_for_each_label_level() -> None:
    """There are K D heads g_{k,d}, each with its own batch norm; their logits are concatenated, fine to coarse."""
    torch.manual_seed(0)
    model = isresnext((5, 2), **TINY).double().eval()
    x = images(2, 3, 8, 8)
    with torch.no_grad():
        before = model(x)
        for head in model.heads:
            head[1][0].bias += 1.0  # the coarse level's own batch norm
    after = model(x)
    assert torch.equal(after[..., :5], before[..., :5])
    assert ((after[..., 5:] - before[..., 5:]).abs() > 1e-6).any(-1).all()
    assert (model.subnetwork(2)(x) - after[1]).abs().max() < 1e-12
    parts = [sum(p.numel() for p in isresnext(classes, **TINY).heads.parameters()) for classes in (5, 2)]
    assert sum(p.numel() for p in model.heads.parameters()) == sum(parts)


def test_contract() -> None:
    check_anytime_model(isresnext(3, **TINY), (3, 8, 8))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 4}, r"steps \(K\) must divide cardinality \(C\), got steps=4 and cardinality=18"),
        ({"steps": 9}, r"steps \(K\) must divide width \(W\), got steps=9 and width=96"),
        ({"steps": -1}, "steps must be at least 1, got -1"),
        ({"blocks": (0,)}, r"blocks must be at least 1 at every scale, got \(0,\)"),
        ({"layout": "cub"}, "layout must be 'cifar' or 'imagenet', got 'cub'"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        isresnext(**arguments)


def test_wrong_steps() -> None:
    model = tiny()
    for step in (0, 4, -1, 1.5):
        with pytest.raises(ValueError, match=rf"step must lie in 1\.\.3, got {step}"):
            model(images(1, 3, 8, 8), step=step)
        with pytest.raises(ValueError, match=rf"step must lie in 1\.\.3, got {step}"):
            model.subnetwork(step)
