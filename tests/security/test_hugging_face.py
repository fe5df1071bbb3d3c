"""What a file may set for a network of transformers: settings that its type declares, with plain values, and nothing else."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from anytime.cli import main
from anytime.model import create_model
from anytime.models.surgery.backbones import build_backbone
from anytime.models.surgery.hugging_face import WRAPPER, _check_options, _declared, _derived, settled
from anytime.saving import CONFIG, read_model
from anytime.support.trust import UntrustedName, names_from

transformers = pytest.importorskip("transformers")
hub_kernels = pytest.importorskip("transformers.integrations.hub_kernels")
SIZE = (3, 32, 32)
VIT: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
VIT |= {"patch_size": 16}
TYPES = [
    (name, kind)
    for name, kind in transformers.CONFIG_MAPPING.items()
    if kind in transformers.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING and name != WRAPPER
]


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels are refused before transformers asks for one."""

    def no_kernel(*arguments: Any, **_: Any) -> None:
        raise AssertionError(f"a kernel was asked for: {arguments}")

    monkeypatch.setattr(hub_kernels, "is_kernels_available", lambda *_, **__: True)
    monkeypatch.setattr(hub_kernels, "get_kernel_hub", no_kernel, raising=False)


REDIRECTED = {"_attn_implementation_internal": "sdpa"}
SET: dict[str, tuple[str, dict[str, Any]]] = {
    "attention that is redirected": ("vit", {"attribute_map": REDIRECTED, "sdpa": "evil/flash-attn2@rev"}),
    "attention of another package": ("vit", {"attn_implementation": "flash_attention_2"}),
    "a map of attributes": ("vit", {"attribute_map": {}}),
    "a map that is a number": ("vit", {"attribute_map": 5}),
    "a class": ("vit", {"__class__": "x"}),
    "a dictionary": ("vit", {"__dict__": {"a": 1}}),
    "code": ("vit", {"auto_map": {"AutoConfig": "evil--x.X"}}),
    "a private name": ("vit", {"_name_or_path": "evil/x"}),
    "a type of numbers": ("vit", {"dtype": "load"}),
    "settings of layers": ("vit", {"per_layer_config": {"0": {"attn_implementation": "evil/x"}}}),
    "quantization": ("vit", {"quantization_config": {"quant_method": "x"}}),
    "a setting of another type": ("vit", {"embed_dim": 8}),
    "a mapping": ("vit", {"hidden_size": {"a": 1}}),
    "a repository as a setting": ("vit", {"hidden_act": "evil/kernel"}),
    "a mapping in a list": ("resnet", {"depths": [1, {"a": 1}]}),
    "attention of a part": ("clip", {"vision_config": {"attn_implementation": "eager"}}),
    "attributes of a part": ("clip", {"vision_config": {"attribute_map": REDIRECTED, "sdpa": "evil/x"}}),
    "another type of a part": ("clip", {"vision_config": {"model_type": WRAPPER, "architecture": "hf-hub:evil/x"}}),
    "a part of any type": ("shieldgemma2", {"vision_config": {"model_type": WRAPPER, "architecture": "hf-hub:evil/x"}}),
    "a known part of any type": ("shieldgemma2", {"text_config": {"model_type": "bert"}}),
}


@pytest.mark.parametrize("kind", SET)
def test_a_file_sets_only_what_its_type_declares(kind: str) -> None:
    name, options = SET[kind]
    with names_from("config.json"), pytest.raises(UntrustedName, match=r"the options hold .* may download and run"):
        build_backbone(f"hf:{name}", 5, SIZE, options=options)


@pytest.mark.parametrize("name", ["mra", "bert", "detr", "timm_backbone", "encoder-decoder", WRAPPER])
def test_other_types_are_not_even_configured(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transformers.AutoConfig, "for_model", lambda *_, **__: pytest.fail("it was configured"))
    with names_from("config.json"), pytest.raises(ValueError, match=r"no classifier of images|use timm:NAME"):
        build_backbone(f"hf:{name}", 5, SIZE, options={"backbone": "evil/x", "use_timm_backbone": True})


@pytest.mark.parametrize(("name", "kind"), TYPES, ids=lambda value: value if isinstance(value, str) else "")
def test_no_type_declares_what_leads_elsewhere(name: str, kind: Any) -> None:
    """For any version of transformers; and what each type says by default is allowed."""
    settings = _declared(kind) | _derived(kind)
    words = ("map", "implementation", "kernel", "path", "file", "url", "repo", "revision", "pretrained", "backbone", "remote")
    words += ("architecture", "model_args", "quantization", "dtype", "plan")
    harmless = {"kernel_size", "kernel_sizes", "conv_kernel_size", "kernel_qkv", "stem_kernel_size", "drop_path_rate"}
    harmless |= {"stage_kernel_size", "conv_layer_kernel_sizes", "pretrained_window_sizes"}
    assert {key for key in settings - harmless if any(word in key for word in words)} == set()
    written = {key: value for key, value in kind().to_diff_dict().items() if key in settings - kind.sub_configs.keys()}
    with names_from("config.json"):
        _check_options(kind, written)


VISION = VIT | {"image_size": 32}
SAVED: dict[str, tuple[str, dict[str, Any]]] = {
    "vit with attention by name": ("vit", VIT | {"attn_implementation": "eager"}),
    "clip": ("clip", {"vision_config": VISION}),
    "siglip with texts": ("siglip", {"vision_config": VISION, "text_config": {"vocab_size": 256_000}}),
}


@pytest.mark.parametrize("kind", SAVED)
def test_what_is_saved_loads_without_trust(kind: str, tmp_path: Path) -> None:
    name, options = SAVED[kind]
    model = create_model("attach", 3, backbone=f"hf:{name}", exits=1, input_size=SIZE, options=options).eval()
    model.save(tmp_path)
    x = torch.rand(2, *SIZE)
    assert torch.equal(read_model(tmp_path)(x), model(x))
    saved = json.loads((tmp_path / CONFIG).read_text())["arguments"]["options"]
    assert "text_config" not in saved


def test_what_earlier_versions_saved_is_allowed() -> None:
    """They saved what a type derives from its settings as well."""
    options: dict[str, Any] = {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 1], "window_size": 4, "patch_size": 2}
    derived = {"hidden_size": 16, "num_layers": 2, "stage_names": ["stem", "stage1", "stage2"]}
    derived |= {"out_features": ["stage2"], "out_indices": [2]}
    with names_from("config.json"):
        network = build_backbone("hf:swin", 5, SIZE, options=options | derived).network
    kept = settled(network)["options"]
    assert options.items() <= kept.items()
    assert not derived.keys() & kept.keys()


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ({"model_type": "vit", "attribute_map": REDIRECTED, "sdpa": "evil/x"}, "sets _attn_implementation.* 'evil/x'"),
        ({"model_type": "shieldgemma2", "vision_config": {"model_type": WRAPPER}}, "it is a network of timm"),
    ],
)
def test_a_typed_repository_runs_no_code_either(tmp_path: Path, stored: dict[str, Any], message: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(stored))
    with pytest.raises(ValueError, match=message):
        build_backbone(f"hf:{tmp_path}", 5, SIZE)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    create_model("attach", 3, backbone="hf:vit", exits=1, input_size=SIZE, options=VIT).save(folder)
    return folder


@pytest.mark.parametrize("wrong", [{"hidden_size": "x"}, {"hidden_act": "nope"}, {"num_attention_heads": 0}, {"nope": 1}])
def test_wrong_values_are_one_sentence(
    wrong: dict[str, Any], saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(shutil.copytree(saved, tmp_path / "folder").parent)
    config = json.loads(Path("folder", CONFIG).read_text())
    config["arguments"]["options"] |= wrong
    Path("folder", CONFIG).write_text(json.dumps(config))
    assert main(["predict", "folder", "image.png"]) in (1, 2)
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"folder/{CONFIG}" in error
    assert "hidden_dropout_prob" not in error
    assert len(error) < 500


def test_a_missing_package_is_named_with_the_file(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match=r"config\.json describes a model that cannot be built: hf:vit needs transformers"):
        read_model(saved)


def test_an_error_quotes_the_option_that_it_is_about() -> None:
    with pytest.raises(ValueError, match=r"cannot be built for \(3, 32, 32\) images with nope='xx.*: .*nope") as caught:
        build_backbone("torchvision:resnet18", 5, SIZE, options={"width_per_group": 64, "nope": "x" * 1000})
    assert len(str(caught.value)) < 400
    assert "width_per_group" not in str(caught.value)
