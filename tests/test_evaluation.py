import json
from pathlib import Path

import pytest
import torch

from anytime import Trace, create_model, load
from anytime.data import CIFAR10, Digits
from anytime.reporting.evaluation import evaluate_run, output_folder, stored_traces, trained_on
from anytime.saving import ModelInfo

RECIPE = {"data": {"class_path": "Digits", "init_args": {"root": None, "classes": ["1", "7"], "validation": 0.2}}}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A model that was saved, but never trained."""
    model = create_model("anytimenet", num_classes=2, in_channels=1, blocks=(1, 2, 1), scheme=((1, 1, 1), (0, 1, 0)), width=4)
    model.info = ModelInfo(class_names=("1", "7"), recipe=RECIPE)
    model.save(tmp_path / "run")
    return tmp_path / "run"


def test_all_written_files_agree(run):
    result = evaluate_run(run, progress=False)
    trace = Trace.load(result.trace)
    data = Digits(classes=["1", "7"])
    data.setup("test")
    images = torch.cat([images for images, _ in data.test_dataloader()])
    assert torch.allclose(trace.logits, load(run)(images), atol=1e-5)
    assert trace.class_names == ("1", "7")
    assert trace.meta["part"] == "test"
    assert trace.meta["recipe"] == RECIPE
    assert json.loads(result.metrics.read_text()) == result.numbers
    accuracy = (trace.logits.argmax(2) == trace.labels).double().mean(1).tolist()
    assert [step["accuracy"] for step in result.numbers["steps"]] == pytest.approx(accuracy)
    assert "Digits (test images)" in result.report.read_text()
    assert stored_traces([str(run)]).keys() == {"run"}


def test_validation_images_are_those_of_the_training(run, tmp_path):
    result = evaluate_run(run, "validation", out=tmp_path / "out", progress=False)
    data = Digits(classes=["1", "7"], validation=0.2)
    data.setup("fit")
    labels = torch.cat([labels for _, labels in data.val_dataloader()])
    assert torch.equal(Trace.load(result.trace).labels, labels)
    assert result.trace.parent == tmp_path / "out"
    assert result.report == tmp_path / "out/report-validation.html"  # beside the report on the test images
    assert (tmp_path / "out/figures/validation/steps.png").is_file()
    assert result.trace.stat().st_mode == result.metrics.stat().st_mode


def test_no_validation_images(run):
    config = json.loads((run / "config.json").read_text())
    config["metadata"]["recipe"]["data"]["init_args"]["validation"] = 0
    (run / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"trained with validation=0: there are no validation images"):
        evaluate_run(run, "validation", progress=False)


def test_a_model_without_a_recipe():
    with pytest.raises(ValueError, match="does not say what it was trained on"):
        trained_on(create_model("anytimenet"))


def test_data_are_found_in_the_usual_folder_if_the_recipes_is_missing(run, tmp_path, monkeypatch):
    model = load(run)
    model.info.recipe = {"data": {"class_path": "CIFAR10", "init_args": {"root": "/gone/to/another/machine"}}}
    monkeypatch.setenv("ANYTIME_DATA", str(tmp_path / "here"))
    data = trained_on(model)
    assert isinstance(data, CIFAR10)
    assert data.root == tmp_path / "here"
    assert trained_on(model, tmp_path / "given").root == tmp_path / "given"


def test_output_folder(run, monkeypatch, tmp_path):
    assert output_folder(run) == run
    assert output_folder("anytimenet_cifar10") == Path("runs/anytimenet_cifar10")


def test_stored_traces_of_runs_with_the_same_name(run, tmp_path):
    evaluate_run(run, progress=False)
    evaluate_run(run, out=tmp_path / "other/run", progress=False)
    assert stored_traces([str(run), str(tmp_path / "other/run")]).keys() == {"run", str(tmp_path / "other/run")}
    with pytest.raises(FileNotFoundError, match=r"run `anytime evaluate .*/run --part validation`"):
        stored_traces([str(run)], "validation")
