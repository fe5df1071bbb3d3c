"""Models by name and by import path."""

from __future__ import annotations

import importlib
import inspect
import pickle
from pathlib import Path
from typing import Any

import pytest

import anytime.models  # noqa: F401, registers all models
from anytime import registry
from anytime.model import AnytimeModel, create_model
from anytime.models.ann.imagenet import ANNResNet
from anytime.registry import find_factory, list_models, register_model, variant
from anytime.saving import read_model
from anytime.support.names import import_object, nearest

MODULE = """
import torch
from anytime.model import AnytimeModel
from anytime.registry import register_model

class Mine(AnytimeModel):
    num_steps = 1
    def __init__(self, num_classes=10, in_channels=3, *, depth=2, **more):
        super().__init__(num_classes, in_channels)
        self.depth, self.more = depth, more
        self.head = torch.nn.Linear(depth, num_classes)

@register_model
def my_model(num_classes=10, depth=3):
    return Mine(num_classes, depth=depth)

def plain(num_classes=10):
    return Mine(num_classes)

@register_model
def forgets(num_classes=10, *layers):
    Mine(num_classes)

@register_model
def layered(num_classes=10, *layers):
    return Mine(num_classes)

value = 3
"""

VARIANTS = """
from base_of_another import Mine
from anytime.models.ann.imagenet import ANNResNet
from anytime.registry import variant

blue = variant(Mine, "blue", "A blue network.", fixed={"depth": 4}, in_channels=1)
small_ann = variant(ANNResNet, "small_ann", "A narrow ANN.", width=4)
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """The name of an importable module of a user; what it registers is forgotten afterwards."""
    name = f"module_of_{request.node.name}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry, "_FACTORIES", dict(registry._FACTORIES))
    return name


def test_list_models() -> None:
    assert {"anytimenet", "anytimenet_baseline"} <= set(list_models())
    assert list_models() == sorted(list_models())
    assert list_models("anytimenet*") == ["anytimenet", "anytimenet_baseline"]
    assert list_models("nothing*") == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("anytimnet", "unknown model 'anytimnet'; did you mean 'anytimenet'?"),
        ("zzz", "unknown model 'zzz'; valid: "),
        ("no.such.Model", "model 'no.such.Model' cannot be imported: No module named 'no'"),
        ("anytime.model.Modle", "cannot be imported: anytime has no class or function 'Modle' in anytime.model"),
        (".Model", "model '.Model' cannot be imported"),
        ("..Model", "model '..Model' cannot be imported"),
        ("model.", "model 'model.' cannot be imported"),
    ],
)
def test_unknown_model(name: str, message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011, the message is compared below
        create_model(name)
    assert message in str(caught.value)


@pytest.mark.parametrize("name", ["os.system", "torch.hub.load", "torch.nn.Linear", "builtins.dict", "math.pi"])
def test_only_models_are_called(name: str) -> None:
    with pytest.raises(ValueError, match="neither a subclass of AnytimeModel nor a function marked @register_model"):
        create_model(name)


def test_unknown_argument() -> None:
    with pytest.raises(ValueError, match=r"model 'anytimenet' has no argument 'widht'; did you mean 'width'\?"):
        create_model("anytimenet", widht=4)
    with pytest.raises(ValueError, match=r"no argument 'xyz'; valid: num_classes, in_channels, blocks, scheme"):
        create_model("anytimenet", xyz=4)
    with pytest.raises(ValueError, match="no argument 'scheme'"):
        create_model("anytimenet_baseline", scheme=(1, 4, 3))


def test_config_keeps_name_and_all_arguments() -> None:
    model = create_model("anytimenet_baseline", num_classes=4, width=2, blocks=(1, 1))
    arguments = {"num_classes": 4, "in_channels": 3, "blocks": (1, 1), "width": 2, "eps": 1e-3}
    assert model.config == {"model": "anytimenet_baseline", "arguments": arguments}
    again = create_model(model.config["model"], **model.config["arguments"])
    assert again.config == model.config


def test_user_class_by_import_path(module: str, tmp_path: Path) -> None:
    model = create_model(f"{module}.Mine", num_classes=6, depth=5, colour="blue")
    assert isinstance(model, AnytimeModel)
    assert (model.num_classes, model.depth, model.more) == (6, 5, {"colour": "blue"})
    arguments = {"num_classes": 6, "in_channels": 3, "depth": 5, "colour": "blue"}
    assert model.config == {"model": f"{module}.Mine", "arguments": arguments}
    model.save(tmp_path / "saved")
    loaded = read_model(tmp_path / "saved")
    assert type(loaded) is type(model)
    assert loaded.config == model.config


def test_user_function(module: str) -> None:
    by_path = create_model(f"{module}.my_model", depth=4)
    assert "my_model" in list_models()
    by_name = create_model("my_model", depth=4)
    assert by_name.config["arguments"] == by_path.config["arguments"] == {"num_classes": 10, "depth": 4}
    assert find_factory("my_model") is find_factory(f"{module}.my_model")
    with pytest.raises(ValueError, match=rf"model '{module}\.forgets' must return an AnytimeModel, got a NoneType"):
        create_model(f"{module}.forgets")
    for name in ("plain", "value"):
        with pytest.raises(ValueError, match=rf"{name}' is neither a subclass .* marked @register_model"):
            create_model(f"{module}.{name}")


def test_a_name_is_registered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_FACTORIES", dict(registry._FACTORIES))

    def anytimenet(num_classes: int = 10) -> AnytimeModel:
        raise NotImplementedError

    with pytest.raises(ValueError, match=r"'anytimenet' is registered already, by anytime.models.anytimenet"):
        register_model(anytimenet)


def test_nearest() -> None:
    assert nearest("cosin", ["cosine", "steps"]) == "; did you mean 'cosine'?"
    assert nearest("qqq", iter(["cosine", "steps", "cosine"])) == "; valid: cosine, steps"


class Base(AnytimeModel):
    """A network of some depth.

    Args:
        num_classes: K.
        in_channels: Channels.
        depth: Number of blocks,
            counted as in the paper.
        width: Channels of a block.

    Source: nowhere.
    """

    num_steps = 1

    def __init__(self, num_classes: int = 10, in_channels: int = 3, depth: int = 18, width: int = 64) -> None:
        super().__init__(num_classes, in_channels)
        self.depth, self.width = depth, width


def test_variant_derives_signature_and_help(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anytime.registry._FACTORIES", {})
    deep = variant(Base, "deep", "A deep network.", fixed={"depth": 34}, width=8)
    assert list(inspect.signature(deep).parameters) == ["num_classes", "in_channels", "width"]
    assert inspect.signature(deep).parameters["width"].default == 8
    assert inspect.signature(deep).parameters["width"].annotation is int
    assert deep.__doc__ == (
        "A deep network.\n\nArgs:\n    num_classes: K.\n    in_channels: Channels.\n    width: Channels of a block."
    )
    model = create_model("deep", 5, in_channels=1)
    assert (model.num_classes, model.in_channels, model.depth, model.width) == (5, 1, 34, 8)  # type: ignore[attr-defined]
    assert model.config == {"model": "deep", "arguments": {"num_classes": 5, "in_channels": 1, "width": 8}}
    assert deep(7).num_classes == 7
    with pytest.raises(ValueError, match="has no argument 'dept'; did you mean 'depth'"):
        variant(Base, "wrong", "", fixed={"dept": 1})


def test_a_class_that_is_defined_again_replaces_the_earlier_one() -> None:
    for steps in range(1, 9):
        again = type("Again", (Base,), {"__module__": __name__, "__qualname__": "Again", "num_steps": steps})
        assert create_model(f"{__name__}.Again").num_steps == steps
        assert find_factory(f"{__name__}.Again") is again


def test_variant_replaces_no_other_model() -> None:
    with pytest.raises(ValueError, match="model 'ann_resnet50' is registered already"):
        variant(Base, "ann_resnet50", "Another network.")
    with pytest.raises(ValueError, match="model 'attach' is registered already"):
        variant(Base, "attach", "Another network.")


def test_variants_of_bases_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The base is in another module, has no docstring, and takes `**more`."""
    monkeypatch.setattr(registry, "_FACTORIES", dict(registry._FACTORIES))
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "base_of_another.py").write_text(MODULE)
    (tmp_path / "my_variants.py").write_text(VARIANTS)
    model: Any = create_model("my_variants.blue", 6, colour="blue")
    assert (model.in_channels, model.depth, model.more) == (1, 4, {"colour": "blue"})
    assert model.config["arguments"] == {"num_classes": 6, "in_channels": 1, "colour": "blue"}
    assert create_model(model.config["model"], **model.config["arguments"]).config == model.config
    assert str(find_factory("blue").__doc__).startswith("A blue network.\n\nArgs:\n    num_classes: K, or")  # of AnytimeModel
    for name in ("blue", "small_ann"):
        factory = find_factory(name)
        assert factory.__module__ == "my_variants"
        assert import_object(f"{factory.__module__}.{name}", "model") is pickle.loads(pickle.dumps(factory)) is factory
    with pytest.raises(ValueError, match="model 'blue' has no argument 'depth'; it is fixed to 4"):
        create_model("my_variants.blue", depth=5)
    importlib.reload(importlib.import_module("my_variants"))
    assert create_model("small_ann").config["arguments"]["width"] == 4


def test_a_variant_replaces_no_variant_of_the_same_base() -> None:
    with pytest.raises(ValueError, match=r"model 'ann_resnet50' is registered already, by anytime\.models\.ann\.imagenet"):
        variant(ANNResNet, "ann_resnet50", "A narrow ANN.", width=4)
    assert find_factory("ann_resnet50").__module__ == "anytime.models.ann.imagenet"


def test_type_hints_that_cannot_be_read() -> None:
    class Unreadable(Base):
        def __init__(self, num_classes: int = 10, path: Pathh | None = None) -> None:  # type: ignore[name-defined]  # noqa: F821
            super().__init__(num_classes)

    with pytest.raises(
        ValueError, match="the type hints of Unreadable cannot be read: name 'Pathh' is not defined; import it"
    ):
        variant(Unreadable, "unreadable", "")


def test_positional_arguments_are_not_saved(module: str) -> None:
    model = create_model(f"{module}.layered", 4)
    assert model.config["arguments"] == {"num_classes": 4}
    layered = variant(find_factory("layered"), "layered_again", "")
    assert layered.__doc__ == ""
    assert list(inspect.signature(layered).parameters) == ["num_classes"]
    assert create_model("layered_again", 4).config["arguments"] == {"num_classes": 4}
