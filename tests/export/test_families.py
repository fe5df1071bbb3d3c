"""Every registered model and attached networks, at test size, as ONNX graphs."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
import torch

import anytime
import anytime.models

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
SMALL: dict[str, Any] = {}
for _file in sorted((Path(__file__).parents[1] / "models").glob("test_*.py")):
    for _node in ast.parse(_file.read_text(encoding="utf-8")).body:
        if isinstance(_node, ast.Assign) and ast.unparse(_node.targets[0]) == "CONTRACT_ARGUMENTS":
            SMALL |= ast.literal_eval(_node.value)
ONE_CHANNEL = {"branchynet_lenet"}


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, "dynamic"])
@pytest.mark.parametrize("name", anytime.list_models())
def test_registered_models(name: str, batch: int | str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    size = (1 if name in ONE_CHANNEL else 3, 8, 8)
    model = anytime.create_model(name, num_classes=7, in_channels=size[0], **SMALL.get(name, {})).eval()
    export = anytime.export_model(model, tmp_path / name, input_size=size, batch=batch)
    x = torch.rand(3, *size)
    expected = model(x).detach()  # a number made of a tensor with gradients is a warning, once in a process
    torch.testing.assert_close(export(x), expected, rtol=0, atol=1e-4 * max(1.0, float(expected.abs().max())))


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["torchvision:resnet18", "torchvision:mobilenet_v3_small"])
def test_attached_networks(backbone: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = anytime.create_model("attach", num_classes=7, backbone=backbone, exits=3, input_size=(3, 64, 64)).eval()
    export = anytime.export_model(model, tmp_path / "attached")
    x = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(export(x), model(x).detach(), rtol=0, atol=1e-4)
