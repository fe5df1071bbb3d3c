"""What no function of torch shows to a trace is refused: gradients of its own, hooks, other random numbers, kept tensors."""

from __future__ import annotations

import copy
import io
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from anytime.models.surgery.attach.build import attach_exits
from anytime.models.surgery.attach.checks import check_stages
from anytime.models.surgery.attach.model import AttachedExits

SIZE = (3, 8, 8)


class Net(nn.Module):
    """Does something between two parts that can be cut."""

    def __init__(self, how: Any) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.fc, self.how = nn.Linear(4, 5), how

    def forward(self, x: Tensor) -> Tensor:
        h = self.how(self, self.b(self.a(x)).relu())
        return self.fc(self.c(h).relu().mean((2, 3)))


class Part(nn.Module):
    """The same as a part of a network."""

    def __init__(self, how: Any) -> None:
        super().__init__()
        self.inner, self.how = nn.Conv2d(3, 3, 1), how

    def forward(self, x: Tensor) -> Tensor:
        return self.how(self, self.inner(x))


def attached(how: Any) -> AttachedExits:
    torch.manual_seed(0)
    return attach_exits(Net(how).eval(), exits=3, input_size=SIZE).eval()


class Sign(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h: Tensor) -> Tensor:
        return h.sign()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient


sign = Sign.apply


def hooked(net: nn.Module, h: Tensor) -> Tensor:
    if h.requires_grad:
        h.register_hook(lambda gradient: gradient.clamp(-1e-4, 1e-4))
    return h


def kept(net: nn.Module, h: Tensor) -> Tensor:
    net.aux = h.square().mean()
    return h


UNSEEN = {
    "function": (lambda net, h: Sign.apply(h), "calls Sign, a torch.autograd.Function, whose gradient a graph loses"),
    "its apply": (lambda net, h: sign(h), "calls Sign, a torch.autograd.Function, whose gradient a graph loses"),
    "hook": (hooked, r"puts a hook on a tensor in forward.*\(test_attach_promise\.py, line \d+\)"),
    "kept": (kept, "keeps a tensor as 'aux' in forward"),
    "random": (lambda net, h: h * random.uniform(0.9, 1.1) if net.training else h, "random numbers of Python or NumPy"),
    "numpy": (lambda net, h: h * np.random.rand() if net.training else h, "random numbers of Python or NumPy"),
    "reentrant": (lambda net, h: checkpoint(torch.tanh, h, use_reentrant=True), "must be use_reentrant=False"),
}


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("name", UNSEEN)
def test_what_a_graph_cannot_hold_is_refused(name: str) -> None:
    how, message = UNSEEN[name]
    with pytest.raises(ValueError, match=message):
        attached(how)


def test_a_hook_is_found_while_the_weights_are_frozen() -> None:
    with pytest.raises(ValueError, match="puts a hook on a tensor in forward"):
        attach_exits(Net(hooked).requires_grad_(False), exits=3, input_size=SIZE)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("name", ["function", "hook", "kept", "random", "reentrant"])
def test_a_part_that_does_what_a_graph_cannot_hold_stays_whole(name: str) -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 3, 1), Part(UNSEEN[name][0]), nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    model = attach_exits(layers, exits=["0", "1"], input_size=SIZE).train()
    first: Any = model.backbone[0]  # type: ignore[index]
    x, found = torch.rand(2, *SIZE), list[Tensor]()
    for run in (lambda: model(x)[-1], lambda: model.backbone(x)):
        random.seed(1)
        logits = run()
        model.zero_grad()
        logits.square().sum().backward()
        found += [logits, first.weight.grad, first.bias.grad]
    for one, two in zip(found[:3], found[3:], strict=True):
        assert torch.equal(one, two)


def test_stages_with_other_gradients_are_found_out() -> None:
    network = Net(lambda net, h: Sign.apply(h))
    stages: Any = [lambda net, x: net.b(net.a(x)).relu().sign(), lambda net, h: net.fc(net.c(h).relu().mean((2, 3)))]
    with pytest.raises(ValueError, match=r"in train mode they give another gradient of 'a\.weight'"):
        check_stages(network, stages, torch.rand(2, *SIZE))


def test_attaching_draws_no_random_numbers() -> None:
    random.seed(0)
    np.random.seed(0)
    expected = random.random(), np.random.rand()
    random.seed(0)
    np.random.seed(0)
    attach_exits([nn.Conv2d(3, 3, 1), Part(UNSEEN["random"][0]), nn.Flatten(), nn.Linear(192, 5)], 2, input_size=SIZE)
    assert (random.random(), np.random.rand()) == expected


def test_one_output_is_no_classification() -> None:
    layers = [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 1)]
    with pytest.raises(ValueError, match=r"gives one output, .* give task='regression' if it is a value"):
        attach_exits(layers, exits=2, input_size=SIZE)
    with pytest.raises(ValueError, match="task must be 'classification' or 'regression', got 'dense'"):
        attach_exits(layers, exits=2, input_size=SIZE, task="dense")
    model = attach_exits(layers, exits=2, input_size=SIZE, task="regression")
    assert model.info.task == "regression"


def test_a_compiled_network_is_refused() -> None:
    layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 5))
    compiled = nn.Sequential(*layers)
    compiled.compile(backend="eager")
    for network in (torch.compile(layers, backend="eager"), compiled):
        with pytest.raises(
            ValueError, match="is compiled: attach exits to the network itself, and compile the model with exits"
        ):
            attach_exits(network, exits=2, input_size=SIZE)


def test_exits_read_the_precision_of_the_images() -> None:
    class Mixed(Net):
        def forward(self, x: Tensor) -> Tensor:
            h = self.b(self.a(x).bfloat16()).relu()
            return self.fc(self.c(h).to(x.dtype).mean((2, 3)))

    network = Mixed(None).eval()
    network.b.bfloat16()
    network.c.bfloat16()
    model, x = attach_exits(network, exits=["a", "to"], input_size=SIZE).eval(), torch.rand(2, *SIZE)
    assert torch.equal(model(x)[-1], network(x))
    with pytest.raises(ValueError, match=r"cannot be cut at 'b' \(.*, or is in another precision than the images"):
        attach_exits(network, exits=["b"], input_size=SIZE)


def averaged(net: Any, h: Tensor) -> Tensor:
    if net.training:
        net.mean = 0.9 * net.mean + 0.1 * h.detach().mean((0, 2, 3), keepdim=True)
    return h - net.mean


class Averaged(Net):
    def __init__(self, how: Any) -> None:
        super().__init__(how)
        self.register_buffer("mean", torch.zeros(1, 4, 1, 1))


class Averaging(nn.Module):
    """Does something in a part of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(1, 4, 1, 1))

    def forward(self, h: Tensor) -> Tensor:
        return averaged(self, h)


def test_a_moving_average_belongs_in_a_part() -> None:
    with pytest.raises(ValueError, match=r"assigns 'mean' in forward, which only a submodule may do; change that, put it"):
        attach_exits(Averaged(averaged), exits=3, input_size=SIZE)
    whole = "'0' stays whole, because it assigns 'mean' in forward, .*: put what does this into a part of Averaged '0'"
    with pytest.raises(ValueError, match=f"exits must lie in 1..1 .*, got 3; Averaged {whole}"):
        attach_exits([Averaged(averaged)], exits=3, input_size=SIZE)
    network = Net(lambda net, h: net.part(h))
    network.part = Averaging()
    model, plain, x = (
        attach_exits(network, exits=3, input_size=SIZE).train(),
        copy.deepcopy(network).train(),
        torch.rand(2, *SIZE),
    )
    for _ in range(2):
        assert torch.equal(model(x)[-1], plain(x))
    assert torch.equal(network.part.mean, plain.part.mean)


class Gives(Net):
    """Gives more than logits, perhaps only in train mode."""

    def __init__(self, kind: Any, always: bool) -> None:
        super().__init__(lambda net, h: h)
        self.kind, self.always = kind, always

    def forward(self, x: Tensor) -> Any:
        y = super().forward(x)
        return self.kind(y) if self.training or self.always else y


@pytest.mark.parametrize(
    ("kind", "always", "message"),
    [
        (
            lambda y: {"logits": y},
            True,
            "Gives must return logits .*, got dict; put it into a module .* only the logits",
        ),
        (lambda y: (y, y.sum()), True, "Gives must return logits .*, got tuple; put it into a module"),
        (lambda y: {"logits": y}, False, "it does not return one new tensor in train mode, but a dict"),
        (lambda y: (y, y.sum()), False, "in train mode, but a tuple .build it without further outputs"),
    ],
)
def test_other_outputs_than_logits_are_one_sentence(kind: Any, always: bool, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        attach_exits(Gives(kind, always), exits=3, input_size=SIZE)


def pooled(net: Any, h: Tensor) -> Tensor:
    return functional.max_pool2d(functional.adaptive_max_pool2d(h, 4), 2)


def test_a_model_whose_own_code_pools_is_saved_as_a_whole() -> None:
    torch.manual_seed(0)
    model = attach_exits(Net(pooled).eval(), exits=["a", "max_pool2d"], input_size=SIZE).eval()
    for precision in (torch.float32, torch.bfloat16):
        file = io.BytesIO()
        torch.save(model.to(precision), file)
        file.seek(0)
        found = torch.load(file, weights_only=False)
        x = torch.rand(2, *SIZE, dtype=precision)
        assert torch.equal(found(x), model(x))
        assert torch.equal(found(x)[-1], model.backbone(x))
