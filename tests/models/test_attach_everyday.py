"""What people do every day: half precision, configurations from files, other classifiers, encoders of torch, copies."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Iterator, MutableMapping
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, fx, nn

from anytime.models.surgery.attach.build import attach_exits
from anytime.runtime import Predictor, profile

SIZE = (3, 8, 8)


class Net(nn.Module):
    """Three layers and a classifier."""

    def __init__(self, how: Callable[[Any], float] = lambda net: 1.0, held: Any = None) -> None:
        super().__init__()
        self.how, self.held, self.factor = how, held, 0.5
        self.a, self.b, self.c = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.c(self.b(self.a(x)).relu() * self.how(self)).relu().mean((2, 3)))


@pytest.mark.parametrize(("kind", "before"), [(torch.bfloat16, True), (torch.float16, False)])
def test_a_network_in_another_precision_answers(kind: torch.dtype, before: bool) -> None:
    torch.manual_seed(0)
    network = Net().eval()
    model = attach_exits(network.to(kind) if before else network, exits=3, input_size=SIZE).eval()
    model.set_normalization([0.4] * 3, [0.3] * 3)
    network.to(kind)
    x = torch.rand(2, *SIZE)
    last = list(model.stream(x))[-1]
    assert last.dtype is kind
    assert torch.equal(last, network(((x - 0.4) / 0.3).to(kind)))
    assert torch.equal(model(x), model.head_answers(model.trunk_features(x)))
    images = x.to(kind)[:1]
    answer = Predictor(model, profile(model, images, repeats=2))(images)
    torch.testing.assert_close(answer.outputs, model(images)[-1].float())


class Private:
    """Keeps values where only its own code looks."""

    def __init__(self, **values: Any) -> None:
        object.__setattr__(self, "_values", values)

    def __getattr__(self, name: str) -> Any:
        try:
            return object.__getattribute__(self, "_values")[name]
        except KeyError:
            raise AttributeError(name) from None

    def __setattr__(self, name: str, value: Any) -> None:
        object.__getattribute__(self, "_values")[name] = value


class Bag:
    """Keeps values as its attributes."""

    def __init__(self, **values: Any) -> None:
        self.__dict__.update(values, around=self)

    def __getitem__(self, name: str) -> Any:
        return self.__dict__[name]


class Configuration(MutableMapping[str, Any]):
    """Keeps values as OmegaConf does: in its `__dict__`, where each reading fills a cache."""

    def __init__(self, **values: Any) -> None:
        self.__dict__.update(_content=values, _cache=0)

    def __getattr__(self, name: str) -> Any:
        if name[:2] == "__":
            raise AttributeError(name)
        return self[name]

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def __getitem__(self, name: str) -> Any:
        self.__dict__["_cache"] += 1
        return self.__dict__["_content"][name]

    def __setitem__(self, name: str, value: Any) -> None:
        self.__dict__["_content"][name] = value

    def __delitem__(self, name: str) -> None:
        del self.__dict__["_content"][name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.__dict__["_content"])

    def __len__(self) -> int:
        return len(self.__dict__["_content"])


KEPT: dict[str, tuple[Callable[[Any], float], Any, Callable[[Any], None]]] = {
    "private": (lambda net: net.held.s, lambda: Private(s=0.5), lambda net: setattr(net.held, "s", 2.0)),
    "item": (lambda net: net.held["s"], lambda: Bag(s=0.5), lambda net: setattr(net.held, "s", 2.0)),
    "mapping": (lambda net: net.held.s, lambda: Configuration(s=0.5), lambda net: setattr(net.held, "s", 2.0)),
    "mapping item": (lambda net: net.held["s"], lambda: Configuration(s=0.5), lambda net: setattr(net.held, "s", 2.0)),
    "deep": (
        lambda net: net.held.k.s,
        lambda: Configuration(k=Configuration(s=0.5)),
        lambda net: setattr(net.held.k, "s", 2.0),
    ),
    "vars": (lambda net: vars(net)["factor"], lambda: None, lambda net: setattr(net, "factor", 2.0)),
}


@pytest.mark.parametrize("name", KEPT)
def test_a_value_that_a_configuration_keeps_to_itself_is_watched(name: str) -> None:
    how, held, change = KEPT[name]
    model = attach_exits(Net(how, held()).eval(), exits=2, input_size=SIZE).eval()
    x, twin = torch.rand(1, *SIZE), copy.deepcopy(model)
    for one in (model, twin):
        for _ in range(2):
            assert torch.equal(one(x)[-1], one.backbone(x))
        change(one.backbone)
        with pytest.raises(ValueError, match=r"was cut with .*0\.5.*, and has .*2\.0.* now: attach the exits again"):
            one(x)


@pytest.mark.parametrize("other", ["Linear", "Sequential"])
def test_a_classifier_of_other_classes_is_noticed(other: str) -> None:
    network = Net().eval()
    model = attach_exits(network, exits=3, input_size=SIZE).eval()
    x = torch.rand(1, *SIZE)
    network.fc = nn.Linear(4, 7) if other == "Linear" else nn.Sequential(nn.Linear(4, 7))
    for answer in (lambda: model(x), lambda: profile(model, x, repeats=2)):
        with pytest.raises(ValueError, match="the network gives 7 outputs now, and was cut with 5: attach the exits again"):
            answer()


def test_a_weight_of_another_shape_is_noticed() -> None:
    class Scaled(Net):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x * self.scale)

    model = attach_exits(Scaled().eval(), exits=3, input_size=SIZE).eval()
    model.backbone.scale = nn.Parameter(torch.ones(2, 1, 1, 1))
    with pytest.raises(ValueError, match=r"cut with 'scale' of shape \[1\], and has one of \[2, 1, 1, 1\] now: attach"):
        model(torch.rand(2, *SIZE))


def test_a_network_of_torch_fx_is_copied() -> None:
    model = attach_exits(fx.symbolic_trace(Net().eval()), exits=3, input_size=SIZE).eval()
    twin, x = copy.deepcopy(model), torch.rand(1, *SIZE)
    assert torch.equal(twin(x), model(x))
    graph = twin.backbone.graph
    next(node for node in graph.nodes if node.name == "relu").target = "abs"
    twin.backbone.recompile()
    with pytest.raises(ValueError, match="GraphModule '' was cut, and has other code now: attach the exits again"):
        twin(x)


class Blocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x).relu()
        return x


class Holder(nn.Module):
    """A network with a part of torch.fx, as torchvision's create_feature_extractor makes."""

    def __init__(self) -> None:
        super().__init__()
        self.part, self.fc = fx.symbolic_trace(Blocks()), nn.Linear(3, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.part(x).mean((2, 3)))


def test_a_part_of_torch_fx_is_copied_and_pickled() -> None:
    model = attach_exits(Holder().eval(), exits=3, input_size=SIZE).eval()
    x, file = torch.rand(1, *SIZE), io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for twin in (copy.deepcopy(model), torch.load(file, weights_only=False)):
        assert torch.equal(twin(x), model(x))
        next(node for node in twin.backbone.part.graph.nodes if node.name == "relu").target = "abs"
        twin.backbone.part.recompile()
        with pytest.raises(ValueError, match="GraphModule 'part' was cut, and has other code now: attach the exits again"):
            twin(x)


def act(factor: float) -> Callable[[Tensor], Tensor]:
    def scaled(x: Tensor) -> Tensor:
        return x.relu() * factor

    return scaled


def test_another_function_of_the_same_name_in_a_part_of_torch_fx_is_an_error() -> None:
    network = Holder().eval()
    one, other = act(1.0), act(9.0)
    nodes = [node for node in network.part.graph.nodes if node.name.startswith("relu")]
    for function in (one, other):
        for node in nodes:
            node.op, node.target = "call_function", function
        network.part.recompile()
        if function is one:
            model = attach_exits(network, exits=3, input_size=SIZE).eval()
            model(torch.rand(1, *SIZE))
    with pytest.raises(ValueError, match="GraphModule 'part' was cut, and has other code now: attach the exits again"):
        model(torch.rand(1, *SIZE))


def test_an_attribute_of_the_name_that_torch_fx_uses_is_watched() -> None:
    class Named(Net):
        def __init__(self) -> None:
            super().__init__()
            self._wrapped_call = 2.0

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x * self._wrapped_call)

    model = attach_exits(Named().eval(), exits=3, input_size=SIZE).eval()
    model.backbone._wrapped_call = 5.0
    with pytest.raises(ValueError, match=r"was cut with _wrapped_call = 2.0, and has 5.0 now"):
        model(torch.rand(2, *SIZE))


class Tokens(nn.Module):
    """A vision transformer of torch's own layers."""

    def __init__(self, norm_first: bool, padded: bool = False) -> None:
        super().__init__()
        self.padded = padded
        self.patches, self.fc = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 5)
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=norm_first)
        self.encoder = nn.TransformerEncoder(layer, 3, nn.LayerNorm(8), enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.patches(x).flatten(2).mT
        return self.fc(self.encoder(h, src_key_padding_mask=h.sum(2) > 9 if self.padded else None).mean(1))


@pytest.mark.parametrize("norm_first", [True, False])
def test_exits_lie_between_the_layers_of_an_encoder(norm_first: bool) -> None:
    model = attach_exits(Tokens(norm_first).eval(), exits=3, input_size=SIZE).eval()
    assert model.exits == ("encoder.layers.0", "encoder.layers.1")
    x = torch.rand(2, *SIZE)
    torch.testing.assert_close(model(x)[-1], model.backbone(x))


def test_an_encoder_that_does_not_run_in_autocast_is_cut() -> None:
    model = attach_exits(Tokens(False, padded=True).eval(), exits=3, input_size=SIZE).eval()
    x = torch.rand(2, *SIZE)
    torch.testing.assert_close(model(x)[-1], model.backbone(x))


class Outputs(NamedTuple):
    logits: Tensor
    aux_logits: Tensor


@pytest.mark.parametrize("kind", [Outputs, lambda y, more: (y, more)])
def test_further_outputs_in_train_mode_are_one_sentence(kind: Any) -> None:
    class Auxiliary(Net):
        def forward(self, x: Tensor) -> Any:
            y = super().forward(x)
            return kind(y, y) if self.training else y

    with pytest.raises(ValueError, match=r"in train mode, but a (Outputs|tuple) .build it without .* aux_logits=False"):
        attach_exits(Auxiliary(), exits=3, input_size=SIZE)


class Needy(Net):
    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return super().forward(x) + t


def halved(x: Tensor) -> Tensor:
    return x / 2


class Compiled(Net):
    def __init__(self) -> None:
        super().__init__()
        self.halved = [torch.jit.script(halved)]

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.halved[0](x))


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "two arguments": (Needy, "Needy fails on images of .* missing 1 required positional argument: 't'"),
    "compiled function": (Compiled, "or calls a torch.jit function, which must be plain Python"),
    "without values": (lambda: Net().to("meta"), "the weights of Net are on the device meta"),
    "traced": (lambda: torch.jit.trace(nn.Linear(2, 2), torch.rand(1, 2)), "the network is a TopLevelTracedModule"),
    "parallel": (lambda: nn.DataParallel(Net()), "the network is in DataParallel: attach exits to network.module"),
    "attached": (lambda: attach_exits(Net(), exits=2, input_size=SIZE), "this AttachedExits has steps already"),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning")
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_plain_network_is_one_sentence(name: str) -> None:
    made, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        attach_exits(made(), exits=2, input_size=SIZE)


@pytest.mark.parametrize("exits", [0, -1])
def test_too_few_exits_are_one_sentence(exits: int) -> None:
    with pytest.raises(ValueError, match=f"at least 1, got {exits}"):
        attach_exits(Net(), exits=exits, input_size=SIZE)
