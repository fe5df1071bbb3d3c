"""Run directories of a study may come from a stranger: what they name is imported and replaced only with consent."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from anytime import load
from anytime.cli import main
from anytime.data import create_data
from anytime.model import create_model
from anytime.saving import ModelInfo, remember_model
from anytime.studies import TrainingRun, run_status
from anytime.studies.executors.subprocess import retrain
from anytime.studies.hu2017.figures import training_losses
from anytime.studies.study import find_study
from anytime.studies.timing import build as build_row
from anytime.support.names import import_object
from anytime.support.owned import NotOurs
from anytime.support.trust import UntrustedName, names_from, only_typed
from anytime.training.rundir import _own_files, create_run, read_run

DATA: dict[str, Any] = {"class_path": "Digits", "init_args": {"limit": 40, "batch_size": 20}}
RECIPE: dict[str, Any] = {
    "model": {"class_path": "anytimenet", "init_args": {"width": 2}},
    "data": DATA,
    "objective": {"class_path": "Weighted", "init_args": {}},
    "optimizer": {"class_path": "SGD", "init_args": {"lr": 0.1}},
    "schedule": {"class_path": "Constant", "init_args": {}},
}


@pytest.fixture(autouse=True)
def stranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that can be imported, and leaves a mark if it is."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    Path("stranger.py").write_text("from pathlib import Path\nPath('executed').touch()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "stranger", raising=False)


def trained(changes: Mapping[str, Any]) -> Path:
    torch.manual_seed(0)
    model = create_model("anytimenet", 10, width=2, in_channels=1)
    model.info = ModelInfo(data="Digits", input_size=(1, 8, 8), recipe={**RECIPE, **changes})
    model.save("run")
    return Path("run")


@pytest.mark.parametrize("section", RECIPE)
def test_a_run_is_compared_without_an_import(section: str) -> None:
    Path("recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    run = TrainingRun("run", Path("recipe.yaml"), (), 0, {})
    create_run(Path("run"), run.config())
    assert run_status(run, Path()) == "resume"
    text = yaml.safe_load(Path("run/config.yaml").read_text())
    Path("run/config.yaml").write_text(yaml.safe_dump(text | {section: {"class_path": "stranger.Thing"}}))
    for call in (lambda: run_status(run, Path()), lambda: read_run(Path("run"))):
        with pytest.raises(UntrustedName, match=r"run/config\.yaml names the .* 'stranger\.Thing'"):
            call()
    assert not Path("executed").exists()


def test_training_losses_import_nothing() -> None:
    with pytest.raises(UntrustedName, match=r"config\.json names the data set 'stranger\.Data'"):
        training_losses(trained({"data": {"class_path": "stranger.Data", "init_args": {}}}))
    assert not Path("executed").exists()


@pytest.mark.parametrize("section", RECIPE)
def test_retraining_imports_nothing(section: str) -> None:
    model = load(trained({section: {"class_path": "stranger.Thing", "init_args": {}}}))
    with pytest.raises(UntrustedName, match=r"config\.json names the .* 'stranger\.Thing'"):
        retrain(model, {"width": 2})
    assert not Path("executed").exists()


def test_retraining_uses_no_network_and_needs_a_whole_recipe() -> None:
    model = load(trained({"logger": "wandb"}))
    with pytest.raises(UntrustedName, match="sets logger, which uses the network"):
        retrain(model, {})
    del model.info.recipe["schedule"]
    with pytest.raises(ValueError, match="is damaged: schedule is missing"):
        retrain(model, {})


def test_a_table_imports_nothing_that_a_row_names() -> None:
    with pytest.raises(UntrustedName, match=r"the row of a net names the model 'stranger\.Net'"):
        build_row("stranger.Net", {"num_classes": 2}, "the row of a net")
    assert not Path("executed").exists()


@pytest.mark.parametrize(
    ("model", "arguments", "message"),
    [
        ("attach", {"backbone": "hf:evil-org/evil-model"}, "which uses the network"),
        (
            "eann",
            {"members": [{"model": "attach", "arguments": {"backbone": "torchvision:squeezenet1_1", "pretrained": True}}]},
            "sets model ... pretrained, which uses the network",
        ),
        ("fast", {"widths": [20_000] * 3}, "more than the .* values"),
    ],
)
def test_a_table_downloads_nothing_and_builds_nothing_huge(model: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_row(model, {"num_classes": 2, **arguments}, "the row of a net")


def test_in_a_command_only_what_is_typed_is_imported_where_no_source_is_declared() -> None:
    with (
        only_typed(["run", "--model.head=stranger.Net2"]),
        pytest.raises(UntrustedName, match=r"names the head 'stranger\.Net'"),
    ):
        import_object("stranger.Net", "head")
    assert not Path("executed").exists()
    Path("stranger.py").write_text("class Net: pass\nclass Other: pass\n")
    with only_typed(["--model", "stranger.Net"]):
        assert import_object("stranger.Net", "model").__name__ == "Net"
        assert import_object("stranger.Other", "model").__name__ == "Other", "what is typed may name more"


def test_the_stored_losses_are_replaced_only_if_they_are_this_librarys() -> None:
    run = trained({})
    remember_model(run)
    measured = training_losses(run)
    path = run / "training-losses.json"
    assert json.loads(path.read_text())["losses"] == measured
    assert training_losses(run) == measured
    for foreign in ("[0.0001]", '{"weights": "f", "losses": [0.0001]}'):
        path.write_text(foreign)
        assert training_losses(run) == pytest.approx(measured), "losses of other weights"
    assert len(measured) == load(run).num_steps
    assert all(map(math.isfinite, measured))
    for empty in (b"", b"\0" * 20):
        path.write_bytes(empty)
        assert training_losses(run) == pytest.approx(measured)
    assert _own_files(run) >= {Path("training-losses.json")}, "with --overwrite the losses of earlier weights go"
    for foreign in ('{"my": "notes"}', "[]", '["a"]', "[" * 300, "no JSON"):
        path.write_text(foreign)
        with pytest.raises(NotOurs, match=r"training-losses\.json was not written by this library"):
            training_losses(run)
        assert path.read_text() == foreign
    assert Path("training-losses.json") not in _own_files(run)
    path.unlink()
    Path("elsewhere").write_text("[0.5]")
    path.symlink_to(Path("elsewhere").absolute())
    with pytest.raises(ValueError, match="is a link that leads out of its folder"):
        training_losses(run)


def test_losses_are_of_the_unaugmented_training_images() -> None:
    arguments = {"limit": 40, "batch_size": 20, "split_by": "names"}
    run = trained({"data": {"class_path": "Digits", "init_args": arguments | {"augment": "crop"}}})
    data = create_data("digits", **arguments, augment="none")
    data.setup("fit")
    x, target = (torch.cat(parts) for parts in zip(*data.train_dataloader(), strict=True))
    with torch.inference_mode():
        wanted = [torch.nn.functional.cross_entropy(logits, target).item() for logits in load(run)(x)]
    assert training_losses(run) == pytest.approx(wanted, rel=1e-5)


def test_a_study_of_runs_that_name_others_needs_consent(capsys: Any) -> None:
    """The error names an option that the command did not have."""
    item = find_study("iuzzolino2021").items["figure 4"]
    run = next(iter(item.runs("cifar10", "cpu", [0])))
    create_run(Path("runs") / run.name, run.config())
    text = yaml.safe_load(Path("runs", run.name, "config.yaml").read_text())
    text["data"]["class_path"] = "stranger.Digits"
    Path("runs", run.name, "config.yaml").write_text(yaml.safe_dump(text))
    given = [
        "study",
        "iuzzolino2021",
        "--figure",
        "4",
        "--runs",
        "runs",
        "--data",
        "cifar10",
        "--scale",
        "cpu",
        "--seeds",
        "0",
    ]
    assert main([*given, "--dry-run"]) == 2
    assert "names the data set 'stranger.Digits'" in capsys.readouterr().err
    assert not Path("executed").exists()
    main([*given, "--dry-run", "--trust"])
    assert Path("executed").exists()
    with names_from("a study", trust=True):
        assert run.arguments(Path("runs"), "resume") == ["--resume", f"runs/{run.name}", "--trust"]
    assert run.arguments(Path("runs"), "resume") == ["--resume", f"runs/{run.name}"]
