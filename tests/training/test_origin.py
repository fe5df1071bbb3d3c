"""What the weights of a training have seen is never tested on, and what it sees later is recorded."""

import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import anytime
from anytime.cli import main
from anytime.data import CIFAR10, CUB200, GTSRB, Digits, ImageData, ImageFolder, Split
from anytime.data.names import Names
from anytime.data.record import ImageRecord, read_record
from anytime.reporting.evaluation import images_of, trained_on
from anytime.saving import ModelInfo
from anytime.training.build import build
from anytime.training.callbacks import Interrupted
from anytime.training.config import parse
from anytime.training.fit import fit
from anytime.training.origin import seen_before

DIGITS = ["--model=ann", "--model.units=1", "--model.width=2", "--data=Digits", "--epochs=1", "--progress=false"]


@pytest.fixture(autouse=True)
def in_tmp(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_validation_images_that_earlier_weights_were_trained_on_are_left_out():
    assert main(["train", *DIGITS, "--run", "a"]) == 0
    with pytest.warns(UserWarning, match=r"131 of 144 images are left out"):  # in the training's own validation as well
        assert main(["train", *DIGITS, "--data.split_seed=1", "--weights", "a", "--run", "b"]) == 0
    trained = set(read_record(Path("a")).contents[read_record(Path("a")).parts == 0].tolist())
    data = trained_on(anytime.load("b"), run=Path("b"))
    with pytest.warns(UserWarning, match=r"131 of 144 images are left out"):
        loader = images_of(data, "validation")
    assert loader.size == 13
    assert not trained & set(data.split("validation").contents.tolist())
    assert len(data.split("test")) == 360


def records(first: ImageData, second: ImageData) -> ImageRecord:
    return second.make_record().following(first.make_record())


def left(data: ImageData, record: ImageRecord, part: str = "validation") -> tuple[int, str]:
    """How many images of a part are left under a record, and the warnings."""
    data.use_record(record)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        return len(data.split(part)), " ".join(str(warning.message) for warning in caught)


@pytest.mark.parametrize("first", [{"validation": 0}, {"validation": 0.3, "split_seed": 4}, {"split_seed": 3, "limit": 500}])
def test_whatever_the_earlier_split_was(first):
    seen = set(Digits(**first).split("train").contents.tolist())
    expected = [number for number in Digits().split("validation").contents.tolist() if number not in seen]
    data = Digits()
    number, said = left(data, records(Digits(**first), Digits()))
    assert number == len(expected) < 144
    assert f"{144 - len(expected)} of 144 images are left out" in said
    assert left(data, data.record, "test") == (360, "")


class Film(GTSRB):
    """12 tracks of 20 frames, read at a size."""

    def read(self, split):
        track = torch.arange(12).repeat_interleave(20)
        images = torch.randint(256, (240, *self.input_size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        names = Names.of(f"{t:05d}/{i % 20:05d}.ppm" for i, t in enumerate(track.tolist()))
        return None if split == "validation" else Split(images, track % 43, "film", track if split == "train" else None, names)


def test_names_tell_the_images_of_one_set_at_any_size_and_tracks_stay_together():
    number, said = left(
        Film(size=8, validation=0.5), records(Film(size=16, validation=0, limit=13), Film(size=8, validation=0.5))
    )
    assert number == 0  # every track has a frame that was trained on
    assert "120 of 120 images are left out, because this run was trained on their content or on others of their groups" in said


def test_names_tell_the_images_of_sets_whose_files_are_not_read():
    bird = Path("CUB_200_2011")
    (bird / "images").mkdir(parents=True)
    for file, text in {
        "classes.txt": "1 001.Albatross",
        "images.txt": "\n".join(f"{i} {i}.jpg" for i in range(20)),
        "image_class_labels.txt": "\n".join(f"{i} 1" for i in range(20)),
        "train_test_split.txt": "\n".join(f"{i} {int(i < 10)}" for i in range(20)),
    }.items():
        (bird / file).write_text(text)

    def data(seed):
        return CUB200(root=".", validation=0.4, split_seed=seed)

    shared = set(data(0).split("train").names) & set(data(1).split("validation").names)
    again = data(1)
    assert shared
    assert left(again, records(data(0), data(1)))[0] == 4 - len(shared)
    assert not set(again.split("validation").names) & shared
    other = records(data(0), data(1))
    assert left(data(2), ImageRecord(other.names, other.contents, other.parts, "Other"))[0]


def test_test_images_of_an_official_set_in_a_folder_that_was_trained_on_are_left_out():
    test_names_tell_the_images_of_sets_whose_files_are_not_read()
    for i in range(20):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(f"CUB_200_2011/images/{i}.jpg")
    shutil.copytree("CUB_200_2011/images", "mine/birds")
    shutil.copytree("CUB_200_2011/images", "mine/others")
    earlier = ImageFolder(root="mine", size=8, test=0, validation=0)
    data = CUB200(root=".", size=8, validation=0.2)
    number, said = left(data, records(earlier, CUB200(root=".", size=8, validation=0.2)), "test")
    assert (number, "10 of 10 images are left out" in said) == (0, True)


def test_records_of_a_chain_of_runs_and_of_runs_of_other_sets(tmp_path):
    first, second = Digits(split_seed=1), Digits(split_seed=2)
    record = Digits(split_seed=3).make_record().following(second.make_record().following(first.make_record()))
    record.save("images.safetensors")
    record = ImageRecord.load("images.safetensors")
    assert record.official == "Digits"
    assert record.count("earlier") == 2 * 1293
    seen = {*first.split("train").contents.tolist(), *second.split("train").contents.tolist()}
    data = Digits(split_seed=3)
    left(data, record)
    assert not seen & set(data.split("validation").contents.tolist())


def test_weights_of_the_package_have_seen_all_training_images(monkeypatch):
    monkeypatch.setattr(CIFAR10, "official", (40, 20, 10))

    def read(self, split):
        images = torch.arange(40, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 32, 32)
        return None if split == "validation" else Split(images, torch.arange(40) % 10, "cifar")

    monkeypatch.setattr(CIFAR10, "read", read)
    (record,) = seen_before("anytimenet_cifar10", {}, CIFAR10(root="."))  # trained with validation=0
    assert record.count("train") == 40
    assert left(CIFAR10(validation=0.2), CIFAR10(validation=0.2).make_record().following(record))[0] == 0
    assert seen_before("anytimenet_cifar10", {}, Digits()) == []


def test_a_run_without_a_record_whose_images_are_gone_is_named():
    model = anytime.create_model("ann", units=1, width=2)
    recipe = {"data": {"class_path": "ImageFolder", "init_args": {"root": "gone"}}}
    model.info = ModelInfo(data="ImageFolder", recipe=recipe)
    model.save("old")
    (Path("photos") / "a").mkdir(parents=True)
    with pytest.warns(UserWarning, match=r"old has no images\.safetensors, so the images that it was trained on are unknown"):
        assert seen_before("old", {}, ImageFolder(root="photos")) == []


@pytest.mark.parametrize("file", ["a/model.safetensors", "a/checkpoints/last.ckpt"])
def test_a_pretrained_file_in_a_run_directory_brings_its_record(file):
    Path("a/checkpoints").mkdir(parents=True)
    Digits(validation=0).make_record().save("a/images.safetensors")
    recipe = {"model": {"class_path": "attach", "init_args": {"pretrained": file}}}
    (record,) = seen_before(None, recipe, Digits())
    assert record.count("train") == 1437
    assert seen_before(None, {"model": {"class_path": "attach", "init_args": {"pretrained": True}}}, Digits()) == []


def test_a_training_from_a_pretrained_file_leaves_its_images_out(exits):
    network = exits().config["arguments"]["backbone"]
    common = ["--model=attach", f"--model.backbone={network}", "--model.exits=2", "--data=Digits", "--data.limit=96"]
    Path("a").mkdir()
    torch.save(exits().backbone.state_dict(), "a/weights.pt")
    Digits(validation=0).make_record().save("a/images.safetensors")
    with pytest.warns(UserWarning, match="144 of 144 images are left out"):
        assert main(["train", *common, "--epochs=1", "--progress=false", "--model.pretrained=a/weights.pt", "--run=b"]) == 0
    assert read_record(Path("b")).count("earlier") == 1437


def folder(root: Path, number: int = 40) -> Path:
    generator = np.random.default_rng(0)
    for name in "ab":
        (root / name).mkdir(parents=True)
        for i in range(number):
            Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(root / name / f"{i:03d}.png")
    return root


def test_files_that_change_before_a_training_is_resumed_are_recorded(interrupt):
    folder(Path("photos"))
    flags = ["--model=ann", "--model.units=1", "--model.width=2", "--data=ImageFolder", "--data.root=photos"]
    job = build(parse([*flags, "--data.size=8", "--data.batch_size=8", "--epochs=1", "--progress=false"]))
    parts = (job.model, job.data, job.objective, job.optimizer, job.schedule, job.settings, "run")
    with pytest.raises(Interrupted):
        fit(*parts, callbacks=[interrupt(2)])
    train, test = list(job.data.split("train").names), list(job.data.split("test").names)
    shutil.copy(f"photos/{test[0]}", f"photos/{train[0]}")
    again = build(job.config, True, Path("run"))
    with pytest.warns(UserWarning, match=rf"1 of {len(train)} training images of this run have changed since it began"):
        fit(again.model, again.data, *parts[2:], resume=True)
    after = ImageFolder(root="photos", size=8)
    after.use_record(read_record(Path("run")))
    with pytest.warns(UserWarning, match=rf"1 of {len(test)} images are left out"):
        assert test[0] not in set(after.split("test").names)
