"""Saving, loading and sharing models."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

import anytime.models
from anytime.model import AnytimeModel, create_model
from anytime.saving import CONFIG, WEIGHTS, ModelInfo, read_config, read_model
from anytime.support.trust import UntrustedName


def small(**arguments: Any) -> AnytimeModel:
    defaults = {"blocks": (2, 1, 2), "scheme": ((1, 1, 1), (1, 0, 1)), "width": 2, "num_classes": 3}
    return create_model("anytimenet", **defaults | arguments)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = small()
    model.info = ModelInfo(data="digits", class_names=("null", "eins", "zwei – drei"))
    model.set_normalization([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    model.save(tmp_path / "model")
    return tmp_path / "model"


def edit(directory: Path, **changes: Any) -> None:
    path = directory / CONFIG
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))


def replace_weights(directory: Path, data: bytes) -> None:
    """With the right checksum, so that only the reader of the format can refuse them."""
    (directory / WEIGHTS).write_bytes(data)
    edit(directory, sha256=hashlib.sha256(data).hexdigest())


def test_round_trip_is_bit_equal(tmp_path: Path) -> None:
    model = small(num_classes=4, eps=1e-4)
    for tensor in model.state_dict().values():
        tensor.normal_()
    model.std.abs_()
    model.info = ModelInfo(class_names=("ä", "b", "c", "d"), other={"accuracy": [0.5, 0.75]})
    model.save(tmp_path)
    loaded = read_model(tmp_path)
    assert type(loaded) is type(model)
    assert not loaded.training
    assert loaded.info == model.info
    assert loaded.config["arguments"]["eps"] == 1e-4
    state = model.state_dict()
    assert state.keys() == loaded.state_dict().keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.state_dict().items())
    loaded.save(tmp_path / "again")
    for name in (WEIGHTS, CONFIG):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / name).read_bytes()
    assert sorted(os.listdir(tmp_path / "again")) == [CONFIG, WEIGHTS]


def test_half_precision_and_channels_last_weights(tmp_path: Path) -> None:
    model = small().half().to(memory_format=torch.channels_last)
    model.save(tmp_path)
    loaded = read_model(tmp_path)
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert all(torch.equal(loaded.state_dict()[name], t.float()) for name, t in model.state_dict().items())


TIED = """
import torch
from anytime.model import AnytimeModel

class Tied(AnytimeModel):
    num_steps = 2
    def __init__(self, num_classes=10):
        super().__init__(num_classes)
        self.first = torch.nn.Linear(3, num_classes)
        self.second = torch.nn.Linear(3, num_classes)
        self.second.weight = self.first.weight
"""


def test_tied_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tied_module.py").write_text(TIED)
    monkeypatch.syspath_prepend(tmp_path)
    model = create_model("tied_module.Tied")
    model.save(tmp_path / "model")
    loaded = read_model(tmp_path / "model")
    assert loaded.get_submodule("first").weight is loaded.get_submodule("second").weight
    assert all(torch.equal(loaded.state_dict()[name], t) for name, t in model.state_dict().items())


def test_saving_again_replaces(saved: Path) -> None:
    model = small(num_classes=5)
    model.save(saved)
    assert read_model(saved).num_classes == 5
    assert sorted(os.listdir(saved)) == [CONFIG, WEIGHTS]


def test_what_cannot_be_written_leaves_the_old_model(saved: Path) -> None:
    model = small(num_classes=5)
    model.info.other = {"bad": object()}
    with pytest.raises(TypeError, match="object"):
        model.save(saved)
    assert read_model(saved).num_classes == 3


def test_numbers_of_numpy_are_saved_as_pythons(tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"widths": [np.int64(4), 8], "head_widths": (np.int16(4),), "scale": np.float32(0.5)}
    model = create_model("fast", np.int64(5), in_channels=np.uint8(1), **arguments)  # type: ignore[arg-type]
    model.save(tmp_path / "saved")
    found = read_model(tmp_path / "saved")
    kept = found.config["arguments"]
    assert kept == kept | {"num_classes": 5, "in_channels": 1, "widths": [4, 8], "head_widths": [4], "scale": 0.5}


def test_what_no_file_can_hold_is_refused_before_a_training(tmp_path: Path) -> None:
    model = create_model("fast", widths=(4, 4), head_widths=(4,), scale=torch.tensor(0.5))
    with pytest.raises(ValueError, match="scale of this fast cannot be saved: Object of type Tensor"):
        model.save(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_what_a_file_would_change_is_refused(tmp_path: Path) -> None:
    model = create_model("anytimenet", width=4, blocks={1: 1, 2: 2}, scheme=None)
    with pytest.raises(
        ValueError, match=r"blocks of this anytimenet cannot be saved: a file would give back {'1': 1, '2': 2} for"
    ):
        model.save(tmp_path / "saved")


def test_model_built_without_create_model_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"AnytimeModel was built without create_model.*package\.module\.Class"):
        AnytimeModel().save(tmp_path)


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_missing_file(saved: Path, name: str) -> None:
    (saved / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"{saved} holds no trained model: {name} is missing"):
        read_model(saved)


def test_missing_directory(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere holds no trained model"):
        read_model(tmp_path / "nowhere")


def test_truncated_weights(saved: Path) -> None:
    data = (saved / WEIGHTS).read_bytes()
    (saved / WEIGHTS).write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=rf"{saved / WEIGHTS} is damaged: SHA-256"):
        read_model(saved)


def test_every_kind_of_flipped_byte_is_noticed(saved: Path) -> None:
    data = (saved / WEIGHTS).read_bytes()
    for position in (0, 20, len(data) // 2, len(data) - 1):
        (saved / WEIGHTS).write_bytes(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
        with pytest.raises(ValueError, match=rf"{saved / WEIGHTS} is damaged: SHA-256 is [0-9a-f]{{12}}"):
            read_model(saved)


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_pickles_are_refused_and_never_executed(saved: Path, tmp_path: Path) -> None:
    exploded = tmp_path / "exploded"
    bomb = pickle.dumps(Bomb(exploded))
    (saved / WEIGHTS).write_bytes(bomb)
    with pytest.raises(ValueError, match="SHA-256"):
        read_model(saved)
    replace_weights(saved, bomb)
    with pytest.raises(ValueError, match=rf"{saved / WEIGHTS} is damaged"):
        read_model(saved)
    (saved / WEIGHTS).rename(saved / "pytorch_model.bin")
    for load in (read_model, AnytimeModel.from_pretrained):
        with pytest.raises(FileNotFoundError, match=WEIGHTS):
            load(saved)
    assert not exploded.exists()
    pickle.loads(bomb)
    assert exploded.exists(), "the test itself: unpickling would have been noticed"


@pytest.mark.parametrize("text", ["", "{", "[1", "\xff"])
def test_damaged_config(saved: Path, text: str) -> None:
    (saved / CONFIG).write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=rf"{saved / CONFIG} is damaged"):
        read_model(saved)


@pytest.mark.parametrize(
    ("text", "found"), [("[]", "None"), ("{}", "None"), ('{"format": 2}', "2"), ('{"format": "1"}', "'1'")]
)
def test_config_of_another_format(saved: Path, text: str, found: str) -> None:
    (saved / CONFIG).write_text(text)
    with pytest.raises(ValueError, match=rf"{saved / CONFIG} has format {found}, .* reads format 1"):
        read_model(saved)


def test_config_lacks_keys(saved: Path) -> None:
    edit(saved, sha256=..., model=...)
    with pytest.raises(ValueError, match=rf"{saved / CONFIG} lacks model, sha256"):
        read_config(saved)


@pytest.mark.parametrize(("key", "value"), [("model", 3), ("arguments", [1]), ("sha256", None)])
def test_config_of_wrong_types(saved: Path, key: str, value: object) -> None:
    edit(saved, **{key: value})
    with pytest.raises(ValueError, match=rf"{saved / CONFIG} is damaged: {key} is"):
        read_model(saved)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "anytimnet"}, "unknown model 'anytimnet'; did you mean 'anytimenet'"),
        ({"arguments": {"widht": 4}}, "no argument 'widht'; did you mean 'width'"),
        ({"arguments": {"blocks": 4}}, "int"),
    ],
)
def test_config_of_a_model_that_cannot_be_built(saved: Path, changes: dict[str, Any], message: str) -> None:
    edit(saved, **changes)
    with pytest.raises(ValueError, match=rf"{saved / CONFIG} describes a model that cannot be built: .*{message}"):
        read_model(saved)


def test_only_models_are_called_even_with_trust(saved: Path) -> None:
    edit(saved, model="torch.hub.load", arguments={"repo_or_dir": "."})
    with pytest.raises(UntrustedName, match=r"names the model 'torch\.hub\.load': this would import the module 'torch\.hub'"):
        read_model(saved)
    with pytest.raises(ValueError, match=r"cannot be built: .*neither a subclass of AnytimeModel"):
        read_model(saved, trust=True)


def test_weights_of_another_model(saved: Path) -> None:
    arguments = read_config(saved)["arguments"]
    edit(saved, arguments=arguments | {"width": 4})
    fitting = rf"{saved / WEIGHTS} does not fit the model 'anytimenet' of {CONFIG}: size mismatch for stem.weight"
    with pytest.raises(ValueError, match=fitting):
        read_model(saved)


def test_weights_with_a_missing_tensor(saved: Path) -> None:
    tensors = safetensors.torch.load_file(saved / WEIGHTS)
    del tensors["head.bias"]
    replace_weights(saved, safetensors.torch.save(tensors))
    with pytest.raises(ValueError, match=r"does not fit .*head\.bias"):
        read_model(saved)


def test_pretrained_local_folder(tmp_path: Path) -> None:
    model = small()
    model.info.data = "digits"
    model.save_pretrained(tmp_path / "shared")
    assert sorted(os.listdir(tmp_path / "shared")) == ["README.md", CONFIG, WEIGHTS]
    for cls in (AnytimeModel, type(model)):
        for folder in (tmp_path / "shared", str(tmp_path / "shared")):
            loaded = cls.from_pretrained(folder)
            assert not loaded.training
            assert loaded.config == json.loads(json.dumps(model.config))
            assert loaded.info == model.info
            assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in model.state_dict().items())
    loaded.save_pretrained(tmp_path / "again")
    assert read_config(tmp_path / "again") == read_config(tmp_path / "shared")


def test_from_pretrained_of_a_damaged_folder(saved: Path) -> None:
    data = (saved / WEIGHTS).read_bytes()
    (saved / WEIGHTS).write_bytes(data[:-1])
    with pytest.raises(ValueError, match=rf"{saved / WEIGHTS} is damaged"):
        AnytimeModel.from_pretrained(saved)


def test_push_to_hub_uploads_three_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: dict[str, Any] = {}

    class Api:
        """Stands in for the hub: nothing leaves the machine."""

        def __init__(self, **_: Any) -> None: ...

        def create_repo(self, repo_id: str, **_: Any) -> Any:
            return SimpleNamespace(repo_id=repo_id)

        def upload_folder(self, *, repo_id: str, folder_path: Path, **_: Any) -> str:
            calls.update(repo_id=repo_id, files=sorted(os.listdir(folder_path)), model=read_model(folder_path))
            calls["card"] = (folder_path / "README.md").read_text()
            return f"https://hub/{repo_id}/commit/1"

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Api)
    model = small()
    assert model.push_to_hub("someone/anytimenet") == "https://hub/someone/anytimenet/commit/1"
    assert calls["repo_id"] == "someone/anytimenet"
    assert calls["files"] == ["README.md", CONFIG, WEIGHTS]
    assert calls["card"].startswith("---\nlibrary_name: anytime\n")
    assert "# anytimenet, " in calls["card"]
    assert f"{model.num_steps} answers" in calls["card"]
    assert all(torch.equal(calls["model"].state_dict()[name], t) for name, t in model.state_dict().items())


def test_from_pretrained_of_a_hub_name_downloads_two_files(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def snapshot_download(repo_id: str, **options: Any) -> str:
        asked.update(repo_id=repo_id, **options)
        return str(saved)

    monkeypatch.setattr("huggingface_hub.hub_mixin.hf_hub_download", lambda **options: str(saved / options["filename"]))
    monkeypatch.setattr("anytime.saving.snapshot_download", snapshot_download)
    model = AnytimeModel.from_pretrained("someone/anytimenet", revision="v1")
    assert model.num_classes == 3
    assert (asked["repo_id"], asked["revision"]) == ("someone/anytimenet", "v1")
    assert asked["allow_patterns"] == [WEIGHTS, CONFIG]


def test_normalization(tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = small().double().eval()
    x = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    mean, std = [0.125, 0.25, 0.5], [0.5, 0.25, 2.0]
    expected = (x - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    assert torch.equal(model.normalize(x), x)
    from_outside = model(expected)
    model.set_normalization(mean, std)
    assert torch.equal(model.normalize(x), expected)
    assert torch.equal(model(x), from_outside)
    model.save(tmp_path)
    loaded = read_model(tmp_path)
    assert loaded.mean.tolist() == mean
    assert loaded.std.tolist() == std
    assert {"mean", "std"} <= {name for name, _ in loaded.named_buffers()}


@pytest.mark.parametrize("value", [{"data": "digits"}, {}, None])
def test_the_former_metadata_cannot_be_set(value: Any, tmp_path: Path) -> None:
    model = small()
    with pytest.raises(AttributeError, match=r"model\.metadata is not saved; set the attributes of model\.info, such as"):
        model.metadata = value
    assert not hasattr(model, "metadata")
    model.info.data = "digits"
    model.save(tmp_path)
    assert read_config(tmp_path)["metadata"] == {"data": "digits"}


def test_what_would_not_be_saved_cannot_be_set() -> None:
    model = small()
    with pytest.raises(TypeError, match=r"model\.info must be an anytime\.saving\.ModelInfo, got a dict"):
        model.info = {"data": "digits"}  # type: ignore[assignment]
    for name in ("clas_names", "margin", "fitted"):  # a misspelt one, and two names that only the file has
        with pytest.raises(AttributeError, match=name):
            setattr(model.info, name, 1)


def test_a_model_names_all_of_its_classes_or_none(tmp_path: Path) -> None:
    model = small(num_classes=4)
    model.info.class_names = ("a", "b")
    with pytest.raises(ValueError, match="class_names has 2 names, but the model has 4 classes"):
        model.save(tmp_path / "model")
    with pytest.raises(ValueError, match="class_names has 2 names, but the model has 4 classes"):
        anytime.export_model(model, tmp_path / "export", input_size=(3, 8, 8))
    assert not [*tmp_path.iterdir()]
