"""Trained classifiers, normalisations and weights survive exits, and a model with exits can be built again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import anytime
from anytime.model import create_model
from anytime.models.surgery.attach.build import attach_exits
from anytime.models.surgery.attach.model import AttachedExits
from anytime.registry import register_model
from anytime.saving import read_model
from anytime.training.regimes.freezing import find_heads, freeze_trunk

SIZE = (3, 8, 8)


class Own(nn.Module):
    """A custom network; `classifier` names its last layer."""

    def __init__(self, num_classes: int = 5, in_channels: int = 3, classifier: str = "fc") -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(in_channels, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
        self.block = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
        self.last = classifier
        setattr(self, classifier, nn.Linear(6, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        return getattr(self, self.last)(nn.functional.dropout(self.block(self.stem(x)).mean((2, 3)), 0.5, self.training))


NAME = f"{Own.__module__}.Own"


def of_file(path: Path, **arguments: Any) -> AttachedExits:
    given: dict[str, Any] = {"backbone": NAME, "exits": ("stem",), "input_size": SIZE, "pretrained": str(path)}
    model = create_model("attach", 5, **given | arguments)
    assert isinstance(model, AttachedExits)
    return model


def test_a_network_keeps_its_classes_unless_a_new_classifier_is_asked_for() -> None:
    network = Own(7)
    model = attach_exits(network, ["stem"], input_size=SIZE)
    assert (model.num_classes, list(find_heads(model))) == (7, ["heads"])
    with pytest.raises(ValueError, match="Own gives 7 classes, but num_classes=10; reset=True starts a new classifier"):
        attach_exits(network, ["stem"], 10, input_size=SIZE)
    assert network.fc.out_features == 7
    model = attach_exits(network, "stem", 10, input_size=SIZE, reset=True)
    assert (model.num_classes, list(find_heads(model))) == (10, ["heads", "backbone.fc"])


def test_a_new_classifier_learns_with_the_heads_from_what_it_reads() -> None:
    torch.manual_seed(0)
    model = attach_exits(Own(7), ["stem"], 10, input_size=SIZE, reset=True)
    trunk, _ = freeze_trunk(model)
    assert model.backbone in trunk  # its own dropout is off
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {
        *("backbone.fc.weight", "backbone.fc.bias", "heads.0.mix", "heads.0.linear.weight", "heads.0.linear.bias")
    }
    x = torch.rand(4, *SIZE)
    features = model.trunk_features(x)
    assert [h.shape[1:] for h in features] == [(6, 8, 8), (6,)]
    answers = model.head_answers(features)
    assert torch.equal(answers, model(x))
    answers[-1].sum().backward()
    assert model.backbone.fc.weight.grad is not None  # type: ignore[union-attr]
    additive = attach_exits(Own(7), ["stem"], 10, input_size=SIZE, reset=True, additive=True).eval()
    assert torch.allclose(additive.head_answers(additive.trunk_features(x)), additive(x))


def test_no_features_are_kept_if_a_new_classifier_cannot_be_separated() -> None:
    class Twice(Own):
        def forward(self, x: Tensor) -> Tensor:
            h = self.block(self.stem(x)).mean((2, 3))
            return self.fc(h) + self.fc(h * 2)

    model = attach_exits(Twice(), ["stem"], 10, input_size=SIZE, reset=True)
    assert not model.keeps_features
    assert list(find_heads(model)) == ["heads", "backbone.fc"]


def test_weights_keep_their_normalisation(tmp_path: Path) -> None:
    plain = create_model("attach", 5, backbone=NAME, exits=1, input_size=SIZE)
    assert not plain.own_normalization
    plain.set_normalization([0.1, 0.2, 0.3], [0.5, 0.6, 0.7])
    torch.save(plain.state_dict(), tmp_path / "ours.pt")
    torch.save(plain.backbone.state_dict(), tmp_path / "bare.pt")  # type: ignore[union-attr]
    model = of_file(tmp_path / "ours.pt")
    assert model.own_normalization
    assert torch.equal(model.mean, plain.mean)
    assert torch.equal(model.std, plain.std)
    assert not of_file(tmp_path / "bare.pt").own_normalization
    given = of_file(tmp_path / "bare.pt", mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    assert given.own_normalization
    with pytest.raises(ValueError, match=r"mean and std belong together, got mean=\(0.5,\) and std=None"):
        of_file(tmp_path / "bare.pt", mean=(0.5,))


def test_weights_that_fit_need_no_known_classifier(tmp_path: Path) -> None:
    torch.save(Own(classifier="linear").state_dict(), tmp_path / "linear.pt")
    model = of_file(tmp_path / "linear.pt", options={"classifier": "linear"})
    assert model.num_classes == 5

    class Inside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone, self.fc = nn.Conv2d(3, 6, 3), nn.Linear(6, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.backbone(x).mean((2, 3)))

    from anytime.models.surgery.backbones import read_weights

    torch.save(Inside().state_dict(), tmp_path / "inside.pt")
    assert read_weights(tmp_path / "inside.pt").tensors.keys() == Inside().state_dict().keys()


@register_model
def two_stages(num_classes: int = 5, in_channels: int = 3) -> AttachedExits:
    """A custom function over a network with given stages."""
    stages = [lambda net, x: net.stem(x), lambda net, h: net.fc(net.block(h).mean((2, 3)))]

    class Plain(Own):
        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.block(self.stem(x)).mean((2, 3)))

    return attach_exits(Plain(num_classes, in_channels), stages=stages, input_size=(in_channels, 8, 8))


def test_what_builds_exits_again(tmp_path: Path) -> None:
    model = create_model("two_stages", 5).eval()
    model.save(tmp_path / "two")
    x = torch.rand(2, *SIZE)
    assert torch.equal(read_model(tmp_path / "two", trust=True)(x), model(x))
    with pytest.raises(
        ValueError, match=rf"built without create_model.*create_model\('attach', backbone='{NAME}'.*register_model"
    ):
        attach_exits(Own(), ["stem"], input_size=SIZE).save(tmp_path / "none")
    torch.save(Own().state_dict(), tmp_path / "own.pt")
    arguments = {"backbone": NAME, "exits": 2, "input_size": SIZE, "pretrained": str(tmp_path / "own.pt")}
    boosted = create_model("boosted", 5, base="attach", arguments=arguments).eval()
    boosted.save(tmp_path / "boosted")
    (tmp_path / "own.pt").unlink()
    assert torch.equal(read_model(tmp_path / "boosted", trust=True)(x), boosted(x))


def test_trained_filters_respond_to_grey_images_as_to_their_colour_copies() -> None:
    from anytime.models.surgery.backbones import _with_channels

    colour = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten())
    old = colour[0]
    grey = torch.rand(2, 1, 8, 8)
    with torch.no_grad():
        expected = old(grey.expand(-1, 3, -1, -1))
        assert torch.allclose(_with_channels(colour, 1, trained=True)[0](grey), expected, atol=1e-6)  # type: ignore[index]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backbone": "torchvision:resnet18"}, "'torchvision:resnet18' is a name, which needs num_classes"),
        ({"backbone": Own(), "pretrained": "weights.pt"}, "pretrained and options need a backbone given by name"),
        ({"backbone": [1, 2]}, "must be a network, its name or a list of modules; the list holds int"),
        ({"backbone": Own(), "input_size": (4, 8, 8)}, r"Own fails on images of \(4, 8, 8\): .*expected .*channels"),
        (
            {"backbone": Own(), "stages": [], "exits": ["stem"]},
            r"stages fix the exits, so exits=\['stem'\] cannot be given as well",
        ),
        ({"backbone": "torchvision:vit_b_16", "num_classes": 5}, r"vit_b_16 cannot be built for \(3, 8, 8\) images"),
    ],
)
def test_refusals(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        attach_exits(**{"input_size": SIZE} | arguments)


def test_lists_of_modules() -> None:
    layers = nn.ModuleList([nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 5)])
    assert attach_exits(layers, ["0"], input_size=SIZE).exits == ("0",)
    with torch.inference_mode(), pytest.raises(ValueError, match=r"outside torch\.inference_mode\(\)"):
        attach_exits(layers, ["0"], input_size=SIZE)


def test_forwards_that_a_graph_cannot_hold_are_refused() -> None:
    class Frozen(Own):
        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                h = self.stem(x)
            return self.fc(self.block(h).mean((2, 3)))

    class Precise(Own):
        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                h = self.stem(x)
            return self.fc(self.block(h.float()).mean((2, 3)))

    class Counts(Own):
        def forward(self, x: Tensor) -> Tensor:
            h = self.block(self.stem(x)).mean((2, 3))
            return self.fc(h * 2 if h.shape[0] == 1 else h)

    for kind in (Frozen, Precise):
        with pytest.raises(
            ValueError, match=f"{kind.__name__} cannot be traced: it switches gradients or autocast on or off in forward"
        ):
            attach_exits(kind(), ["stem"], input_size=SIZE)
    with pytest.raises(
        ValueError, match="Counts cannot be traced: what it does depends on the size of the batch: it must ask"
    ):
        attach_exits(Counts(), ["stem"], input_size=SIZE)
    stages: Any = [lambda net, x: net.stem(x), lambda net, h: net.fc(net.block(h).mean((2, 3)))]
    with pytest.raises(ValueError, match="do not give what Counts gives: in eval mode, for one image, they differ by"):
        attach_exits(Counts(), stages=stages, input_size=SIZE)


def test_names_in_python_mean_the_same_as_on_the_command_line(tmp_path: Path) -> None:
    torch.save(Own(7).state_dict(), tmp_path / "seven.pt")
    given: Any = {"num_classes": 5, "input_size": SIZE, "pretrained": tmp_path / "seven.pt"}
    with pytest.raises(ValueError, match="7 classes, but num_classes=5"):
        anytime.attach_exits(NAME, "stem", **given)
    model = anytime.attach_exits(NAME, "stem", reset=True, **given)
    assert model.head_names == ("heads", "backbone.fc")
    assert model.config["arguments"]["pretrained"] is False
