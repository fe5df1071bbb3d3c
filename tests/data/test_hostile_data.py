"""Damaged and hostile data: each ends in one sentence, soon."""

import os
import time
import zipfile
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from anytime.cli import main
from anytime.data import GTSRB, SVHN, Digits, ImageData, ImageFolder, Split, StanfordCars, read_image
from anytime.data.files import check_labels, errors_naming, read_table
from anytime.data.taxonomy import from_paths, read_taxonomy, wordnet

DEPTH = 5000


class Pixels(ImageData):
    """Images and labels as given."""

    input_size = (1, 2, 2)
    images = torch.zeros(8, 1, 2, 2, dtype=torch.uint8)
    targets = torch.arange(8) % 2

    def read_names(self):
        return [["a", "b"]]

    def read(self, split):
        return None if split == "validation" else Split(self.images, self.targets, "pixels")


def test_labels_and_pixels_that_are_nan(monkeypatch):
    monkeypatch.setattr(Pixels, "targets", torch.full((8,), torch.nan))
    with pytest.raises(ValueError, match=r"pixels: labels must be whole numbers, got torch\.float32"):
        Pixels().setup()
    monkeypatch.setattr(Pixels, "targets", torch.zeros(8, dtype=torch.int64))
    monkeypatch.setattr(Pixels, "images", torch.full((8, 1, 2, 2), torch.nan))
    with pytest.raises(ValueError, match=r"pixels: images must be uint8, got torch\.float32"):
        Pixels().setup()
    with pytest.raises(ValueError, match="file: labels must be whole numbers"):
        check_labels(torch.tensor([1.0, torch.nan]), 2, "file")


@pytest.mark.parametrize("wrong", [np.nan, 1.5])
def test_labels_in_files_that_are_no_whole_numbers(tmp_path, wrong):
    savemat(tmp_path / "test_32x32.mat", {"X": np.zeros((32, 32, 3, 2), np.uint8), "y": np.array([[wrong], [3.0]])})
    with pytest.raises(ValueError, match=r"test_32x32\.mat is damaged .*not whole numbers from 1 to 10"):
        SVHN(root=tmp_path).setup("test")
    frames = {"images": np.zeros((2, 4, 4, 3), np.uint8), "roi": np.tile([0, 0, 1, 1], (2, 1)), "track": ["0_0", "0_1"]}
    (tmp_path / "gtsrb32").mkdir()
    np.savez(tmp_path / "gtsrb32/train.npz", **frames, labels=np.array([wrong, 1.0]))
    with pytest.raises(ValueError, match=r"train\.npz is damaged .*labels must be whole numbers"):
        GTSRB(root=tmp_path).setup("fit")
    np.savez(tmp_path / "gtsrb32/train.npz", **frames | {"roi": np.full((2, 4), np.nan)}, labels=np.array([1, 1]))
    with pytest.raises(ValueError, match=r"train\.npz is damaged .*roi finite"):
        GTSRB(root=tmp_path).setup("fit")
    cars = tmp_path / "stanford_cars"
    (cars / "devkit").mkdir(parents=True)
    (cars / "cars_train").mkdir()
    columns = ["bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname"]
    rows = np.array([(1, 1, 2, 2, wrong, "a.png")], [(name, "O") for name in columns])
    savemat(cars / "devkit/cars_train_annos.mat", {"annotations": rows})
    savemat(cars / "devkit/cars_meta.mat", {"class_names": np.array(["a", "b"], object)})
    with pytest.raises(ValueError, match=r"cars_train_annos\.mat is damaged .*a class is not a whole number"):
        StanfordCars(root=tmp_path).setup("fit")


def test_images_without_any_contrast(tmp_path, capsys):
    assert Pixels().mean == [0]
    with pytest.raises(ValueError, match="pixels: channel 0 of the training images is 0 everywhere, so its std is 0"):
        Pixels().std  # noqa: B018
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(4):
            Image.new("RGB", (8, 8), (i * 50, 90, i)).save(tmp_path / f"{name}/{i}.png")
    flags = f"--model serial_resnet18 --model.width 4 --data ImageFolder --data.root {tmp_path} --data.size 8 --epochs 1"
    assert main(["train", *flags.split(), "--run", str(tmp_path / "run")]) == 1
    error = capsys.readouterr().err
    assert "channel 1 of the training images is 0.353 everywhere" in error
    assert len(error.strip().splitlines()) == 1


def seconds(act):
    start = time.perf_counter()
    act()
    return time.perf_counter() - start


@pytest.mark.parametrize("form", ["pairs", "row", "path"])
def test_taxonomies_thousands_of_levels_deep(tmp_path, form):
    chain = [f"level{i}" for i in range(DEPTH)]
    lines = {
        "pairs": [f"{child},{parent}" for child, parent in pairwise(chain)],
        "row": [",".join(chain)],
        "path": [" > ".join(chain[::-1])],
    }[form]
    branch = f"{chain[-1]} > side" if form == "path" else f"side,{chain[-1]}"
    third = f"{chain[-1]} > {chain[-2]} > other" if form == "path" else f"other,{chain[-2]}"
    (tmp_path / "tree").write_text("\n".join([*lines, branch, third]))
    classes = [chain[0], "side", "other"]
    levels = []
    assert seconds(lambda: levels.append(read_taxonomy(tmp_path / "tree", classes).levels(classes))) < 5
    assert levels[0].sizes == (3, 2)


def test_a_cycle_of_thousands_of_labels(tmp_path):
    chain = [f"level{i}" for i in range(DEPTH)]
    start = time.perf_counter()
    with pytest.raises(ValueError, match=r"cycle level0 < level1 < level2 < level3 < level4 < \.\.\. < ") as caught:
        from_paths([[child, parent] for child, parent in zip(chain, [*chain[1:], chain[0]], strict=True)])
    assert time.perf_counter() - start < 5
    assert len(str(caught.value)) < 200


def test_a_deep_wordnet():
    def line(number, name, parent):
        pointer = f"001 @ {parent:08d} n 0000 " if parent else "000 "
        return f"{number:08d} 03 n 01 {name} 0 {pointer}| text"

    lines = [line(1, "root", 0), *(line(i, f"noun{i}", i - 1) for i in range(2, DEPTH))]
    lines += [line(DEPTH, "leaf", DEPTH - 1), line(DEPTH + 1, "twig", DEPTH - 1), line(DEPTH + 2, "other", DEPTH - 2)]
    found = []
    assert seconds(lambda: found.append(wordnet(lines, ["leaf", "twig", "other"]))) < 10
    assert found[0].levels(["leaf", "twig", "other"]).sizes == (3, 2)


def test_fields_of_200_kilobytes(tmp_path):
    long = "x" * 200_000
    (tmp_path / "tree.csv").write_text(f"a,{long}\nb,{long}\n")
    with pytest.raises(ValueError, match=r"tree\.csv is damaged or in an unexpected format: field larger than field limit"):
        read_taxonomy(tmp_path / "tree.csv", ["a", "b"])
    (tmp_path / "table.csv").write_text(f"Filename;ClassId\n{long};1\n")
    with pytest.raises(ValueError, match=r"table\.csv is damaged or in an unexpected format: field larger than field limit"):
        read_table(tmp_path / "table.csv", ["Filename", "ClassId"])


def test_a_taxonomy_is_found_whatever_the_form_of_unicode(tmp_path):
    (tmp_path / "tree.csv").write_text("cafe\u0301,drink\ntea,drink\nbread,food\n")
    levels = read_taxonomy(tmp_path / "tree.csv", ["caf\u00e9", "tea", "bread"]).levels(["caf\u00e9", "tea", "bread"])
    assert levels.names == (("caf\u00e9", "tea", "bread"), ("drink", "food"))


@pytest.mark.parametrize(
    "error", [RuntimeError("File not found or corrupted."), zipfile.BadZipFile("no zip"), EOFError("cut")]
)
def test_wrong_checksums_of_downloads(monkeypatch, error):
    def fetch(self):
        raise error

    monkeypatch.setattr(Digits, "fetch", fetch)
    with pytest.raises(ValueError, match=f"Optical recognition .*: the download failed: {error}; try again"):
        Digits(download=True).setup()


def test_headers_that_state_too_much(tmp_path):
    with pytest.raises(ValueError, match="x is damaged"), errors_naming("x"):
        raise MemoryError
    with pytest.raises(ValueError, match="x is damaged"), errors_naming("x"):
        raise RecursionError("maximum recursion depth exceeded")
    (tmp_path / "x.pgm").write_bytes(b"P5 99999 99999 255\n")
    with pytest.raises(ValueError, match=r"x\.pgm is damaged .*could be decompression bomb"):
        read_image(tmp_path / "x.pgm", (1, 8, 8))


def test_a_pipe_among_the_images_is_left_out(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        for i in range(3):
            Image.new("RGB", (8, 8)).save(tmp_path / name / f"{i}.png")
    os.mkfifo(tmp_path / "a/pipe.png")
    data = ImageFolder(root=tmp_path, size=8)
    with pytest.warns(UserWarning, match=r"1 file \.png left out"):
        assert sum(len(data.split(part)) for part in ("train", "validation", "test")) == 6
