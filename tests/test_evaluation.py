import json
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from anytime import Trace, create_model, load
from anytime.cli import main
from anytime.data import CIFAR10, Digits, ImageFolder
from anytime.data.record import ImageRecord
from anytime.reporting.evaluation import evaluate_run, output_folder, stored_traces, trained_on, write_results
from anytime.saving import ModelInfo
from anytime.training.build import build
from anytime.training.rundir import read_run

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


def test_a_trace_knows_the_groups_of_its_images(run, monkeypatch, capsys):
    """Up to three images of a class in a row are one track, as if Digits were a video."""
    read = Digits.read

    def tracked(self, split):
        part = read(self, split)
        if split != "train":
            return part
        rank = torch.nn.functional.one_hot(part.labels).cumsum(0).gather(1, part.labels[:, None])[:, 0] - 1
        return replace(part, groups=part.labels * 1000 + rank // 3)

    monkeypatch.setattr(Digits, "read", tracked)
    result = evaluate_run(run, "validation", progress=False)
    trace = Trace.load(result.trace)
    data = Digits(classes=["1", "7"], validation=0.2, split_by="positions")
    data.setup("fit")
    assert trace.meta["groups"] == data.split("validation").groups.tolist()
    groups, sizes = torch.tensor(trace.meta["groups"]).unique(return_counts=True)
    assert int(sizes.max()) == 3, "no track is divided"
    assert not set(groups.tolist()) & set(data.split("train").groups.tolist())
    assert "groups" not in result.numbers["meta"]
    assert main(["fit", str(run), "--stop", "confidence", "--max-loss", "0.0001", "--sure", "0.9"]) == 0
    wanted = f"no threshold can guarantee that loss with {trace.num_samples} images in {len(groups)} groups, so all steps run"
    assert wanted in capsys.readouterr().out
    old = replace(trace, meta={key: value for key, value in trace.meta.items() if key != "groups"})
    old.save(result.trace)
    assert main(["fit", str(run), "--stop", "confidence", "--max-loss", "0.01", "--name", "other"]) == 1
    assert "does not say which images belong to one group" in capsys.readouterr().err


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
    with pytest.raises(
        FileNotFoundError, match=r"with --root \(there is no folder /gone/to/another/machine, where the recipe has"
    ):
        data.setup("test")
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
    trace = Trace.load(run / "trace-test.safetensors")
    replace(trace, meta={**trace.meta, "weights": "f" * 64}).save(run / "trace-test.safetensors")
    with pytest.raises(ValueError, match=r"run/trace-test\.safetensors was recorded with other weights; record it again"):
        stored_traces([str(run)])


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """60 small images in two class folders."""
    generator = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(30):
            Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(
                tmp_path / f"photos/{name}/{i:02d}.png"
            )
    return tmp_path / "photos"


def trained_on_photos(photos: Path, folder: Path, recorded: bool = True, **arguments) -> Path:
    """A model that was saved with the recipe and the record of a training on `photos`."""
    data = ImageFolder(root=photos, size=8, **arguments)
    model = create_model("anytimenet", num_classes=2, blocks=(1, 2, 1), scheme=((1, 1, 1), (0, 1, 0)), width=4)
    init_args = {"root": str(photos), "size": 8} | ({"split_by": "names"} if recorded else {}) | arguments
    recipe = {"data": {"class_path": "ImageFolder", "init_args": init_args}}
    model.info = ModelInfo(class_names=("cat", "dog"), recipe=recipe)
    model.save(folder)
    if recorded:
        data.make_record().save(folder / "images.safetensors")
    return folder


def test_the_test_images_of_a_run_stay_when_files_come_and_go(photos, tmp_path):
    run = trained_on_photos(photos, tmp_path / "run")
    before = ImageFolder(root=photos, size=8)
    for i in range(3):
        (photos / before.split("train").names[i]).rename(photos / f"dog/renamed{i}.png")
    Image.new("RGB", (8, 8)).save(photos / "cat/!first.png")
    data = trained_on(load(run), run=run)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # perhaps the new image is for testing
        assert set(before.split("test").names) - {"cat/!first.png"} == set(data.split("test").names) - {"cat/!first.png"}


def test_what_was_trained_on_is_not_tested_on(photos, tmp_path):
    run = trained_on_photos(photos, tmp_path / "run")
    data = ImageFolder(root=photos, size=8)
    number = len(data.split("test"))
    for i, name in enumerate(data.split("train").names):
        shutil.copy(photos / name, photos / f"cat/copy{i}.png")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = evaluate_run(run, progress=False)
    assert Trace.load(result.trace).num_samples == number
    assert any("are left out, because this run was trained on their content" in str(warning.message) for warning in caught)


def test_a_run_without_a_record_is_split_as_when_it_was_trained(photos, tmp_path):
    run = trained_on_photos(photos, tmp_path / "run", recorded=False)
    with pytest.warns(
        UserWarning, match=r"no images\.safetensors says .* they are split by positions, so if files were added, removed"
    ):
        result = evaluate_run(run, progress=False)
    expected = ImageFolder(root=photos, size=8, split_by="positions").split("test")
    assert torch.equal(Trace.load(result.trace).labels, expected.labels)
    assert len(expected) == 12


def test_training_writes_the_record_and_resuming_uses_it(photos, tmp_path):
    flags = f"--model serial_resnet18 --model.width 4 --data ImageFolder --data.root {photos} --data.size 8 --epochs 1"
    run = tmp_path / "run"
    assert main(["train", *flags.split(), "--run", str(run), "--accelerator", "cpu", "--progress", "false"]) == 0
    before = ImageFolder(root=photos, size=8)
    record = ImageRecord.load(run / "images.safetensors")
    assert record.count("train") == len(before.split("train"))
    Image.new("RGB", (8, 8)).save(photos / "cat/!first.png")
    config, _ = read_run(run)
    resumed = build(config, filled_later=True, run=run).data
    assert list(resumed.split("train").names) == list(before.split("train").names)
    del config["data"]["init_args"]["split_by"]  # as versions wrote it that kept no record
    (run / "images.safetensors").unlink()
    assert build(config, filled_later=True, run=run).data.by_positions


def test_other_classes_than_the_models(photos, tmp_path):
    run = trained_on_photos(photos, tmp_path / "run")
    (photos / "cat").rename(photos / "zebra")  # the labels would be exchanged
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match=r"are not those of the model: 'dog' where it has 'cat'"):
            evaluate_run(run, progress=False)


def test_a_missing_relative_folder_is_named_with_this_commands_option(photos, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run = trained_on_photos(Path("photos"), tmp_path / "run")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert main(["evaluate", str(run)]) == 1
    folder = f"there is no folder photos ({Path('photos').absolute()})"
    assert f"{folder}, where this model's images were; give their folder with --root" in capsys.readouterr().err
    assert main(["train", "--model", "anytimenet", "--data", "ImageFolder", "--data.root", "photos"]) == 1
    assert f"{folder}; --data.root names the folder" in capsys.readouterr().err


def test_every_label_level_is_evaluated(tmp_path):
    fine = torch.arange(6) % 3
    logits = torch.cat([torch.eye(3)[fine], torch.eye(2)[torch.zeros(6, dtype=torch.int64)]], 1).expand(2, 6, 5)
    labels, macs = torch.stack([fine, fine // 2], 1), torch.tensor([10, 20])
    names = ("ant", "bee", "cat", "insect", "mammal")
    result = write_results(Trace(logits, labels, macs, None, None, names, meta={"levels": [3, 2]}), tmp_path, "test")
    assert result.numbers["classes"] == 3
    assert result.numbers["accuracy"] == 1
    (coarse,) = result.numbers["coarser_levels"]
    assert coarse["classes"] == 2
    assert [row["accuracy"] for row in coarse["steps"]] == pytest.approx([4 / 6] * 2)
    assert [(row["worst_class"], row["worst_class_accuracy"]) for row in coarse["steps"]] == [("mammal", 0)] * 2
    assert json.loads(result.metrics.read_text())["coarser_levels"] == [coarse]
    assert "Every step, at the label level of 2 classes" in result.report.read_text()
