"""Folders as downloads and exports have them: each is read right, or an error says what was found and what to do."""

import re
from pathlib import Path

import pytest
from PIL import Image

from anytime.data import ImageFolder
from anytime.data.folder_names import is_hidden
from anytime.data.layouts import Layout, find_layout
from anytime.training.build import build
from anytime.training.config import parse


def write(root: Path, paths: list[str], number: int = 3) -> Path:
    """Folders with images, and other files with text."""
    for path in paths:
        if path.endswith("/"):
            (root / path).mkdir(parents=True, exist_ok=True)
            for i in range(number):
                Image.new("RGB", (8, 8), (i, len(path), 0)).save(root / path / f"{i}.png")
        else:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text("text")
    return root


def both(train: str, test: str) -> list[str]:
    return [f"{train}/cat/", f"{train}/dog/", f"{test}/cat/", f"{test}/dog/"]


READ = {  # downloads that are read, with their training, validation and test folders
    "Kaggle, cats and dogs": (both("training_set", "test_set"), "training_set", None, "test_set"),
    "Kaggle, cats and dogs, doubled": (
        [*both("training_set/training_set", "test_set/test_set"), "training_set/training_set/_DS_Store"],
        *("training_set/training_set", None, "test_set/test_set"),
    ),
    "Kaggle, Intel scenes": (
        both("seg_train/seg_train", "seg_test/seg_test"),
        "seg_train/seg_train",
        None,
        "seg_test/seg_test",
    ),
    "Kaggle, signs": (both("asl_alphabet_train", "asl_alphabet_test"), "asl_alphabet_train", None, "asl_alphabet_test"),
    "Kaggle, chest X-rays": ([*both("train", "test"), "val/cat/", "val/dog/", "__MACOSX/train/cat/"], "train", "val", "test"),
    "Kaggle, fruits": ([*both("Training", "Test"), "papers/fruits.pdf", "LICENSE"], "Training", None, "Test"),
    "Kaggle, images": (both("train_images", "test_images"), "train_images", None, "test_images"),
    "with hyphens": (both("train-images", "val-images"), "train-images", "val-images", None),
    "with spaces": (both("Training Set", "Validation Set"), "Training Set", "Validation Set", None),
    "in camel case": (both("TrainingSet", "TestSet"), "TrainingSet", None, "TestSet"),
    "in one word": (both("trainset", "testset"), "trainset", None, "testset"),
    "years": (both("train2017", "val2017"), "train2017", "val2017", None),
    "iNaturalist 2021": (both("2021_train", "2021_valid"), "2021_train", "2021_valid", None),
    "Keras, cats and dogs": ([*both("train", "validation"), "vectorize.py"], "train", "validation", None),
    "fast.ai, imagenette": ([*both("train", "val"), "noisy_imagenette.csv", ".DS_Store"], "train", "val", None),
    "torchvision, Country211": ([*both("train", "test"), "valid/cat/", "valid/dog/"], "train", "valid", "test"),
    "Roboflow, classification": (
        [*both("train", "test"), "valid/cat/", "valid/dog/", "README.roboflow.txt", "README.dataset.txt"],
        *("train", "valid", "test"),
    ),
    "Open Images by OIDv4": (
        [*both("train", "test"), "train/cat/Label/0.txt", "test/cat/Label/0.txt", "csv_folder/classes.csv"],
        *("train", None, "test"),
    ),
    "unpacked twice": (both("train/train", "test/test"), "train/train", None, "test/test"),
    "unpacked three times": (both("train/train/Train", "test/test"), "train/train/Train", None, "test/test"),
}


@pytest.mark.filterwarnings("ignore:.* left out. not images")
@pytest.mark.parametrize("name", READ)
def test_downloads_that_are_read(tmp_path, name):
    paths, *parts = READ[name]
    write(tmp_path, paths)
    assert find_layout(tmp_path) == Layout(*(part and tmp_path / part for part in parts))
    data = ImageFolder(root=tmp_path, size=8)
    data.setup("fit")
    assert data.class_names == ["cat", "dog"]
    data.setup("test")
    assert len(data.split("test")) == 6


REFUSED = {  # downloads that are none, or could be read in two ways, with what the error says
    "Kaggle, dogs and cats": (["train/", "test1/"], "splits 'test1', 'train', whose images are in no class folders"),
    "only unsorted training images": (["train/", "train.csv"], "holds images only in 'train', but a classifier needs two"),
    "Kaggle, Intel scenes whole": (
        [*both("seg_train/seg_train", "seg_test/seg_test"), "seg_pred/seg_pred/"],
        "splits 'seg_test', 'seg_train' beside other folders 'seg_pred'",
    ),
    "Kaggle, test images without labels": ([*both("train", "val"), "test/"], "test holds images, but no class folders"),
    "Kaggle, flowers, doubled": (
        ["daisy/", "rose/", "flowers/daisy/", "flowers/rose/"],
        "'flowers' is a class, or it holds further images of the class 'daisy'; move it away",
    ),
    "Kaggle, chest X-rays, doubled": (
        [*both("chest/train", "chest/test"), *both("train", "test")],
        "beside other folders 'chest'",
    ),
    "Kaggle, animals in a folder": (["raw-img/cane/", "raw-img/gatto/", "translate.py"], "'cane', 'gatto'; if these are"),
    "Kaggle, skin": (
        ["HAM10000_images_part_1/", "HAM10000_images_part_2/", "HAM10000_metadata.csv"],
        "no classes but pieces of one set",
    ),
    "NIH, chest X-rays": (["images_001/images/", "images_002/images/"], "no classes but pieces of one set"),
    "folds": (["fold_0/cat/", "fold_0/dog/", "fold_1/cat/", "fold_1/dog/"], "no classes but pieces of one set"),
    "only a training folder, one level too high": (
        ["data/train/cat/", "data/train/dog/"],
        "'data' holds the splits 'train'; name",
    ),
    "only a training folder inside a training folder": (["train/data/cat/", "train/data/dog/"], r"train/data by --data\.root"),
    "torchvision, EuroSAT": (["2750/Forest/", "2750/River/"], r"name .*2750 by --data\.root"),
    "torchvision, Caltech 101": (
        ["101_ObjectCategories/ant/", "101_ObjectCategories/bass/", "Annotations/ant/1.mat"],
        r"name .*101_ObjectCategories by --data\.root",
    ),
    "torchvision, Food-101": (["images/pie/", "images/soup/", "meta/train.json"], r"name .*images by --data\.root"),
    "torchvision, DTD": (
        ["images/banded/", "images/dotted/", "labels/train1.txt", "imdb/imdb.mat"],
        "'images', which holds 'banded', 'dotted'; if these are the classes",
    ),
    "torchvision, pets": (["images/", "annotations/list.txt"], "holds images only in 'images'"),
    "torchvision, flowers": (["jpg/", "imagelabels.mat"], "holds images only in 'jpg'"),
    "VOC": (["JPEGImages/", "SegmentationClass/", "Annotations/1.xml"], "set for detection or segmentation"),
    "COCO": (
        ["train2017/", "val2017/", "annotations/instances.json"],
        "splits 'train2017', 'val2017', whose images are in no",
    ),
    "YOLO, Ultralytics": (["images/train/", "images/val/", "labels/train/0.txt"], "'images' holds the splits 'train', 'val'"),
    "YOLO, only training images": (["images/train/", "labels/train/0.txt"], "'images' holds the splits 'train'; name"),
    "Roboflow, YOLO": (
        ["train/images/", "train/labels/0.txt", "valid/images/", "test/images/", "data.yaml"],
        "train holds images only in 'images', but a classifier needs two classes",
    ),
    "Roboflow, segmentation": (
        ["train/images/", "train/masks/", "valid/images/", "valid/masks/"],
        "detection or segmentation",
    ),
    "Roboflow, COCO or classes in a table": (
        ["train/", "valid/", "train/_classes.csv"],
        "whose images are in no class folders",
    ),
    "Open Images by FiftyOne": (["train/data/", "train/labels/a.csv", "test/data/"], "train holds images only in 'data'"),
    "Label Studio": (["images/", "labels/0.txt", "classes.txt", "notes.json"], "holds images only in 'images'"),
    "CVAT": (["obj_train_data/", "obj.names", "train.txt"], "holds images only in 'obj_train_data'"),
    "a copy of a split": (both("train", "train (1)"), "both 'train', 'train \\(1\\)' mean the train split"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_downloads_that_are_refused_before_training(tmp_path, name):
    paths, said = REFUSED[name]
    write(tmp_path, paths)
    with pytest.raises((ValueError, FileNotFoundError), match=said) as caught:
        build(parse(["--model=ann", "--data=ImageFolder", f"--data.root={tmp_path}", "--data.size=8"]))
    assert "\n" not in str(caught.value)
    assert re.search(r"move|name|keep one|belong", str(caught.value))


def test_a_tree_of_classes_is_read_at_its_top_with_a_warning(tmp_path):
    write(tmp_path, ["a/abbey/", "a/airport/", "b/bar/", "b/barn/"])
    with pytest.warns(UserWarning, match=r"the classes are 'a', 'b', not the folders inside them, such as 'abbey', 'airport'"):
        assert find_layout(tmp_path).flat


@pytest.mark.parametrize(
    "classes", [["valid", "invalid"], ["bus", "train"], ["part 1", "part 2"], ["steam train", "test bench"]]
)
def test_classes_with_telling_names_are_classes(tmp_path, classes):
    write(tmp_path, [f"{name}/" for name in classes])
    assert find_layout(tmp_path) == Layout(tmp_path, flat=True)
    write(tmp_path / "split", [f"{part}/{name}/" for part in ("train", "test") for name in classes])
    assert find_layout(tmp_path / "split") == Layout(tmp_path / "split/train", None, tmp_path / "split/test")


LITTER = ["@eaDir", "__MACOSX", ".ipynb_checkpoints", "#recycle", "@Recycle", "$RECYCLE.BIN", "System Volume Information"]


def test_litter_of_systems_is_ignored_at_any_depth(tmp_path):
    assert all(map(is_hidden, [*LITTER, "lost+found", "._a.jpg", ".Trashes", "FOUND.000", "Network Trash Folder"]))
    write(tmp_path, ["cat/", "dog/"])
    for name in LITTER:
        write(tmp_path, [f"{name}/", f"{name}/cat/0.png/", f"cat/{name}/0.png/", f"dog/deep/{name}/"])
    data = ImageFolder(root=tmp_path, size=8, validation=0, test=0)
    assert data.read_names() == [["cat", "dog"]]
    assert sorted(data.split("train").names) == [f"{name}/{i}.png" for name in ("cat", "dog") for i in range(3)]


def test_images_beside_the_class_folders_are_counted(tmp_path):
    write(tmp_path, ["cat/", "dog/", "./"])
    data = ImageFolder(root=tmp_path, size=8, validation=0, test=0)
    with pytest.warns(UserWarning, match="3 images are left out, because they lie in no class folder"):
        assert len(data.split("train")) == 6
