"""What a killed command left is completed or replaced by the next one, and no result is of another model."""

import errno
import os
import shutil
from pathlib import Path

import pytest
import torch

import anytime
from anytime.cli import main
from anytime.commands import profile
from anytime.data.record import RECORD, read_record
from anytime.model import AnytimeModel, create_model
from anytime.stopping import saved_rules

FIT = ["--stop", "confidence", "--budget", "80%", "--out", "there"]


@pytest.fixture
def there() -> Path:
    Path("there").mkdir()
    return Path("there")


def test_a_fit_that_was_killed_between_the_two_files_is_completed(run, there):
    shutil.copy(f"{run}/model.safetensors", there)
    assert main(["fit", run, *FIT]) == 0
    assert list(saved_rules(anytime.load(there))) == ["confidence"]
    assert read_record(there) is not None


@pytest.mark.parametrize("content", ["weights", b"", b"x"])
def test_other_weights_without_a_configuration_are_kept(run, there, content, refused):
    if content == "weights":
        create_model("anytimenet", 3, blocks=(1, 1), scheme=((1, 1),), width=2).save("small")
        content = Path("small/model.safetensors").read_bytes()
    (there / "model.safetensors").write_bytes(content)
    assert "there holds no trained model: config.json is missing" in refused(["fit", run, *FIT], 1)
    assert (there / "model.safetensors").read_bytes() == content
    assert not (there / RECORD).exists()


@pytest.mark.parametrize("damaged", [b"", b"\0" * 100])
def test_a_damaged_record_is_repaired(run, there, damaged):
    (there / RECORD).write_bytes(damaged)
    assert main(["fit", run, *FIT]) == 0
    assert (there / RECORD).read_bytes() == Path(run, RECORD).read_bytes()


def test_the_record_is_there_before_the_model(run, there, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "there")

    monkeypatch.setattr(AnytimeModel, "save", full)
    assert main(["fit", run, *FIT]) == 1
    assert [path.name for path in there.iterdir()] == [RECORD]
    assert (there / RECORD).read_bytes() == Path(run, RECORD).read_bytes()


def test_half_a_record_is_never_there(run, there, monkeypatch, capsys):
    def half(source, target):
        Path(target).write_bytes(Path(source).read_bytes()[:10])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("shutil.copyfile", half)
    assert main(["fit", run, *FIT]) == 1
    assert capsys.readouterr().err.endswith(f"anytime fit: error: No space left on device: there/{RECORD}\n")
    assert not list(there.iterdir())


def test_no_training_begins_while_its_run_is_profiled(run, monkeypatch, refused, capsys):
    measure, start = profile.profile, ["train", "--model", "anytimenet", "--data", "digits", "--run", run, "--overwrite"]

    def slowly(*arguments, **options):
        assert "tiny is in use: a profile (process " in refused(start, 1)
        return measure(*arguments, **options)

    monkeypatch.setattr(profile, "profile", slowly)
    assert main(["profile", run, "--repeats", "1"]) == 0
    monkeypatch.undo()


@pytest.mark.parametrize("out", [[], ["--out", "a.json"]])
def test_a_profile_is_of_the_weights_that_are_there(run, out, monkeypatch, refused):
    """Another process replaces them without a lock, as on a file system that has none."""
    measure = profile.profile

    def replaced(model, *arguments, **options):
        with torch.no_grad():
            model.mean += 1
        model.save(run)
        return measure(model, *arguments, **options)

    monkeypatch.setattr(profile, "profile", replaced)
    message = refused(["profile", run, "--repeats", "1", *out], 1)
    assert "the weights in tiny were replaced while they were measured; profile the model again" in message
    assert not Path(run, "profile.json").exists()
    assert not Path("a.json").exists()


def test_a_profile_elsewhere_of_a_pretrained_model_makes_no_folder(run):
    assert main(["profile", "anytimenet_cifar10", "--repeats", "1", "--out", "a.json"]) == 0
    assert not Path("runs").exists()
