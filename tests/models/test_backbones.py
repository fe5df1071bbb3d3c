"""Backbones by name: new classifiers, weights from files, their own normalisation, other channels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, ResNet
from torchvision.models.swin_transformer import SwinTransformer
from torchvision.models.vision_transformer import VisionTransformer

from anytime.model import create_model
from anytime.models.common.heads import LinearHead
from anytime.models.surgery.attach.build import attach, attach_exits
from anytime.models.surgery.attach.model import AttachedExits
from anytime.models.surgery.backbones import build_backbone, find_classifiers

SIZE = (3, 8, 8)


class Own(nn.Module):
    """A custom network named by import path, built with `num_classes` and `in_channels` by name."""

    def __init__(self, num_classes: int = 5, in_channels: int = 3, width: int = 6) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(in_channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.block = nn.Conv2d(width, width, 3, padding=1)
        self.fc = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.block(self.stem(x)).mean((2, 3)))


def own(**arguments: Any) -> AttachedExits:
    return attach(5, backbone=f"{Own.__module__}.Own", exits=("stem",), input_size=SIZE, **arguments)


def small_vit() -> nn.Module:
    return VisionTransformer(image_size=16, patch_size=8, num_layers=3, num_heads=2, hidden_dim=8, mlp_dim=12, num_classes=5)


def small_swin() -> nn.Module:
    sizes: Any = {"patch_size": [2, 2], "depths": [1, 2], "num_heads": [1, 2], "window_size": [2, 2]}
    return SwinTransformer(embed_dim=8, num_classes=5, stochastic_depth_prob=0.1, **sizes)


@pytest.mark.parametrize(
    ("network", "place"),
    [
        (Own(), "fc"),
        (ResNet(BasicBlock, [1, 1, 1, 1], num_classes=5), "fc"),
        (small_vit(), "heads.head"),
        (small_swin(), "head"),
        (nn.Sequential(nn.Flatten(), nn.Sequential(nn.Linear(768, 5))), "1.0"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else value,
)
def test_classifier_is_replaced_where_the_class_count_differs(network: nn.Module, place: str) -> None:
    size = (3, 16, 16)
    old = network.get_submodule(place)
    named = place if place == "1.0" else None
    attach_exits(network, 1, 5, input_size=size, classifier=named)
    assert network.get_submodule(place) is old
    with pytest.raises(ValueError, match=r"gives 5 classes, but num_classes=\(4, 3\); reset=True starts a new classifier"):
        attach_exits(network, 1, (4, 3), input_size=size, classifier=named)
    assert network.get_submodule(place) is old
    model = attach_exits(network.eval(), 1, (4, 3), input_size=size, classifier=named, reset=True)
    new = network.get_submodule(place)
    assert isinstance(new, nn.Linear)
    assert (new.out_features, new.training, model.levels, model.num_classes) == (7, False, (4, 3), 7)
    assert model(torch.rand(2, *size)).shape == (1, 2, 7)


def test_classifier_that_is_not_found() -> None:
    layers = nn.Sequential(nn.Flatten(), nn.Linear(192, 5))
    with pytest.raises(ValueError, match=r"no linear layer in any of fc, classifier, head, heads .* name it: classifier='1'"):
        attach_exits(layers, 1, 7, input_size=SIZE, reset=True)
    with pytest.raises(ValueError, match=r"no linear layer in 'last'"):
        find_classifiers(layers, "last")
    with pytest.raises(ValueError, match="has no linear layer at all"):
        find_classifiers(nn.Flatten())
    two = nn.Sequential(nn.Flatten(), nn.Linear(192, 5), nn.Linear(5, 5))
    with pytest.raises(ValueError, match=r"for num_classes=7, Sequential: Sequential fails on .*classifier='...'"):
        attach_exits(two, 1, 7, input_size=SIZE, classifier="1", reset=True)


def test_weights_from_a_file(tmp_path: Path) -> None:
    network, x = Own().eval(), torch.rand(2, *SIZE)
    torch.save(network.state_dict(), tmp_path / "plain.pth")
    torch.save({"state_dict": network.state_dict(), "epoch": 3}, tmp_path / "nested.pth")
    safetensors.torch.save_file(network.state_dict(), tmp_path / "plain.safetensors")
    with_exits = attach_exits(network, ["stem"], 5, input_size=SIZE)
    torch.save(with_exits.state_dict(), tmp_path / "exits.pth")
    for name in ("plain.pth", "nested.pth", "plain.safetensors", "exits.pth"):
        model = own(pretrained=str(tmp_path / name)).eval()
        assert torch.equal(model(x)[-1], network(x))


def test_weights_that_do_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "seven.pth"
    seven = Own(7)
    torch.save(seven.state_dict(), path)
    with pytest.raises(ValueError, match=r"seven.pth: 7 classes, but num_classes=5; reset=True takes the weights"):
        own(pretrained=str(path))
    model = own(pretrained=str(path), reset=True)
    assert torch.equal(model.backbone.stem[0].weight, seven.stem[0].weight)  # type: ignore[index,union-attr]
    assert model.num_classes == 5
    torch.save(Own(5, width=4).state_dict(), path)
    with pytest.raises(ValueError, match=r"seven.pth does not fit .*Own: size mismatch for stem.0.weight"):
        own(pretrained=str(path))
    path.write_bytes(b"no weights")
    with pytest.raises(ValueError, match=r"seven.pth is not a file of weights"):
        own(pretrained=str(path))
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match=r"seven.pth does not hold a state dict"):
        own(pretrained=str(path))
    with pytest.raises(FileNotFoundError, match=r"there are no weights at .*none.pth"):
        own(pretrained=str(tmp_path / "none.pth"))
    with pytest.raises(ValueError, match=r"there are no weights to download for .*Own"):
        own(pretrained=True)


def test_named_backbones_keep_their_normalisation_and_take_grey_images() -> None:
    arguments: Any = {"backbone": "torchvision:shufflenet_v2_x0_5", "exits": 3}
    model = attach_exits("torchvision:shufflenet_v2_x0_5", exits=3, num_classes=5, input_size=(3, 32, 32))
    assert model.exits == ("stage2.2", "stage4.0")
    assert model.mean.tolist() == pytest.approx([0.485, 0.456, 0.406])
    assert model.std.tolist() == pytest.approx([0.229, 0.224, 0.225])
    assert model.config["arguments"]["exits"] == model.exits
    grey = create_model("attach", 5, in_channels=1, **arguments)
    assert grey.mean.tolist() == [0]
    assert grey(torch.rand(2, 1, 32, 32)).shape == (3, 2, 5)
    with pytest.raises(ValueError, match="stages and custom heads need a network, not its name 'torchvision:resnet18'"):
        attach_exits("torchvision:resnet18", head=LinearHead)


def test_timm_backbones() -> None:
    pytest.importorskip("timm")
    vit = build_backbone("timm:deit_tiny_patch16_224", 5, (3, 32, 32), options={"depth": 2})
    model = attach_exits(vit.network, exits=["blocks.0"], num_classes=5, input_size=(3, 32, 32), head="class_token")
    assert model.cuts[0].shape == (5, 192)  # 2 x 2 patches and the class token
    assert model.eval()(torch.rand(2, 3, 32, 32)).shape == (2, 2, 5)
    assert vit.mean == (0.485, 0.456, 0.406)
    with pytest.raises(ValueError, match="timm has no model 'resnet5000'"):
        build_backbone("timm:resnet5000", 5)
