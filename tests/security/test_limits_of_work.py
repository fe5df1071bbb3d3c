"""Numbers in a saved model that would make it work for hours, and names without end: one sentence, at once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

import anytime
from anytime.cli import main
from anytime.cost import step_macs
from anytime.model import create_model
from anytime.models.surgery.attach import cut_points, saved
from anytime.models.surgery.backbones import build_backbone
from anytime.saving import CONFIG, ModelInfo
from anytime.support.limits import BeyondLimit, check_image, check_numbers, check_steps
from anytime.support.names import LISTED, nearest
from anytime.support.text import LONGEST, one_line
from anytime.support.trust import names_from

MODELS: dict[str, dict[str, Any]] = {
    "ann": {"units": 1, "width": 4},
    "anytimenet": {"blocks": (1, 1), "scheme": ((1, 1),), "width": 2},
    "boosted": {"arguments": {"blocks": (1, 1), "scheme": ((1, 1),), "width": 2}},
    "cascaded_densenet": {"layers": (1, 1), "growth": 2},
    "cascaded_resnet18": {"width": 2, "num_steps": 3},
    "eann": {"members": tuple({"model": "ann", "arguments": {"units": n, "width": 2, "period": 1}} for n in (1, 2))},
    "iresnext": {"blocks": (1, 1), "width": 8, "steps": 2, "cardinality": 2},
    "isresnext": {"blocks": (1, 1), "width": 8, "steps": 2, "cardinality": 2},
    "msdnet": {"exits": 2, "base": 1, "step": 1, "width": 2, "growth": 2, "factors": (1, 2), "head_width": 2},
    "serial_resnet18": {"width": 2},
}


def numbers(value: Any, set_value: Callable[[Any], Any]) -> list[Any]:
    """The document once for each number in it, with that number changed."""
    if isinstance(value, dict):
        return [value | {key: new} for key, item in value.items() for new in numbers(item, set_value)]
    if isinstance(value, list):
        return [[*value[:i], new, *value[i + 1 :]] for i, item in enumerate(value) for new in numbers(item, set_value)]
    return [set_value(value)] if isinstance(value, int) and not isinstance(value, bool) else []


@pytest.mark.parametrize("name", MODELS)
def test_every_number_of_every_model_is_bounded(name: str, tmp_path: Path) -> None:
    create_model(name, 3, **MODELS[name]).save(tmp_path)
    config = json.loads((tmp_path / CONFIG).read_text())
    changed = [arguments for huge in (10**9, 2**100) for arguments in numbers(config["arguments"], lambda _, n=huge: n)]
    assert len(changed) >= 4
    for arguments in changed:
        (tmp_path / CONFIG).write_text(json.dumps(config | {"arguments": arguments}))
        with pytest.raises(ValueError, match=r"more than 10,000; if you trust this file"):
            anytime.load(tmp_path)


def test_numbers_that_the_weights_explain() -> None:
    check_numbers({"num_classes": 21_841, "inner": [{"width": 9_999}]}, [torch.empty(21_841, 2)])
    with pytest.raises(BeyondLimit, match="num_classes is"):
        check_numbers({"num_classes": 21_841}, [torch.empty(0, 10**9)])  # an empty tensor of any shape costs nothing
    with pytest.raises(BeyondLimit, match="width is -1e"):
        check_numbers({"inner": [{"width": [-(10**6)]}]}, [])
    with pytest.raises(BeyondLimit, match="steps is huge"):
        check_numbers({"steps": 10**5000}, [])
    with pytest.raises(BeyondLimit, match="images of 75,000,000 values"):
        check_numbers({"members": [{"input_size": [3, 5000, 5000]}]}, [])
    with pytest.raises(BeyondLimit):
        check_image((3, 5000, 5000))
    with pytest.raises(BeyondLimit, match="1,001 steps, more than 1,000"):
        check_steps(1001)


@pytest.mark.parametrize("size", [(3, 1024, 2048), (3, 2048, 4096), (4, 2160, 2160)])
def test_large_maps_need_no_consent(size: tuple[int, int, int], tmp_path: Path) -> None:
    model = create_model("anytimenet", 3, **MODELS["anytimenet"])
    model.info = ModelInfo(input_size=size, task="dense")
    model.save(tmp_path)
    assert anytime.load(tmp_path).info.input_size == size


def test_steps_need_consent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    create_model("cascaded_resnet18", 3, width=2, in_channels=1, num_steps=3).save(tmp_path)
    config = json.loads((tmp_path / CONFIG).read_text())
    arguments = config["arguments"] | {"num_steps": 2000}
    (tmp_path / CONFIG).write_text(json.dumps(config | {"arguments": arguments}))
    assert main(["predict", str(tmp_path), "image.png"]) == 1
    assert "the network has 2,000 steps, more than 1,000; if you trust this file" in capsys.readouterr().err
    assert anytime.load(tmp_path, trust=True).num_steps == 2000


def test_large_images_need_consent(tmp_path: Path) -> None:
    model = create_model("anytimenet", 3, **MODELS["anytimenet"])
    model.info = ModelInfo(input_size=(3, 20_000, 20_000))
    model.save(tmp_path)
    with pytest.raises(ValueError, match=r"input_size \[3, 20000, 20000\] asks for images of 1,200,000,000 values"):
        anytime.load(tmp_path)
    assert anytime.load(tmp_path, trust=True).info.input_size == (3, 20_000, 20_000)


@pytest.fixture
def attached(tmp_path: Path) -> Path:
    model = create_model("attach", 3, backbone="torchvision:squeezenet1_1", exits=1, input_size=(3, 32, 32))
    model.save(tmp_path)
    return tmp_path


def attached_with(folder: Path, **arguments: Any) -> None:
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | {"arguments": config["arguments"] | arguments}))


def test_weights_are_compared_before_a_backbone_runs(attached: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cut_points, "example_images", lambda *_: pytest.fail("the backbone ran"))
    attached_with(attached, backbone="torchvision:squeezenet1_0")
    with pytest.raises(ValueError, match=r"its backbone has features\.0\.weight of shape \[96, 3, 7, 7\], but the weights"):
        anytime.load(attached)


def test_the_work_of_one_image_needs_consent(attached: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    macs = step_macs(anytime.load(attached), (3, 32, 32))[-1]
    monkeypatch.setattr(saved, "MOST_MACS", macs)
    anytime.load(attached)
    monkeypatch.setattr(saved, "MOST_MACS", macs - 1)
    with pytest.raises(ValueError, match=r"3x32x32 costs SqueezeNet .* multiply-adds, more than .* if you trust"):
        anytime.load(attached)
    anytime.load(attached, trust=True)
    monkeypatch.undo()
    monkeypatch.setattr(saved, "MOST_ELEMENTS", 3 * 32 * 32 - 1)
    with pytest.raises(
        ValueError, match=r"costs SqueezeNet a tensor of [\d,]+ values, more than 3,071; if you trust this file"
    ):
        anytime.load(attached)


@pytest.mark.parametrize("fused", [True, False])
def test_attention_is_refused_before_it_is_computed(fused: bool) -> None:
    class Attention(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            q = x.flatten(1).expand(3_000_000, -1).unflatten(1, (1, -1)).transpose(0, 1)
            h = functional.scaled_dot_product_attention(q, q, q) if fused else q @ q.transpose(1, 2)
            return pytest.fail("it was computed") or h

    with pytest.raises(BeyondLimit, match="one image of 3x2x2 costs Attention"):
        saved.check_work(Attention(), (3, 2, 2))


def test_what_fails_is_explained_later() -> None:
    saved.check_work(nn.Linear(4, 4), (3, 5, 5))


WRONG_TYPES: dict[str, dict[str, Any]] = {
    "a number as backbone": {"backbone": 3},
    "a list as backbone": {"backbone": ["torchvision:resnet18"]},
    "null as backbone": {"backbone": None},
    "text as options": {"options": "width=2"},
    "a number as exits": {"exits": 1.5},
    "a mapping as input size": {"input_size": {"a": 1}},
}


@pytest.mark.parametrize("kind", WRONG_TYPES)
def test_wrong_types(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    create_model("anytimenet", 3, **MODELS["anytimenet"]).save(tmp_path)
    config = json.loads((tmp_path / CONFIG).read_text())
    arguments = {
        "num_classes": 3,
        "backbone": "torchvision:squeezenet1_1",
        "exits": 1,
        "input_size": [3, 32, 32],
    } | WRONG_TYPES[kind]
    (tmp_path / CONFIG).write_text(json.dumps(config | {"model": "attach", "arguments": arguments}))
    assert main(["predict", str(tmp_path), "image.png"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "describes a model that cannot be built" in error


@pytest.mark.parametrize("name", ["timm:qqq", "torchvision:qqq", "torchvision:" + "resnet" * 20_000])
def test_an_unknown_name_does_not_list_them_all(name: str) -> None:
    if name.startswith("timm"):
        pytest.importorskip("timm")
    with pytest.raises(ValueError, match="more") as caught, names_from("config.json"):
        build_backbone(name, 3)
    assert len(one_line(caught.value)) <= LONGEST + 5


def test_nearest_lists_some() -> None:
    assert nearest("zzz", [f"a{i}" for i in range(LISTED)]).endswith(f", a{LISTED - 1}")
    assert nearest("zzz", [f"a{i}" for i in range(3000)]).endswith(f", a{LISTED - 1} and 2,960 more")
    assert nearest("a" * 10**6, ["a" * 10**5]).startswith("; valid: ")
