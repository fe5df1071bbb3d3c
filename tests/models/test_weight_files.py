"""Files of weights as people have them: wrapped, with prefixes, from before batch counts, damaged."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from anytime.models.surgery.backbones import build_backbone
from anytime.models.surgery.weights import read_weights

SIZE = (3, 8, 8)


class Plain(nn.Module):
    def __init__(self, num_classes: int = 5) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6))
        self.fc = nn.Linear(6, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.stem(x).mean((2, 3)))


class Wrapped(nn.Module):
    """A network whose own names all begin with `model.`."""

    def __init__(self, num_classes: int = 5) -> None:
        super().__init__()
        self.model = Plain(num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


def load(path: Path, kind: type[nn.Module] = Plain) -> nn.Module:
    return build_backbone(f"{__name__}.{kind.__name__}", 5, SIZE, path).network.eval()


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    network = Plain().train()
    network(torch.rand(4, *SIZE))
    return network.eval()


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in state.items()}


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "model.", "module._orig_mod.", "model._orig_mod.module."])
@pytest.mark.parametrize("under", [None, "state_dict", "model"])
@pytest.mark.parametrize("counted", [True, False])
def test_wrapped_weights_load(network: nn.Module, tmp_path: Path, prefix: str, under: str | None, counted: bool) -> None:
    state = {name: value for name, value in network.state_dict().items() if counted or "tracked" not in name}
    stored = prefixed(state, prefix)
    torch.save({under: stored, "epoch": 3} if under else stored, tmp_path / "weights.pth")
    x = torch.rand(2, *SIZE)
    assert torch.equal(load(tmp_path / "weights.pth")(x), network(x))


def test_averaged_weights_load(network: nn.Module, tmp_path: Path) -> None:
    torch.save(AveragedModel(network).state_dict(), tmp_path / "weights.pth")
    x = torch.rand(2, *SIZE)
    assert torch.equal(load(tmp_path / "weights.pth")(x), network(x))


@pytest.mark.parametrize("prefix", ["model.", "module.model.", "model.model."])
def test_a_networks_own_prefix_stays(network: nn.Module, tmp_path: Path, prefix: str) -> None:
    safetensors.torch.save_file(prefixed(network.state_dict(), prefix), tmp_path / "weights.safetensors")
    x = torch.rand(2, *SIZE)
    assert torch.equal(load(tmp_path / "weights.safetensors", Wrapped)(x), network(x))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_weights_that_are_not_numbers(network: nn.Module, tmp_path: Path, value: float, suffix: str) -> None:
    state = network.state_dict()
    state["fc.bias"][1] = value
    path = tmp_path / f"weights.{suffix}"
    torch.save(state, path) if suffix == "pth" else safetensors.torch.save_file(state, path)
    with pytest.raises(ValueError, match=r"weights\.\w+ cannot be used: fc\.bias holds NaN or infinity"):
        load(path)


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
@pytest.mark.parametrize("share", [0.2, 0.6, 0.95])
def test_truncated_files(network: nn.Module, tmp_path: Path, kind: str, share: float) -> None:
    path = tmp_path / f"weights.{'safetensors' if kind == 'safetensors' else 'pth'}"
    if kind == "safetensors":
        safetensors.torch.save_file(network.state_dict(), path)
    else:
        torch.save(network.state_dict(), path, _use_new_zipfile_serialization=kind == "zip")
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(ValueError, match=f"{re.escape(str(path))} is truncated or damaged: ") as caught:
        load(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("part", ["fc.bias", "stem.0.weight"])
def test_a_changed_byte_is_found(network: nn.Module, tmp_path: Path, part: str) -> None:
    path = tmp_path / "weights.pt"
    torch.save(network.state_dict(), path)
    data = bytearray(path.read_bytes())
    at = data.index(network.state_dict()[part].numpy().tobytes())
    data[at] ^= 1  # the last bit of a fraction: a finite weight
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"weights\.pt is truncated or damaged: the checksum of weights/data/\d+ differs"):
        load(path)


@pytest.mark.parametrize("suffix", ["bin", "pth", "safetensors", "weights"])
@pytest.mark.parametrize("kind", ["safetensors", "zip", "legacy"])
def test_the_content_tells_the_format(network: nn.Module, tmp_path: Path, suffix: str, kind: str) -> None:
    path = tmp_path / f"weights.{suffix}"
    if kind == "safetensors":
        safetensors.torch.save_file(network.state_dict(), path)
    else:
        torch.save(network.state_dict(), path, _use_new_zipfile_serialization=kind == "zip")
    x = torch.rand(2, *SIZE)
    assert torch.equal(load(path)(x), network(x))


@pytest.mark.parametrize("stored", ["network", "arguments"])
def test_pickled_objects(network: nn.Module, tmp_path: Path, stored: str) -> None:
    whole: Any = network if stored == "network" else {"state_dict": network.state_dict(), "args": argparse.Namespace(lr=1)}
    torch.save(whole, tmp_path / "weights.pth")
    named = "Plain" if stored == "network" else r"argparse\.Namespace"
    with pytest.raises(ValueError, match=rf"weights\.pth holds pickled objects \(.*{named}\), which could run code"):
        load(tmp_path / "weights.pth")


@pytest.mark.parametrize("data", [b"", b"no weights", b"\x80\x02}q\x00(U\x01aK\x01u.", bytes(range(256))])
def test_other_files(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=rf"{re.escape(str(path))} (is|does not hold)"):
        read_weights(path)
