"""What a network with exits gives later is what the plain network gives, or an error: nothing is frozen without a word."""

from __future__ import annotations

import copy
from collections import deque
from enum import Enum
from functools import partial
from itertools import cycle
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize, prune

from anytime.models.surgery.attach.build import attach_exits
from anytime.models.surgery.attach.checks import check_stages
from anytime.models.surgery.attach.model import AttachedExits

SIZE = (3, 8, 8)


class Mode(Enum):
    PLAIN, DOUBLE = 1, 2


class Net(nn.Module):
    """Does something between two parts that can be cut."""

    def __init__(self, how: Any) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.fc, self.how = nn.Linear(4, 5), how
        self.scale, self.weight = nn.Parameter(torch.tensor(0.5)), nn.Parameter(torch.rand(4, 1, 1))
        self.register_buffer("count", torch.zeros(()))
        self.sizes, self.state, self.queue, self.counts = {16: 2.0}, {"n": 0, "t": torch.ones(())}, deque[int](maxlen=3), [0]
        self.list, self.mode, self.number = [1.0, 1.0, 2.0, 3.0], Mode.PLAIN, np.float64(1)
        self.space, self.act = SimpleNamespace(k=1.0), partial(functional.leaky_relu, negative_slope=0.1)
        self.inner = SimpleNamespace(sub=SimpleNamespace(k=1.0))
        self.table: dict[str, Any] = {"k": 1.0, "t": torch.ones(())}
        self.scale_16 = 2.0

    def forward(self, x: Tensor) -> Tensor:
        h = self.how(self, self.b(self.a(x)).relu())
        return self.fc(self.c(h).relu().mean((2, 3)))


def attached(how: Any) -> AttachedExits:
    torch.manual_seed(0)
    return attach_exits(Net(how).eval(), exits=3, input_size=SIZE).eval()


VALUES = {
    "float": lambda net, h: h * float(net.scale.exp()),
    "item": lambda net, h: h * net.scale.item(),
    "list": lambda net, h: h * net.scale.reshape(1).tolist()[0],
    "numpy": lambda net, h: h * float(net.scale.detach().numpy()),
    "decision": lambda net, h: h * 2 if net.count != 0 else h,
    "text": lambda net, h: h * 2 if "0.5" in str(net.scale) else h,
    "shape": lambda net, h: h * (net.weight > 0.5).nonzero().shape[0],
}


@pytest.mark.parametrize("how", VALUES)
def test_the_value_of_a_weight_must_not_become_a_python_number(how: str) -> None:
    with pytest.raises(ValueError, match=r"tensor.*values.*\(test_attach_later\.py, line \d+\)|values of a tensor, or makes"):
        attached(VALUES[how])


def test_a_part_that_makes_a_number_of_its_weights_follows_them() -> None:
    class Part(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.how(self, self.b(self.a(x)).relu())

    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 3, 1), Part(VALUES["float"]), nn.Conv2d(4, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    model = attach_exits(layers, exits=["0", "1"], input_size=SIZE).eval()
    with torch.no_grad():
        model.backbone[1].scale.fill_(2.0)  # type: ignore[index, union-attr]
    x = torch.rand(2, *SIZE)
    assert torch.equal(model(x)[-1], model.backbone(x))


class Windows(nn.Module):
    """Attention in windows of 64 pixels, counted before the first place to cut; there is one at 8 x 8 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.q, self.fc = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 12, 1), nn.Linear(12, 24), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        batch, _, height, width = x.shape
        windows = batch * (height // 8) * (width // 8)
        h = self.b(self.a(x)).permute(0, 2, 3, 1).reshape(windows, -1, 12)
        q, k = self.q(h).chunk(2, -1)
        h = (20 * q @ k.transpose(1, 2)).softmax(-1) @ h
        return self.fc(h.relu().reshape(batch, -1, 12).mean(1))


def test_a_count_that_is_the_batch_only_for_the_example_is_not_taken_for_it() -> None:
    torch.manual_seed(0)
    model = attach_exits(Windows().eval(), exits=["b"], input_size=SIZE).eval()
    x = torch.rand(3, *SIZE)
    assert torch.equal(model(x)[-1], model.backbone(x))
    with pytest.raises(ValueError, match="cut for images of 8x8 pixels, got 16x16"):
        model(torch.rand(2, 3, 16, 16))


SIZES = {
    "key": lambda net, h: h * net.sizes.get(h.shape[2], 1.0),
    "text": lambda net, h: h * getattr(net, f"scale_{h.shape[2]}", 1.0),
    "set": lambda net, h: h * 2 if h.shape[2] in {16, 24} else h,
    "index": lambda net, h: h * net.list[h.shape[2] // 8],  # larger images than 24 x 24 fail
    "half": lambda net, h: h * (h.shape[2] * 0.5),
}


@pytest.mark.parametrize("how", SIZES)
def test_a_size_that_decides_is_the_only_one(how: str) -> None:
    model = attached(SIZES[how])
    x = torch.rand(3, *SIZE)
    assert torch.equal(model(x)[-1], model.backbone(x))
    with pytest.raises(ValueError, match="cut for images of 8x8 pixels, got 16x16"):
        model(torch.rand(2, 3, 16, 16))


BATCHES = {
    "in": lambda net, h: h * 2 if h.shape[0] in {3, 33} else h,
    "and": lambda net, h: h * 2 if h.shape[0] & 4 else h,
    "divmod": lambda net, h: h * 2 if divmod(h.shape[0], 4)[1] == 3 else h,
    "len": lambda net, h: h * 2 if len(h) % 4 == 3 else h,
    "int": lambda net, h: h * 2 if int(h.shape[0]) % 4 == 3 else h,
    "neg": lambda net, h: h * 2 if -h.shape[0] % 4 == 1 else h,
    "minus": lambda net, h: h * 2 if h.shape[0] - 3 == 0 else h,
    "float": lambda net, h: h * 2 if h.shape[0] > 8.5 else h,
    "list": lambda net, h: h * [1, 1, 1, 2][h.shape[0] % 4],
    "channels": lambda net, h: h * 2 if h.shape[0] == h.shape[1] else h,
}


@pytest.mark.parametrize("how", BATCHES)
def test_a_batch_that_decides_is_refused(how: str) -> None:
    with pytest.raises(ValueError, match=r"size of the batch: it must ask the batch size as x\.shape\[0\]"):
        attached(BATCHES[how])


def counted(net: Any, h: Tensor) -> Tensor:
    before = net.count * 1  # must be taken before it changes, also by the steps after a cut
    net.count.view(1).add_(1)
    return h * (1 + before)


def test_a_buffer_that_is_changed_in_place_is_changed_once() -> None:
    for how in (lambda net, h: h + 0 * net.count.add_(1).sqrt().sqrt(), counted, lambda net, h: (net.count.add_(1), h)[1]):
        model = attached(how)
        plain = copy.deepcopy(model.backbone)
        for training in (False, True):
            model.train(training)
            plain.train(training)
            x = torch.rand(2, *SIZE)
            torch.testing.assert_close(model(x)[-1], plain(x))  # type: ignore[operator]
            assert model.backbone.count == plain.count  # type: ignore[union-attr]
    assert plain.count == 2  # type: ignore[union-attr]


def test_given_stages_must_leave_the_same_buffers() -> None:
    network = Net(lambda net, h: (net.count.add_(1), h)[1])
    stages: Any = [lambda net, x: net.b(net.a(x)).relu(), lambda net, h: net.fc(net.c(h).relu().mean((2, 3)))]
    with pytest.raises(ValueError, match="in eval mode they leave other values in its buffer 'count'"):
        attach_exits(network, stages=stages, input_size=SIZE)


def test_stages_that_hold_a_weight_are_found_out() -> None:
    network = Net(lambda net, h: h * net.scale)
    held = network.scale.item()
    stages: Any = [lambda net, x: net.b(net.a(x)).relu() * held, lambda net, h: net.fc(net.c(h).relu().mean((2, 3)))]
    with pytest.raises(ValueError, match="do not give what Net gives: in eval mode they differ"):
        check_stages(network, stages, torch.rand(2, *SIZE))
    assert network.scale == held


def stored(net: Any, h: Tensor) -> Tensor:
    net.state["n"] += 1
    return h * 2 if net.state["n"] > 8 else h


def listed(net: Any, h: Tensor) -> Tensor:
    net.counts[0] += 1
    return h * 2 if net.counts[0] > 8 else h


@pytest.mark.parametrize("how", [stored, listed, lambda net, h: (net.queue.append(1), h)[1]])
def test_a_state_in_a_container_is_refused(how: Any) -> None:
    with pytest.raises(ValueError, match=r"it keeps '(state|counts|queue)' from one call to the next, which must be a buffer"):
        attached(how)


def in_autocast(net: Any, h: Tensor) -> Tensor:
    return h * 2 if torch.is_autocast_enabled("cpu") else h


def in_inference(net: Any, h: Tensor) -> Tensor:
    return h * 2 if torch.is_inference_mode_enabled() else h


def without_autocast(net: Any, h: Tensor) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        return h @ h.transpose(2, 3) @ h


@pytest.mark.parametrize("how", [in_autocast, in_inference])
def test_what_asks_in_which_block_it_runs_is_refused(how: Any) -> None:
    with pytest.raises(ValueError, match=r"whether autocast or inference mode is on \(test_attach_later\.py, line \d+\)"):
        attached(how)


def test_a_block_without_autocast_belongs_in_a_part() -> None:
    with pytest.raises(ValueError, match="switches gradients or autocast on or off in forward, which only a submodule may do"):
        attached(without_autocast)


def test_a_precision_that_a_tensor_is_asked_for_is_wrong_in_autocast() -> None:
    model = attached(lambda net, h: h.float().softmax(1).to(h.dtype) + 3)
    x = torch.rand(2, *SIZE)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        try:
            same = torch.equal(model(x)[-1], model.backbone(x))
        except ValueError as error:
            same = "it cannot run in autocast" in str(error)
    assert same


def test_what_differs_in_a_precision_is_refused_there() -> None:
    model = attached(lambda net, h: h * 2 if h.dtype == torch.float64 else h)
    x = torch.rand(2, *SIZE)
    assert torch.equal(model(x)[-1], model.backbone(x))
    with pytest.raises(ValueError, match="something else in float64 than as it was cut: convert it before"):
        model.double()(x.double())


def mode(net: Any) -> None:
    net.mode = Mode.DOUBLE


def number(net: Any) -> None:
    net.number = np.float64(2)


def space(net: Any) -> None:
    net.space.k = 2.0


def nested(net: Any) -> None:
    net.inner.sub.k = 2.0


def table(net: Any) -> None:
    net.table["k"] = 2.0


def act(net: Any) -> None:
    net.act = partial(functional.leaky_relu, negative_slope=0.9)


def forward(net: Any) -> None:
    net.forward = partial(type(net).forward, net)


def pruned(net: Any) -> None:
    prune.l1_unstructured(net, "weight", 0.5)


def parametrized(net: Any) -> None:
    parametrize.register_parametrization(net, "weight", nn.Softplus())


CHANGES: dict[Any, Any] = {
    mode: lambda net, h: h * 2 if net.mode is Mode.DOUBLE else h,
    number: lambda net, h: h * float(net.number),
    space: lambda net, h: h * net.space.k,
    nested: lambda net, h: h * net.inner.sub.k,
    table: lambda net, h: h * net.table["k"],
    act: lambda net, h: net.act(h),
    forward: lambda net, h: h,
    pruned: lambda net, h: h * net.weight,
    parametrized: lambda net, h: h * net.weight,
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_was_cut_in_is_watched(change: Any) -> None:
    model = attached(CHANGES[change]).train(change in (mode, table))
    x = torch.rand(2, *SIZE)
    torch.testing.assert_close(model(x)[-1], model.backbone(x))
    change(model.backbone)
    with pytest.raises(ValueError, match="attach the exits again"):
        model(x)


def test_what_nothing_can_watch_is_refused() -> None:
    network = Net(lambda net, h: h * next(net.turns))
    network.turns = cycle([1.0])
    with pytest.raises(ValueError, match="it reads 'turns', and nothing tells whether a cycle has changed"):
        attach_exits(network, exits=2, input_size=SIZE)


@pytest.mark.slow
def test_a_compiled_network_watches_numbers() -> None:
    model = attached(lambda net, h: h * net.scale_16)
    compiled = torch.compile(model, backend="eager")
    x = torch.rand(2, *SIZE)
    assert torch.equal(compiled(x), model(x))
    model.backbone.scale_16 = 3.0
    with pytest.raises(ValueError, match="attach the exits again"):
        compiled(x)


@pytest.mark.parametrize("size", [16, 20])
def test_channels_are_where_they_are_for_every_size(size: int) -> None:
    class AsWide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 16, 3, padding=1), nn.Linear(16, 16)
            self.fc = nn.Linear(16, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.b(self.a(x).permute(0, 2, 3, 1)).mean((1, 2)))

    model = attach_exits(AsWide(), exits=["a", "b"], input_size=(3, size, size)).eval()
    assert [cut.channels_last for cut in model.cuts] == [False, True]
    assert model(torch.rand(2, 3, 24, 32)).shape == (3, 2, 5)
