"""Nothing that a file names is imported without consent: a payload through every entry point."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import anytime
from anytime import registry
from anytime.cli import main
from anytime.model import AnytimeModel, create_model
from anytime.pretrained import chain_networks
from anytime.reporting.evaluation import trained_on
from anytime.saving import CONFIG, ModelInfo, remember_model
from anytime.support.trust import UntrustedName, names_from
from anytime.training.config import SECTIONS, UsageError, _section_hints, offered, parse
from anytime.training.launch import start_training
from anytime.training.origin import seen_before
from anytime.training.rundir import finish_replacement
from anytime.training.written import kinds_of

PAYLOAD = """
from pathlib import Path
Path("executed").touch()
import torch
from anytime.data import Digits
from anytime.models.anytimenet import AnytimeNet
from anytime.objectives import Weighted

class Net(AnytimeNet):
    def __init__(self, num_classes=10, in_channels=3):
        super().__init__(num_classes, in_channels, (2, 2), ((1, 1), (1, 1)), 2)

class Data(Digits): pass
class Loss(Weighted): pass
class Optimizer(torch.optim.SGD): pass

class Plain(torch.nn.Sequential):
    def __init__(self, num_classes=10, in_channels=3):
        super().__init__(torch.nn.Flatten(), torch.nn.LazyLinear(num_classes))

def loss(logits, target):
    return torch.nn.functional.cross_entropy(logits[-1], target).expand(len(logits))
"""
RECIPE = {"model": {"class_path": "anytimenet"}, "data": {"class_path": "Digits", "init_args": {"limit": 40}}}

TYPED = ["--model", "downloaded.evil.Net", "--data", "digits", "--data.limit", "40", "--epochs", "1", "--progress", "false"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A downloaded model directory that holds a payload as a module; the working directory is its parent."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(registry, "_CLASSES", dict(registry._CLASSES))
    torch.manual_seed(0)
    model = create_model("anytimenet", blocks=(2, 2), scheme=((1, 1), (1, 1)), width=2, in_channels=1)
    model.info = ModelInfo(data="Digits", input_size=(1, 8, 8), class_names=tuple("0123456789"), recipe=RECIPE)
    model.save("downloaded")
    (tmp_path / "downloaded/evil.py").write_text(PAYLOAD)
    for name in [name for name in sys.modules if name.startswith("downloaded")]:
        monkeypatch.delitem(sys.modules, name)
    from PIL import Image

    Image.new("L", (8, 8)).save("image.png")
    return tmp_path / "downloaded"


def change(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | changes))


def not_executed() -> bool:
    return not Path("executed").exists() and not any(name.startswith("downloaded") for name in sys.modules)


NAMES: dict[str, dict[str, Any]] = {
    "model": {"model": "downloaded.evil.Net", "arguments": {}},
    "backbone": {"model": "attach", "arguments": {"backbone": "downloaded.evil.Plain", "in_channels": 1, "exits": 1}},
    "delayed backbone": {"model": "delayed", "arguments": {"backbone": "downloaded.evil.Plain", "in_channels": 1}},
    "head": {
        "model": "attach",
        "arguments": {"backbone": "torchvision:resnet18", "head": "downloaded.evil.Plain", "exits": 2},
    },
    "base of boosted": {"model": "boosted", "arguments": {"base": "downloaded.evil.Net"}},
    "base of zero_time_waste": {"model": "zero_time_waste", "arguments": {"base": "downloaded.evil.Net"}},
    "member of eann": {"model": "eann", "arguments": {"members": [{"model": "downloaded.evil.Net"}] * 2}},
    "member of ensemble": {"model": "ensemble", "arguments": {"members": [{"model": "downloaded.evil.Net"}]}},
    "standard library": {"model": "antigravity.geohash", "arguments": {}},
    "library that is imported": {"model": "torch.hub.load", "arguments": {}},
}
COMMANDS: dict[str, list[str]] = {
    "predict": ["predict", "downloaded", "image.png"],
    "profile": ["profile", "downloaded"],
    "evaluate": ["evaluate", "downloaded"],
    "fit": ["fit", "downloaded", "--stop", "confidence", "--budget", "50%"],
    "weights": ["train", "--model", "anytimenet", "--data", "digits", "--weights", "downloaded"],
}


@pytest.mark.parametrize("kind", NAMES)
def test_loading_imports_nothing_that_a_file_names(folder: Path, kind: str) -> None:
    change(folder, **NAMES[kind])
    calls: list[Callable[[], Any]] = [
        lambda: anytime.load(folder),
        lambda: AnytimeModel.from_pretrained(folder),
        lambda: anytime.chain_networks([folder, folder]),
    ]
    for call in calls:
        with pytest.raises(UntrustedName, match=r"config\.json names the .*this would import the module"):
            call()
    assert not_executed()
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_import_nothing_that_a_model_names(folder: Path, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    change(folder, **NAMES["model"])
    assert main(COMMANDS[command]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "names the model 'downloaded.evil.Net'" in error
    assert "--trust" in error
    assert not_executed()


@pytest.mark.parametrize("command", ["evaluate", "fit"])
def test_data_of_a_recipe_are_not_imported(folder: Path, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = RECIPE | {"data": {"class_path": "downloaded.evil.Data"}}
    change(folder, metadata={"data": "Digits", "input_size": [1, 8, 8], "recipe": recipe})
    assert main(COMMANDS[command]) == 2
    assert "names the data set 'downloaded.evil.Data'" in capsys.readouterr().err
    assert not_executed()


RECIPES: dict[str, dict[str, Any]] = {
    "model": RECIPE | {"model": "downloaded.evil.Net"},
    "data": RECIPE | {"data": "downloaded.evil.Data"},
    "objective": RECIPE | {"objective": "downloaded.evil.Loss"},
    "optimizer": RECIPE | {"optimizer": "downloaded.evil.Optimizer"},
    "loss": RECIPE | {"objective": {"class_path": "Weighted", "init_args": {"loss": "downloaded.evil.loss"}}},
    "loss as an object": RECIPE
    | {"objective": {"class_path": "Weighted", "init_args": {"loss": {"class_path": "downloaded.evil.Loss"}}}},
    "learning rate as an object": RECIPE
    | {"optimizer": {"class_path": "SGD", "init_args": {"lr": {"class_path": "downloaded.evil.Optimizer"}}}},
    "learning rate as a path": RECIPE | {"optimizer": {"class_path": "SGD", "init_args": {"lr": "downloaded.evil.Optimizer"}}},
    "backbone": RECIPE | {"model": {"class_path": "attach", "init_args": {"backbone": "downloaded.evil.Plain"}}},
    "options as an object": RECIPE
    | {
        "model": {
            "class_path": "attach",
            "init_args": {
                "backbone": "torchvision:resnet18",
                "options": {"class_path": "downloaded.evil.Plain", "init_args": {}},
            },
        }
    },
}


EVIL: list[Any] = [
    {"a": {"class_path": "downloaded.evil.Plain"}},
    {"a": [[{"b": {"class_path": "downloaded.evil.Plain", "init_args": {}}}]]},
    {"a": "class_path: downloaded.evil.Plain"},
    {"a": ["{class_path: downloaded.evil.Plain}"]},
    {"a": '{"class\\u005fpath": "downloaded.evil.Plain"}'},
    {"a": "{b: '{class_path: downloaded.evil.Plain}'}"},
    "{a: {class_path: downloaded.evil.Plain}}",
]
OPEN: dict[str, dict[str, Any]] = {  # arguments that take anything, by model, and others that the model needs
    "attach.options": {"backbone": "torchvision:resnet18"},
    "delayed.options": {"backbone": "torchvision:resnet18"},
    "boosted.arguments": {},
    "zero_time_waste.arguments": {},
    "eann.members": {},
    "ensemble.members": {},
}


def test_all_open_arguments_are_known() -> None:
    found = {
        f"{name}.{key.partition('.')[2]}"
        for section in SECTIONS
        for name in offered(section)
        for key, hint in _section_hints(section, name).items()
        if "." in key and not key.endswith("help") and Any in kinds_of(hint)
    }
    assert found == set(OPEN)


@pytest.mark.parametrize("number", range(len(EVIL)))
@pytest.mark.parametrize("argument", OPEN)
def test_recipes_import_nothing_at_any_depth(folder: Path, argument: str, number: int) -> None:
    model, _, name = argument.partition(".")
    value = [EVIL[number]] * 2 if name == "members" else EVIL[number]
    Path("recipe.yaml").write_text(yaml.safe_dump(RECIPE | {"model": {"class_path": model, "init_args": {name: value}}}))
    with names_from("recipe.yaml"), pytest.raises(UsageError, match=f"model.{name} must be a plain value in a recipe"):
        parse([flag for key, text in OPEN[argument].items() for flag in (f"--model.{key}", text)], ["recipe.yaml"])
    assert not_executed()


@pytest.mark.parametrize("kind", RECIPES)
def test_recipes_import_nothing(folder: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("recipe.yaml").write_text(yaml.safe_dump(RECIPES[kind]))
    assert main(["train", "--config", "recipe.yaml", "--epochs", "1", "--run", "run"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    assert not_executed()
    assert not Path("run").exists()


def test_plain_mappings_in_a_recipe_are_taken(folder: Path) -> None:
    arguments = {"backbone": "anytime.models.surgery.small_networks.ResNet20", "options": {"width": 2}, "exits": 1}
    recipe = RECIPE | {"model": {"class_path": "attach", "init_args": arguments}}
    recipe |= {"optimizer": {"class_path": "Adam", "init_args": {"lr": 0.00001, "betas": [0.9, 0.99]}}}
    nested = {"blocks": [1, 2], "scheme": [[1, 1], [0, 1]]}
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
    with names_from("recipe.yaml"):
        config = parse([], ["recipe.yaml"])
    assert config["model"]["init_args"]["options"] == {"width": 2}
    assert config["optimizer"]["init_args"]["lr"] == 0.00001
    Path("recipe.yaml").write_text(yaml.safe_dump(RECIPE | {"model": {"class_path": "anytimenet", "init_args": nested}}))
    with names_from("recipe.yaml"):
        config = parse([], ["recipe.yaml"])
    assert config["model"]["init_args"]["scheme"] == [[1, 1], [0, 1]]


def test_resume_imports_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("run").mkdir()
    Path("run/config.yaml").write_text(yaml.safe_dump(RECIPES["model"]))
    Path("run/run.json").write_text(json.dumps({"format": 1, "state": "interrupted"}))
    assert main(["train", "--resume", "run"]) in (1, 2)
    assert "names the model 'downloaded.evil.Net'" in capsys.readouterr().err
    assert not_executed()


def run_script(script: str) -> str:
    """What a script prints, run in a process that has imported nothing yet."""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_consent_by_trust(folder: Path) -> None:
    sys.path.append("")
    create_model("downloaded.evil.Net", in_channels=1).save("mine")
    Path("executed").unlink()
    script = """
import anytime, pathlib
try:
    anytime.load("mine")
except anytime.support.trust.UntrustedName:
    print("untrusted", pathlib.Path("executed").exists())
print(type(anytime.load("mine", trust=True)).__name__)
"""
    assert run_script(script) == "untrusted False\nNet\n"


@pytest.mark.parametrize("trust", [False, True])
def test_a_model_made_from_others_is_trusted_as_they_are(folder: Path, trust: bool) -> None:
    """A sequence of networks, and the record of images that earlier weights have seen."""
    recipe = {"model": {}, "data": {"class_path": "downloaded.evil.Data"}}
    for units in (1, 2):
        model = create_model("ann", 10, units=units, width=2, in_channels=1)
        model.info = ModelInfo(data="Digits", input_size=(1, 8, 8), recipe=recipe)
        model.save(f"n{units}")
        if trust:
            remember_model(Path(f"n{units}"))
    chain = chain_networks(["n1", "n2"])
    if trust:
        assert chain.info.trusted
        return
    with pytest.raises(UntrustedName, match=r"names the data set 'downloaded\.evil\.Data'"):
        trained_on(chain)
    with pytest.warns(UserWarning, match=r"has no .*would import the module 'downloaded\.evil'"):
        seen_before("n1", {}, anytime.data.Digits())
    assert not Path("executed").exists()


def test_what_is_typed_is_consent_and_the_run_is_remembered(folder: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "anytime", "train", *TYPED, "--run", "run"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert Path("executed").exists()
    shutil.copytree("run", "elsewhere")
    shutil.copytree("run", "before")
    change(Path("run"), arguments={"num_classes": 10, "in_channels": 1, "other": 1})
    script = """
import shutil, sys
from anytime.cli import main
codes = [main(["predict", "elsewhere", "image.png"]), main(["predict", "run", "image.png"])]
shutil.copy("before/config.json", "run/config.json")
print(codes, main(["predict", "run", "image.png"]), file=sys.stderr)
sys.stdout.close()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    lines = done.stderr.splitlines()
    assert lines[-1] == "[2, 2] 0", done.stderr
    assert "elsewhere/config.json names the model 'downloaded.evil.Net'" in lines[0]
    assert "run/config.json names the model 'downloaded.evil.Net'" in lines[1]


def test_the_working_directory_shadows_nothing(folder: Path) -> None:
    for name in ("colorama", "zstandard", "matplotlib", "lightning", "yaml", "PIL"):
        (folder.parent / f"{name}.py").write_text("from pathlib import Path\nPath('executed').touch()\n")
    script = Path(sys.executable).parent / "anytime"
    done = subprocess.run([script, "predict", "downloaded", "image.png"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not Path("executed").exists()


def test_a_registered_class_is_looked_up(folder: Path) -> None:
    """A class that the user has imported is no import."""

    class Mine(AnytimeModel):
        num_steps = 1

        def __init__(self, num_classes: int = 10, in_channels: int = 3) -> None:
            super().__init__(num_classes, in_channels)
            self.head = torch.nn.Linear(in_channels, num_classes)

    path = f"{Mine.__module__}.{Mine.__qualname__}"
    create_model(path).save("mine")
    assert type(anytime.load("mine")) is Mine


def test_a_typed_file_is_no_consent_to_a_module_of_its_name(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("recipe.yaml").write_text(yaml.safe_dump(RECIPE | {"model": "downloaded.evil"}))
    assert main(["train", "--config", "recipe.yaml", "--data.root", "downloaded.evil"]) == 2
    assert "recipe.yaml names the model 'downloaded.evil'" in capsys.readouterr().err
    assert not_executed()


def test_resuming_a_foreign_run_uses_no_network(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = subprocess.run([sys.executable, "-m", "anytime", "train", "--model", "anytimenet", *TYPED[2:], "--run", "run"])
    assert done.returncode == 0
    shutil.copytree("run", "theirs")
    state = json.loads(Path("theirs/run.json").read_text())
    Path("theirs/run.json").write_text(json.dumps(state | {"state": "started"}))
    text = Path("theirs/config.yaml").read_text()
    Path("theirs/config.yaml").write_text(text.replace("download: false", "download: true"))
    assert main(["train", "--resume", "theirs"]) == 2
    assert "sets data.download, which uses the network" in capsys.readouterr().err
    Path("theirs/config.yaml").write_text(text.replace("logger: auto", "logger: wandb"))
    assert main(["train", "--resume", "theirs"]) == 2
    assert "sets logger, which uses the network" in capsys.readouterr().err


@pytest.mark.parametrize("name", [".lock", "replacement", "figures", "checkpoints"])
def test_nothing_is_written_through_links(folder: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("home").mkdir()
    (folder / name).symlink_to(Path("home" if name != ".lock" else "home/file").absolute())
    assert main(["evaluate", "downloaded"]) == 1
    assert f"downloaded/{name} is a link" in capsys.readouterr().err
    assert not list(Path("home").iterdir())


def test_a_replacement_moves_only_files_of_this_library(folder: Path) -> None:
    new = folder / "replacement"
    (new / "x").mkdir(parents=True)
    (new / "x/authorized_keys").write_text("key")
    (new / "run.json").write_text(json.dumps({"format": 1, "anytime": "1", "state": "finished"}))
    Path("home").mkdir()
    (folder / "x").symlink_to(Path("home").absolute())
    finish_replacement(folder)
    assert not list(Path("home").iterdir())


def test_weights_are_not_downloaded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`pretrained: true` in a saved configuration is ignored, because the saved weights replace it."""
    model = create_model("attach", backbone="torchvision:squeezenet1_1", exits=2, head="linear", num_classes=3)
    model.save(tmp_path)
    change(tmp_path, arguments=model.config["arguments"] | {"pretrained": True})

    def no_network(*_: Any, **__: Any) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", no_network)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", no_network)
    assert anytime.load(tmp_path).num_classes == 3


def test_training_by_python_is_consent(folder: Path) -> None:
    sys.path.append("")
    config = parse(
        ["--model", "downloaded.evil.Net", "--data", "digits", "--data.limit", "40", "--epochs", "1", "--progress=false"]
    )
    run = start_training(config, folder.parent / "run")
    assert type(anytime.load(run)).__name__ == "Net"
