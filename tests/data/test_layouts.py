"""Folders of images as people have them: names of splits, links, hidden files, suffixes, Unicode."""

import os
import warnings

import pytest
import torch
from PIL import Image

from anytime import cli
from anytime.data import ImageFolder, decoding
from anytime.data.decoding import FORMATS, is_image
from anytime.data.layouts import Layout, find_layout, list_images


def image(path, colour=(9, 9, 9)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), colour).save(path, format="PNG")
    return path


def classes(folder, names=("cat", "dog")):
    for name in names:
        for i in range(4):
            image(folder / name / f"{i}.png")


@pytest.mark.parametrize(
    ("train", "validation", "test"),
    [
        ("train", "val", "test"),
        ("Train", "Valid", "Test"),
        ("training", "validation", "testing"),
        ("TRAINING", "VALIDATION", "TESTING"),
        ("train", "valid", None),
        ("Training", None, "Testing"),
    ],
)
def test_names_of_splits(tmp_path, train, validation, test):
    found = {}
    for part, name in {"train": train, "validation": validation, "test": test}.items():
        if name:
            classes(tmp_path / name)
            found[part] = tmp_path / name
    assert find_layout(tmp_path) == Layout(**found)
    data = ImageFolder(root=tmp_path, size=8)
    data.setup()
    assert data.class_names == ["cat", "dog"]
    assert all(name.startswith(f"{test or validation}/") for name in data.split("test").names)
    if validation and test:
        assert all(name.startswith(f"{validation}/") for name in data.split("validation").names)


@pytest.mark.parametrize("name", ["train", "Test", "valid"])
def test_a_class_may_be_called_like_a_split(tmp_path, name):
    classes(tmp_path, ("bus", name))
    assert find_layout(tmp_path) == Layout(tmp_path, flat=True)
    assert name in ImageFolder(root=tmp_path, size=8).read_names()[0]
    classes(tmp_path / "nested/train", ("bus", "train"))
    classes(tmp_path / "nested/test", ("bus", "train"))
    assert find_layout(tmp_path / "nested") == Layout(tmp_path / "nested/train", None, tmp_path / "nested/test")


@pytest.mark.parametrize(
    ("folders", "readings"),
    [
        (
            ["train/cat", "train/dog", "test/cat", "test/dog", "cat"],
            r"splits 'test', 'train' beside other folders 'cat', or as",
        ),
        (
            ["cat", "dog", "test/cat", "test/dog"],
            r"splits 'test' beside other folders 'cat', 'dog', or as the classes 'cat', 'dog'",
        ),
        (
            ["train", "test"],
            r"splits 'test', 'train', whose images are in no class folders, or as the classes 'test', 'train'",
        ),
        (
            ["cat/train", "cat/test", "dog/train", "dog/test"],
            r"as the classes 'cat', 'dog', or 'cat' holds the splits 'test', 'train'",
        ),
        (["photos/train/cat", "photos/test/cat"], r"the classes 'photos', or 'photos' holds the splits .* by --data\.root"),
        (["train/cat", "Training/cat", "test/cat"], r"both 'Training', 'train' mean the train split"),
    ],
)
def test_ambiguous_layouts_are_errors_before_training(tmp_path, folders, readings):
    for name in folders:
        image(tmp_path / name / "0.png")
    with pytest.raises(ValueError, match=rf"can be read in two ways: .*{readings}"):
        ImageFolder(root=tmp_path, size=8).setup("fit")


def test_splits_without_training_images(tmp_path):
    classes(tmp_path / "test")
    with pytest.raises(FileNotFoundError, match="holds 'test', but no folder 'train'"):
        find_layout(tmp_path)


def test_folders_without_images_are_no_classes_beside_splits(tmp_path):
    classes(tmp_path / "train")
    classes(tmp_path / "test")
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/labels.csv").write_text("x")
    assert find_layout(tmp_path) == Layout(tmp_path / "train", None, tmp_path / "test")


def test_hidden_files_and_folders_are_ignored_at_any_depth(tmp_path):
    classes(tmp_path)
    for name in (
        "cat/._0.png",
        "cat/.ipynb_checkpoints/0.png",
        "cat/in/.Trash/deep/0.png",
        "__MACOSX/cat/._0.png",
        ".git/0.png",
    ):
        image(tmp_path / name)
    data = ImageFolder(root=tmp_path, size=8)
    data.setup()
    assert data.class_names == ["cat", "dog"]
    assert sum(len(data.split(part)) for part in ("train", "validation", "test")) == 8


def test_links_that_lead_back_up_are_not_followed_again(tmp_path):
    classes(tmp_path / "photos")
    elsewhere = image(tmp_path / "elsewhere/more.png").parent
    (tmp_path / "photos/cat/up").symlink_to(tmp_path / "photos")
    (tmp_path / "photos/cat/again").symlink_to(tmp_path / "photos/cat")
    (tmp_path / "photos/dog/more").symlink_to(elsewhere)
    (tmp_path / "photos/all").symlink_to(tmp_path / "photos")
    (elsewhere / "loop").symlink_to(elsewhere)
    data = ImageFolder(root=tmp_path / "photos", size=8)
    data.setup()
    assert data.class_names == ["cat", "dog"]
    every = [name for part in ("train", "validation", "test") for name in data.split(part).names]
    assert sorted(every) == [*(f"cat/{i}.png" for i in range(4)), *(f"dog/{i}.png" for i in range(4)), "dog/more/more.png"]


def test_files_are_taken_by_content_and_the_others_counted(tmp_path):
    picture = Image.new("RGB", (16, 16), (200, 30, 30))
    (tmp_path / "cat").mkdir()
    picture.save(image(tmp_path / "dog/image.png"))
    suffixes = {".jfif": "JPEG", ".jpe": "JPEG", "": "PNG", ".JPG": "PNG", ".dat": "BMP", ".qoi": "QOI", ".ppm": "PPM"}
    suffixes |= {".jp2": "JPEG2000", ".avif": "AVIF", ".webp": "WEBP", ".tif": "TIFF", ".gif": "GIF", ".ico": "ICO"}
    taken = {suffix: kind for suffix, kind in suffixes.items() if kind in Image.SAVE and kind in FORMATS}
    assert len(taken) > 6
    for suffix, kind in taken.items():
        picture.save(tmp_path / f"cat/image{suffix}", format=kind)
    for name in ("a.txt", "b.txt", "Thumbs.db", "README", "P6 is a road.md"):
        (tmp_path / "cat" / name).write_text(f"{name}: no image, though it may begin like one")
    (tmp_path / "cat/not.jpg").write_bytes(b"<html>")
    (tmp_path / "cat/empty.png").touch()
    picture.save(tmp_path / "cat/figure.eps")  # opening one would start another program
    os.mkfifo(tmp_path / "cat/pipe.png")
    data = ImageFolder(root=tmp_path, size=8, validation=0, test=0)
    expected = "1 file .db, 1 file .eps, 1 file .jpg, 1 file .md, 1 file without suffix, 2 files .png, 2 files .txt left out"
    with pytest.warns(UserWarning, match=f"{expected}: not images in a supported format"):
        train = data.split("train")
    assert sorted(train.names) == [*sorted(f"cat/image{suffix}" for suffix in taken), "dog/image.png"]
    for images, _ in data.train_dataloader():
        assert torch.allclose(images.mean((0, 2, 3)) * 255, torch.tensor([200.0, 30.0, 30.0]), atol=8)


def test_text_that_begins_like_an_image_is_none(tmp_path):
    for name, head in {"a": b"BMW is a make of cars", "b": b"P6 road", "c": b"GIF", "d": b"", "e": b"\xff"}.items():
        (tmp_path / name).write_bytes(head)
        assert not is_image(str(tmp_path / name))


def test_a_folder_whose_name_is_not_utf8(tmp_path):
    classes(tmp_path)
    os.mkdir(os.fsencode(tmp_path) + b"/caf\xe9")
    with pytest.raises(ValueError, match=r"the name of the folder b'caf\\xe9' is not UTF-8; rename it"):
        ImageFolder(root=tmp_path, size=8).setup("fit")


def test_a_file_whose_name_is_not_utf8_is_an_image_like_others(tmp_path):
    classes(tmp_path)
    (tmp_path / "cat/0.png").rename(os.fsdecode(os.fsencode(tmp_path) + b"/cat/caf\xe9.png"))
    data = ImageFolder(root=tmp_path, size=8, validation=0, test=0)
    assert "cat/caf\udce9.png" in list(data.split("train").names)
    assert len(next(iter(data.train_dataloader()))[1]) == 8
    assert len(data.make_record()) == 8


def test_composed_and_decomposed_names_are_one_class(tmp_path):
    classes(tmp_path / "train", ("cafe\u0301", "dog"))
    classes(tmp_path / "train", ("caf\u00e9",))
    classes(tmp_path / "test", ("caf\u00e9", "dog"))
    data = ImageFolder(root=tmp_path, size=8, validation=0)
    data.setup()
    assert data.class_names == ["caf\u00e9", "dog"]
    assert torch.bincount(data.split("train").labels).tolist() == [8, 4]
    assert ImageFolder(root=tmp_path, size=8, classes="CAFE\u0301").split("test").labels.tolist() == [0] * 4


def test_a_folder_that_may_not_be_read_is_an_error(tmp_path, monkeypatch):
    classes(tmp_path)
    (tmp_path / "cat/closed").mkdir()

    def scandir(path, closed=os.scandir):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return closed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(PermissionError):
        list_images(tmp_path / "cat")


def test_only_supported_formats_are_opened(tmp_path):
    assert {"JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM"} <= set(FORMATS)
    assert not {"EPS", "WMF", "FITS", "HDF5", "MPEG", "PSD"} & set(FORMATS)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", format="EPS")
    with warnings.catch_warnings(), pytest.raises(ValueError, match=r"a\.png is damaged or in an unexpected format"):
        decoding.open_image(tmp_path / "a.png")


def test_commands_print_a_warning_in_one_line():
    before = warnings.formatwarning
    with cli._warnings_in_one_line("train"):
        text = warnings.formatwarning(UserWarning("1 file .\x1bx\nleft out"), UserWarning, "folders.py", 7)
    assert text == "anytime train: warning: 1 file .\\x1bx left out\n"
    assert warnings.formatwarning is before
