"""What a predictor computes with has the weights, buffers, hooks and modules that the model has at the call."""

import copy
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import anytime
from anytime import AnytimeModel, Predictor
from anytime.runtime.shell import Shell

SIZE = (3, 16, 16)
MEMBERS = [{"model": "ann", "arguments": {"units": units, "width": 2}} for units in (1, 2)]
X = torch.rand(2, *SIZE, generator=torch.Generator().manual_seed(0))


def network() -> nn.Module:
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5), nn.Linear(4, 5))


FAMILIES: dict[str, Callable[[], AnytimeModel]] = {
    "anytimenet": lambda: anytime.create_model("anytimenet", blocks=(2, 2, 2), scheme=(1, 1), width=4),
    "ann": lambda: anytime.create_model("ann", units=2, width=4),
    "eann": lambda: anytime.create_model("eann", members=MEMBERS),
    "attach": lambda: anytime.attach_exits(network(), exits=2, input_size=SIZE),
    "delayed": lambda: anytime.add_delays(network(), ["3"], num_classes=5),
    "cascaded": lambda: anytime.create_model("cascaded_resnet18", width=4, num_steps=3),
    "boosted": lambda: anytime.create_model("boosted", arguments={"width": 4, "blocks": (2, 2, 2), "scheme": (1, 1)}),
}


def some(model: nn.Module, kind: type[nn.Module]) -> nn.Module:
    return [module for module in model.modules() if isinstance(module, kind)][-1]


def larger(model: AnytimeModel) -> dict[str, Tensor]:
    return {name: value * 1.1 if value.is_floating_point() else value for name, value in model.state_dict().items()}


def train_a_step(model: AnytimeModel) -> None:
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    model(X).square().mean().backward()
    optimizer.step()


def replace_a_module(model: AnytimeModel) -> None:
    conv = some(model, nn.Conv2d)
    name = next(name for name, module in model.named_modules() if module is conv)
    parent, _, child = name.rpartition(".")
    new = copy.deepcopy(conv)
    nn.init.normal_(new.weight)
    setattr(model.get_submodule(parent), child, new)


CHANGES: dict[str, Callable[[AnytimeModel], object]] = {
    "optimizer step": train_a_step,
    "loaded": lambda model: model.load_state_dict(larger(model)),
    "assigned": lambda model: model.load_state_dict(larger(model), assign=True),
    "precision": lambda model: model.double(),
    "module replaced": replace_a_module,
    "parametrized": lambda model: parametrizations.spectral_norm(some(model, nn.Conv2d)),
    "pruned": lambda model: prune.l1_unstructured(some(model, nn.Conv2d), "weight", 0.5),
    "hook": lambda model: some(model, nn.Conv2d).register_forward_hook(lambda m, x, y: y * 2),
    "hook of the model": lambda model: model.register_forward_hook(lambda m, x, y: y * 2),
    "attribute": lambda model: setattr([m for m in model.modules() if hasattr(m, "running_mean")][-1], "eps", 3.0),
    "normalization": lambda model: model.set_normalization([0.5] * 3, [0.2] * 3),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("family", FAMILIES)
def test_what_changes_after_the_build_counts(family: str, change: str) -> None:
    torch.manual_seed(0)
    model = FAMILIES[family]()
    contract = change in ("optimizer step", "module replaced")
    predictor = Predictor(model, anytime.profile(model, SIZE, (2,), repeats=1, warmup=0) if contract else None)
    before = predictor(X).probabilities
    CHANGES[change](model)
    x = X.to(next(model.parameters()).dtype)
    modes = [module.training for module in model.modules()]
    got = [predictor(x, contract=contract).probabilities for contract in (False, True)[: 1 + contract]]
    assert [module.training for module in model.modules()] == modes
    for found, step in zip(got, (None, model.num_steps), strict=False):
        model.eval()
        with torch.inference_mode():
            logits = model(x, step=step) if step else [*model.stream(x)][-1]
        torch.testing.assert_close(found, logits.float().softmax(1))
    assert change in ("hook of the model", "precision") or not torch.equal(got[0], before)


class Whole(AnytimeModel):
    """A network as a single step."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__(5)
        self.num_steps, self.inner = 1, inner

    def initial_state(self, x: Tensor) -> Tensor:
        return x

    def step(self, state: Tensor) -> tuple[Tensor, Tensor]:
        return self.inner(state), state


FORMS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "compiled": partial(torch.compile, backend="eager"),
    "scripted": torch.jit.script,
    "traced": lambda inner: torch.jit.trace(inner.eval(), X),
    "graph": torch.fx.symbolic_trace,
}


@pytest.mark.filterwarnings("ignore:`torch.jit")
@pytest.mark.parametrize("form", FORMS)
def test_networks_in_other_forms_keep_weights_buffers_and_modes(form: str) -> None:
    inner = network()
    inner[1].running_mean += 0.3
    model = Whole(FORMS[form](inner))
    predictor = Predictor(model)
    expected = predictor(X).probabilities
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    for _ in range(2):
        assert torch.equal(predictor(X).probabilities, expected)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.inner.training
    model.load_state_dict(larger(model))
    want = Predictor(model)(X).probabilities
    assert torch.equal(predictor(X).probabilities, want)
    with torch.inference_mode():
        torch.testing.assert_close(want, model(X)[0].softmax(1))


class Odd(AnytimeModel):
    """Reaches its norms in every way but the usual one."""

    def __init__(self, way: str) -> None:
        super().__init__(4)
        self.num_steps = 1
        self.norm = nn.BatchNorm2d(3)
        self.norm.running_mean += 0.3
        norm = self.norm
        ways = {
            "list": [[norm]],
            "tuple": (norm,),
            "dict": {"a": {"b": norm}},
            "method": norm.forward,
            "own method": self.through,
            "partial": partial(lambda f, x: f(x), norm),
            "function": lambda x: norm(x),
            "nested function": (lambda f: lambda x: f(x))(lambda x: self.norm(x)),
        }
        self.way = ways[way]

    def through(self, x: Tensor) -> Tensor:
        return self.norm(x)

    def initial_state(self, x: Tensor) -> Tensor:
        return x

    def step(self, state: Tensor) -> tuple[Tensor, Tensor]:
        found = self.way
        while isinstance(found, (list, tuple, dict)):
            found = next(iter(found.values())) if isinstance(found, dict) else found[0]
        return torch.nn.functional.pad(found(state).mean((2, 3)), (0, 1)), state


@pytest.mark.parametrize("way", ["list", "tuple", "dict", "method", "own method", "partial", "function", "nested function"])
def test_modules_in_containers_methods_and_functions(way: str) -> None:
    model = Odd(way)
    predictor = Predictor(model)
    expected = predictor(X).probabilities
    before = model.norm.running_mean.clone()
    model.train()
    assert torch.equal(predictor(X).probabilities, expected)
    assert torch.equal(model.norm.running_mean, before)
    model.norm = nn.BatchNorm2d(3)
    nn.init.constant_(model.norm.bias, 9.0)
    new = predictor(X).probabilities
    assert torch.equal(new, expected) == (way not in ("own method", "nested function"))


def test_counterparts_stay_and_nothing_is_copied() -> None:
    model = FAMILIES["anytimenet"]()
    model.log = []
    shell = Shell(model)
    first = list(shell.model.modules())
    shell.update()
    model.train()
    model.tau = 0.5
    shell.update()
    assert [id(module) for module in shell.model.modules()] == [id(module) for module in first]
    assert [type(module) for module in first] == [type(module) for module in model.modules()]
    pairs = zip(shell.model.parameters(), model.parameters(), strict=True)
    assert all(one is other for one, other in pairs)
    assert shell.model.log is model.log
    assert shell.model.tau == 0.5
    del model.tau
    model.log = []
    shell.update()
    assert not hasattr(shell.model, "tau")
    assert shell.model.log is model.log
    shell.model.cache = 1  # set by a step
    model.head.note = torch.ones(2)
    shell.update()
    model.head.note = torch.ones(2)
    shell.update()
    assert shell.model.head.note is model.head.note
    assert shell.model.cache == 1
    model.sections.append(nn.Identity())
    shell.update()
    assert len(shell.model.sections) == len(model.sections)
