import subprocess
import sys
from types import SimpleNamespace

import jsonargparse
import pytest
import torch

import anytime.data
from anytime.data import CIFAR100, Digits, ImageData, Split, create_data, default_root, describe, list_datasets, resolve


class Stripes(ImageData):
    """A third-party data set."""

    label = 1
    size = 4

    def read_names(self):
        return [["flat", "striped"]]

    def read(self, split):
        if split == "validation":
            return None
        targets = torch.tensor([0, self.label] * 10)
        images = torch.zeros(20, 3, self.size, self.size, dtype=torch.uint8)
        images[:, :, ::2] = targets[:, None, None, None].to(torch.uint8) * 255
        return Split(images, targets, "stripes")

    input_size = (3, 4, 4)


@pytest.mark.parametrize("name", list_datasets())
def test_every_set_is_described_and_can_be_named(name):
    dataset = getattr(anytime.data, name)
    assert issubclass(dataset, ImageData)
    assert name in anytime.data.__all__
    assert resolve(name.upper()) == resolve(f"anytime.data.{name}") == f"anytime.data.{name}"
    if name != "ImageFolder":
        assert dataset.homepage.startswith("http")
        assert dataset.license
        assert dataset.citation
        assert dataset.official


def test_create():
    assert isinstance(create_data("cifar-100", labels="coarse", batch_size=7), CIFAR100)
    assert create_data("digits").batch_size == 128


def test_a_class_by_import_path(monkeypatch):
    monkeypatch.setitem(sys.modules, "somebody", SimpleNamespace(Stripes=Stripes, number=3))
    assert resolve("somebody.Stripes") == "somebody.Stripes"
    data = create_data("somebody.Stripes")
    data.setup()
    assert data.std == pytest.approx([3**0.5 / 4] * 3, abs=0.02)
    for name in ("somebody.Stripe", "nobody.Stripes"):
        with pytest.raises(ValueError, match=f"data set '{name}' cannot be imported"):
            resolve(name)
    with pytest.raises(ValueError, match=r"data set 'somebody\.number' is not a subclass of ImageData"):
        resolve("somebody.number")


def test_unknown_names_get_the_nearest():
    with pytest.raises(
        ValueError, match=r"unknown data set 'ciffar10'; did you mean 'cifar10'\?; valid: Digits, .*, ImageFolder"
    ):
        create_data("ciffar10")
    with pytest.raises(ValueError, match=r"unknown augment 'standart'; did you mean 'standard'\?"):
        Digits(augment="standart")
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        Digits(batch_size=0)
    with pytest.raises(ValueError, match="no class matches 'nine'"):
        Digits(classes="nine").setup()


def test_describe(tmp_path):
    rows = {row.name: row for row in describe(tmp_path)}
    assert list(rows) == list_datasets()
    assert [name for name, row in rows.items() if row.found] == ["Digits"]
    assert (rows["GTSRB"].train, rows["GTSRB"].test, rows["GTSRB"].classes) == (39_209, 12_630, 43)
    (tmp_path / "cifar-10-batches-py").mkdir()
    assert {row.name for row in describe(tmp_path) if row.found} == {"Digits", "CIFAR10"}


def test_root_comes_from_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("ANYTIME_DATA", str(tmp_path))
    assert default_root() == Digits().root == tmp_path
    monkeypatch.delenv("ANYTIME_DATA")
    assert default_root().parts[-3:] == (".cache", "anytime", "data")
    assert Digits(root="~/data").root.is_absolute()


def test_every_split_is_read_once(monkeypatch):
    asked = []
    original = Digits.read
    monkeypatch.setattr(Digits, "read", lambda self, split: asked.append(split) or original(self, split))
    data = Digits()
    data.setup("test")
    assert asked == ["test"]
    for _ in range(2):
        data.setup()
        data.train_dataloader(), data.val_dataloader(), data.test_dataloader(), data.mean
    assert sorted(asked) == ["test", "train", "validation"]


def test_limit_is_stratified_and_does_not_change_validation():
    whole, little = Digits(), Digits(limit=100)
    assert torch.equal(whole.val_dataloader().targets, little.val_dataloader().targets)
    assert torch.bincount(little.train_dataloader().targets).tolist() == pytest.approx([10] * 10, abs=1)
    assert Digits(limit=10**6).train_dataloader().size == whole.train_dataloader().size
    limited = {image.numpy().tobytes() for image in little.train_dataloader().images}
    assert limited <= {image.numpy().tobytes() for image in whole.train_dataloader().images}


def test_classes_are_chosen_in_every_split():
    data = Digits(classes=["7", "[12]"], validation=30)
    data.setup()
    assert data.class_names == ["1", "2", "7"]
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        assert loader.targets.unique().tolist() == [0, 1, 2]
    assert data.val_dataloader().size == 30


@pytest.mark.parametrize(
    ("augment", "augmented"), [("standard", True), ("none", False), ("crop", True), ("flip", True), ("crop+flip", True)]
)
def test_only_training_images_are_augmented(augment, augmented):
    data = Digits(augment=augment, batch_size=32)
    loader = data.train_dataloader()
    images, _ = next(iter(loader))
    plain = loader.images[loader._order(0)[:32]].float() / 255
    assert torch.equal(images, plain) != augmented
    for plain in (data.val_dataloader(), data.test_dataloader()):  # MSDNet's published code augments validation images
        images, _ = next(iter(plain))
        assert torch.equal(images, plain.images[: len(images)].float() / 255)


def test_processes_come_from_the_trainer():
    data = Digits(batch_size=16)
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    data.trainer = SimpleNamespace(strategy=strategy, global_rank=1, world_size=2)
    loader = data.train_dataloader()
    assert (loader.rank, loader.world_size) == (1, 2)
    data.trainer = None
    whole = Digits(batch_size=32).train_dataloader()
    assert torch.equal(next(iter(whole))[0][16:], next(iter(loader))[0])


def test_wrong_readers_are_reported(monkeypatch):
    monkeypatch.setattr(Stripes, "label", 2)
    with pytest.raises(ValueError, match=r"stripes: label 2 is outside 0\.\.1"):
        Stripes().setup()
    monkeypatch.setattr(Stripes, "label", 0)
    with pytest.raises(ValueError, match="stripes: no train images of the chosen classes"):
        Stripes(classes="striped").setup()
    monkeypatch.setattr(Stripes, "size", 6)
    with pytest.raises(ValueError, match=r"stripes: images are \[3, 6, 6\], not \[3, 4, 4\]"):
        Stripes().setup()


@pytest.mark.parametrize("classes", ['["cat", "dog"]', "*terrier*", "cat"])
def test_the_command_line_knows_every_argument(classes):
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(ImageData, "data")
    flags = {"root": "x", "classes": classes, "labels": "both", "validation": "500", "limit": "100", "augment": "flip"}
    parsed = parser.parse_args(
        ["--data", "anytime.data.CIFAR100", *(f"--data.{name}={value}" for name, value in flags.items())]
    )
    data = parser.instantiate(parsed).data
    assert isinstance(data, CIFAR100)
    assert data.classes == (["cat", "dog"] if "[" in classes else classes)
    assert (data.labels, data.validation, data.limit, data.augment) == ("both", 500, 100, "flip")
    for name in list_datasets():
        parser.parse_args([f"--data=anytime.data.{name}", "--data.root=x", "--data.seed=3"])


def test_import_anytime_does_not_import_lightning():
    code = "import sys, anytime; sys.exit('lightning' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
