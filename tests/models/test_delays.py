"""Delays on any network against a plain simulation that runs the whole network at every step, its branches in queues."""

from __future__ import annotations

import copy
import re
from itertools import islice, pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree
from torchvision.models import VisionTransformer, resnet18

from anytime import add_delays
from anytime.cost import flop_counter, step_macs
from anytime.model import select_samples
from anytime.models.surgery.delays.model import DelayedNetwork
from anytime.testing import _randomise, check_anytime_model


class Block(nn.Module):
    """Residual block that works in place and reads sizes, as many do."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.short = nn.Conv2d(inputs, outputs, 1, stride) if stride > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)), inplace=True)))
        out += x if self.short is None else self.short(x)
        return self.relu(out)


class ResNet(nn.Module):
    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, 1, 1)
        self.blocks = nn.Sequential(Block(4, 4), Block(4, 6, 2), Block(6, 6))
        self.head = nn.Linear(6, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)).reshape(x.shape[0], -1))


class HighwayLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.transform = nn.Sequential(nn.Linear(6, 6), nn.ReLU())
        self.gate = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.gate(x))
        return gate * self.transform(x) + (1 - gate) * x


class Highway(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(48, 6), HighwayLayer(), HighwayLayer(), HighwayLayer(), nn.Linear(6, 5))


class UNet(nn.Module):
    """Maps of the size of the images, from two levels of skips."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Sequential(nn.Conv2d(3, 4, 3, 1, 1), nn.ReLU(inplace=True))
        self.down1 = nn.Sequential(nn.Conv2d(4, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU(inplace=True))
        self.down2 = nn.Conv2d(6, 8, 3, 2, 1)
        self.up2 = nn.ConvTranspose2d(8, 6, 2, 2)
        self.merge2 = nn.Conv2d(12, 6, 3, 1, 1)
        self.up1 = nn.Upsample(scale_factor=2)
        self.merge1 = nn.Conv2d(10, 2, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        high = self.enter(x)
        middle = self.down1(high)
        middle = torch.relu_(self.merge2(torch.cat([self.up2(self.down2(middle)), middle], 1)))
        return self.merge1(torch.cat((self.up1(middle), high), dim=1))


def vit() -> VisionTransformer:
    return VisionTransformer(16, 8, 3, 2, 8, 16, num_classes=5)


LAYERS = [f"encoder.layers.encoder_layer_{i}." for i in range(3)]
NETWORKS: dict[str, tuple[Any, list[str], int, int, bool]] = {  # network, branches, size, longest chain, whether found
    "resnet": (ResNet, [f"blocks.{i}.bn2" for i in range(3)], 8, 3, True),
    "vit": (vit, [layer + part for layer in LAYERS for part in ("dropout", "mlp.4")], 16, 6, True),
    "highway": (Highway, [f"{i}.transform" for i in (2, 3, 4)], 4, 3, False),
    "unet": (UNet, ["up2", "up1"], 8, 2, False),
}
OSD, EWS, TAPS, LATE = (0.0, 1.0), tuple(0.2 * 0.8**s for s in range(40)), (0.5, 0.0, 0.5), (0.0, 0.0, 0.5, 0.5)
KERNELS: dict[str, tuple[Any, tuple[float, ...]]] = {"osd": ("osd", OSD), "ews": ("ews", EWS), "taps": (TAPS, TAPS), 
                                                     "lagging-taps": (LATE, LATE)}  # fmt: skip


def make(name: str) -> nn.Module:
    torch.manual_seed(0)
    network = NETWORKS[name][0]()
    with torch.no_grad():
        for parameter in _randomise(network).parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return network.double()


def images(*size: int, seed: int = 0) -> Tensor:
    return torch.rand(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def largest(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return (a - b).abs().max().item()


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("name", NETWORKS)
def test_answers_are_those_of_the_simulation(simulate: Any, name: str, kernel: str) -> None:
    _, branches, size, chain, found = NETWORKS[name]
    setting, weights = KERNELS[kernel]
    steps = 7 if kernel == "ews" else chain * (len(weights) - 1) + 1
    network = make(name).eval()
    model = add_delays(copy.deepcopy(network), None if found else branches, setting, 0.8, 7 if kernel == "ews" else None,
                       num_classes=5).eval()  # fmt: skip
    assert (model.num_steps, model.first, model.branches) == (steps, 0, tuple(branches))
    x = images(2, 3, size, size)
    expected = torch.stack(simulate(network, branches, weights, [x] * steps))
    assert largest(expected[-1], expected[-2]) > 1e-6
    assert largest(model(x), expected) < 1e-10
    with torch.no_grad():
        assert largest(model(x), expected) < 1e-10
        assert largest(torch.stack(list(model.stream(x))), expected) < 1e-10
        for step in range(1, steps + 1):
            assert largest(model(x, step=step), expected[step - 1]) < 1e-10
        if kernel != "ews":
            assert largest(expected[-1], network(x)) < 1e-10


@pytest.mark.parametrize("name", NETWORKS)
def test_instant_is_the_network_itself(name: str) -> None:
    _, branches, size, _, _ = NETWORKS[name]
    network = make(name).eval()
    model = add_delays(copy.deepcopy(network), branches, "instant", num_classes=5).eval()
    assert set(model.state_dict()) == {"mean", "std", *(f"network.{key}" for key in network.state_dict())}
    x = images(3, 3, size, size)
    assert model.num_steps == 1
    assert torch.equal(model(x), network(x)[None])
    assert torch.equal(next(model.stream(x)), network(x))
    assert torch.equal(model.network(x), network(x))


def test_resnet_18_of_torchvision(simulate: Any) -> None:
    """8 blocks, stem undelayed: 9 answers; block k sees k distinct inputs, 36 evaluations of blocks, not 72."""
    torch.manual_seed(0)
    network = resnet18(num_classes=5).double().eval()
    model = add_delays(copy.deepcopy(network), num_classes=5).eval()
    names = [f"layer{stage}.{block}" for stage in range(1, 5) for block in range(2)]
    assert model.branches == tuple(f"{name}.bn2" for name in names)
    assert model.num_steps == 9
    x = images(2, 3, 9, 9)
    runs: list[int] = []
    for name in names:
        conv = model.network.get_submodule(f"{name}.conv1")
        conv.register_forward_hook(lambda _, args, __: runs.append(len(args[0]) // 2))
    with torch.no_grad():
        expected = torch.stack(simulate(network, model.branches, OSD, [x] * 9))
        counts, answers = [], []
        for answer in model.stream(x):
            answers.append(answer)
            counts.append(sum(runs))
            runs.clear()
        assert counts == [0, 8, 7, 6, 5, 4, 3, 2, 1]
        assert largest(torch.stack(answers), expected) < 1e-10
        assert largest(model(x), expected) < 1e-10
        assert (sum(runs), len(runs)) == (36, 8)
        assert largest(expected[-1], network(x)) < 1e-10


@pytest.mark.parametrize("name", NETWORKS)
def test_cost_is_that_of_what_is_needed(name: str) -> None:
    """The settled answer by itself costs as much as the network; the first one needs no branch."""
    network, branches, size, _, _ = NETWORKS[name]
    network = make(name).float()
    with flop_counter() as counter, torch.no_grad():
        network.eval()(torch.zeros(1, 3, size, size))
    model = add_delays(network, branches, num_classes=5)
    stream, single = (step_macs(model, (3, size, size), contract) for contract in (False, True))
    assert single[-1] == counter.get_total_flops() // 2
    assert single[0] == stream[0] < single[-1]
    assert all(before < after for before, after in pairwise(stream))
    if name == "unet":  # one level more with every step
        conv = {
            key: 9 * i * o for key, i, o in (("enter", 3, 4), ("down1", 4, 6), ("down2", 6, 8), ("2", 12, 6), ("1", 10, 2))
        }
        steps = [64 * (conv["enter"] + conv["1"]), 16 * (conv["down1"] + conv["2"]) + 64 * conv["1"]]
        steps.append(4 * conv["down2"] + 4 * 8 * 6 * 4 + 16 * conv["2"] + 64 * conv["1"])
        assert stream == [sum(steps[: t + 1]) for t in range(3)]


@pytest.mark.parametrize("name", ["resnet", "unet", "vit"])
def test_training(simulate: Any, name: str) -> None:
    """Answers and gradients are those of the simulation; running statistics get one update for each time."""
    _, branches, size, chain, _ = NETWORKS[name]
    network = make(name).train()
    model, other = (add_delays(copy.deepcopy(network), branches, num_classes=5).train() for _ in range(2))
    x = images(3, 3, size, size)
    answers = {model.network: model(x), network: torch.stack(simulate(network, branches, OSD, [x] * (chain + 1)))}
    push = torch.randn_like(answers[network])
    for out in answers.values():
        assert largest(out, answers[network]) < 1e-10
        (out * push).sum().backward()
    for (key, p), q in zip(model.network.named_parameters(), network.parameters(), strict=True):
        assert largest(p.grad, q.grad) < 1e-10 * max(1, q.grad.abs().max()), key
    assert largest(torch.stack(list(other.stream(x))), answers[network]) < 1e-10
    for (key, a), b in zip(model.named_buffers(), other.buffers(), strict=True):
        assert largest(a.double(), b.double()) < 1e-12, key
    if name == "resnet":
        assert [int(block.bn1.num_batches_tracked) for block in model.network.blocks] == [1, 2, 3]


@pytest.mark.parametrize(("kernel", "weights"), [("osd", OSD), ("ews", EWS), (LATE, LATE)], ids=["osd", "ews", "taps"])
@pytest.mark.parametrize("stem", [False, True], ids=["stem-instant", "stem-delayed"])
def test_frames_and_a_delayed_stem(simulate: Any, kernel: Any, weights: tuple[float, ...], stem: bool) -> None:
    network = make("resnet").eval()
    branches = [*["stem"] * stem, *NETWORKS["resnet"][1]]
    model = add_delays(copy.deepcopy(network), branches, kernel, 0.8, num_classes=5).eval()
    first = next(s for s, weight in enumerate(weights) if weight) if stem else 0
    assert model.first == first
    frames = images(9, 2, 3, 8, 8)
    with torch.no_grad():
        expected = torch.stack(simulate(network, branches, weights, [*frames, *frames[:first]])[first:])
        assert largest(model(frames), expected) < 1e-10
        assert largest(torch.stack(list(model.stream(frames.unbind()))), expected) < 1e-10
        still = torch.stack(simulate(network, branches, weights, [frames[0]] * (first + 9))[first:])
        steps = min(model.num_steps, 9)
        assert largest(model(frames[0])[:steps], still[:steps]) < 1e-10
        streamed = torch.stack(list(islice(model.stream(frames[0]), steps)))
        assert largest(streamed, still[:steps]) < 1e-10
        assert largest(model(frames[:1].expand(steps, -1, -1, -1, -1)), still[:steps]) < 1e-10
        assert largest(model(frames[0], step=steps), still[steps - 1]) < 1e-10
    with pytest.raises(ValueError, match=r"there are no frames: got \[0, 2, 3, 8, 8\]"):
        model(frames[:0])
    with pytest.raises(ValueError, match=r"a frame has shape \[1, 3, 8, 8\], the first had \[2, 3, 8, 8\]"):
        list(model.stream([frames[0], frames[0, :1]]))


def test_small_chunks_of_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without gradients times go in chunks, here of 3 and then of 1."""
    network = make("resnet").eval()
    model = add_delays(network, kernel=LATE, num_classes=5).eval()
    x = images(2, 3, 8, 8)
    expected = model(x)
    for chunk in (6, 1):
        monkeypatch.setattr("anytime.models.surgery.delays.model.CHUNK", chunk)
        with torch.no_grad():
            assert largest(model(x), expected) < 1e-12
            frames = x.expand(10, *x.shape)
            assert largest(model(frames), expected) < 1e-12


def test_attention_named_by_its_module(simulate: Any) -> None:
    """The first of several outputs of a module is delayed."""
    network = make("vit").eval()
    branches = [layer + part for layer in LAYERS for part in ("self_attention", "mlp")]
    model = add_delays(copy.deepcopy(network), branches, num_classes=5).eval()
    x = images(2, 3, 16, 16)
    expected = torch.stack(simulate(network, branches, OSD, [x] * 7))
    assert largest(model(x), expected) < 1e-10
    assert largest(torch.stack(list(model.stream(x))), expected) < 1e-10


def test_only_needed_values_are_stored() -> None:
    """At the end of a stream no block stores its shortcut or branch any more; zeros take no memory."""
    model = add_delays(make("unet"), ["up2", "up1"], num_classes=5).eval()
    state = model.initial_state(images(2, 3, 8, 8))
    assert [tuple(zero.shape) for zero in state.zeros] == [(2, 6, 4, 4), (2, 6, 8, 8)]
    assert all(zero.untyped_storage().nbytes() == 8 for zero in state.zeros)
    shapes = []
    for _ in range(3):
        _, state = model.step(state)
        shapes.append(sorted(tuple(leaf.shape[1:]) for leaf in pytree.tree_leaves(state.values)))
    assert shapes == [[(4, 8, 8)], [(4, 8, 8), (6, 4, 4)], []]
    with pytest.raises(ValueError, match="all 3 steps are done"):
        model.step(state)


@pytest.mark.parametrize("name", ["resnet", "vit"])
def test_contract(name: str) -> None:
    _, branches, size, _, _ = NETWORKS[name]
    check_anytime_model(add_delays(make(name), branches, num_classes=5), (3, size, size))


def test_state_dict_is_that_of_the_network() -> None:
    network = make("resnet")
    model = DelayedNetwork(copy.deepcopy(network), num_classes=5)
    model.load_state_dict({f"network.{key}": value for key, value in network.state_dict().items()}, strict=False)
    ews = DelayedNetwork(ResNet(), kernel="ews", num_classes=5).double()
    ews.load_state_dict(model.state_dict())
    x = images(2, 3, 8, 8)
    model.eval().set_normalization((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    assert ews.num_steps == 70
    with torch.no_grad():
        assert largest(model(x)[-1], network.eval()(model.normalize(x))) < 1e-10


def test_images_that_change_now_and_then() -> None:
    """`observe` is needed only when the image changes."""
    model = add_delays(make("resnet"), [*["stem"], *NETWORKS["resnet"][1]], num_classes=5).eval()
    a, b = images(2, 2, 3, 8, 8)
    frames = [a] * 3 + [b] * 4 + [a] * 2
    with torch.no_grad():
        expected = list(model.stream(iter(frames)))
        state = model.observe(model.initial_state(b), a)
        for time, frame in enumerate(frames):
            if time and frame is not frames[time - 1]:
                state = model.observe(model.observe(state, 1 - frame), frame)  # of two in one step, the later counts
            logits, state = model.step(state)
            assert largest(logits, expected[time]) < 1e-12
    for wrong in (images(2, 3, 9, 9), images(1, 3, 8, 8)):
        with pytest.raises(ValueError, match=re.escape(f"has shape {list(wrong.shape)}, the first had [2, 3, 8, 8]")):
            model.observe(state, wrong)
    single = copy.deepcopy(model).float()
    with pytest.raises(ValueError, match=r"a frame has type torch\.float64, the first had torch\.float32"):
        list(single.stream([a.float(), b]))
    _, one = model.step(model.observe(select_samples(state, torch.tensor([1])), b[:1]))  # a batch that has shrunk
    assert {len(leaf) for leaf in pytree.tree_leaves(one) if isinstance(leaf, Tensor)} == {1}
    _, still = model.step(model.initial_state(a))
    with pytest.raises(ValueError, match="a still image has been answered up to t = 1, so new ones lack the values they need"):
        model.observe(still, b)


def test_zeros_have_the_type_of_autocast() -> None:
    """Otherwise a sum with them, and everything after it, would be in float32."""
    model = add_delays(make("resnet").float(), num_classes=5).eval()
    x = images(2, 3, 8, 8).float()
    seen = []
    model.network.blocks[0].conv2.register_forward_hook(lambda _, __, out: seen.append(out.dtype))
    for kind in (torch.bfloat16, torch.half, None, torch.bfloat16):
        with torch.autocast("cpu", kind, enabled=kind is not None), torch.no_grad():
            zeros = model.initial_state(x).zeros
            model(x)
        assert {zero.dtype for zero in zeros} == {seen[-1]} == {kind or torch.float32}
