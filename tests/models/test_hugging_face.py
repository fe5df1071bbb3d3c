"""Classifiers of Hugging Face get exits, as modules and by name; they are saved and loaded without network and remote code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from anytime.model import create_model
from anytime.models.surgery.attach.build import attach_exits
from anytime.models.surgery.attach.model import AttachedExits
from anytime.models.surgery.backbones import build_backbone
from anytime.saving import read_model

transformers = pytest.importorskip("transformers")
SIZE = (3, 32, 32)
VIT: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 16}
VIT |= {"patch_size": 16}
RESNET: dict[str, Any] = {"embedding_size": 4, "hidden_sizes": [8, 8, 16, 16], "depths": [1, 2, 1, 1], "layer_type": "basic"}


@pytest.mark.parametrize(("kind", "options"), [("vit", VIT), ("resnet", RESNET)])
def test_a_module_with_logits(kind: str, options: dict[str, Any]) -> None:
    network = build_backbone(f"hf:{kind}", 5, SIZE, options=options).network.eval()
    model = attach_exits(network, exits=2, input_size=SIZE).eval()
    x = torch.rand(2, *SIZE)
    with torch.inference_mode():
        assert torch.equal(model(x)[-1], network(x).logits)
        torch.testing.assert_close(torch.stack(list(model.stream(x))), model(x))


def test_a_name_is_saved_as_its_type_and_built_again_without_its_repository(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    transformers.ViTConfig(**VIT, image_size=32).save_pretrained(repository)
    stored = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.5, 0.5], "do_normalize": True}
    (repository / "preprocessor_config.json").write_text(json.dumps(stored))
    model = create_model("attach", 5, backbone=f"hf:{repository}", exits=2, input_size=SIZE).eval()
    assert isinstance(model, AttachedExits)
    assert model.mean.tolist() == pytest.approx([0.1, 0.2, 0.3])
    model.save(tmp_path / "saved")
    arguments = model.config["arguments"]
    assert arguments["backbone"] == "hf:vit"
    assert arguments["options"]["hidden_size"] == 16
    for file in repository.iterdir():
        file.unlink()
    x = torch.rand(2, *SIZE)
    assert torch.equal(read_model(tmp_path / "saved")(x), model(x))


def test_a_saved_model_reads_no_repository(tmp_path: Path) -> None:
    model = create_model("attach", 5, backbone="hf:vit", exits=2, input_size=SIZE, options=VIT)
    model.save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["arguments"]["backbone"] = "hf:someone/network"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        ValueError, match="a saved model names the type of its network, such as hf:vit, but this one names hf:someone"
    ):
        read_model(tmp_path)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("hf:bert", {}, "hf:bert cannot be built.*transformers has no classifier of images of the type 'bert'"),
        ("hf:vit", {"num_labels": 3}, "options cannot hold num_labels: use num_classes and input_size"),
    ],
)
def test_refusals(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_backbone(name, 5, SIZE, options=options)
