"""Every data set, read from a few tiny files in its official layout."""

import hashlib
import struct
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from anytime.data import (
    CUB200,
    GTSRB,
    MNIST,
    SVHN,
    Digits,
    FashionMNIST,
    ImageFolder,
    ImageNet,
    StanfordCars,
    TinyImageNet,
)
from anytime.data.files import download_archives, read_arrays


def save(path, colour, size=(20, 16), box=None):
    """Saves a black image with a box of one colour (by default the whole image)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", size)
    image.paste(colour, box or (0, 0, *size))
    image.save(path, quality=100)


def write(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def read(data):
    """Images and targets of the first training batch and the first test batch."""
    data.setup()
    batches = [next(iter(loader)) for loader in (data.train_dataloader(), data.test_dataloader())]
    assert all(images.shape[1:] == data.input_size for images, _ in batches)
    return [item for batch in batches for item in batch]


def test_digits():
    data = Digits()
    data.setup()
    loaders = data.train_dataloader(), data.val_dataloader(), data.test_dataloader()
    assert [loader.size for loader in loaders] == [1293, 144, 360]
    assert all(torch.bincount(loader.targets).min() > 0.07 * loader.size for loader in loaders)
    values = loaders[0].images.unique().tolist()
    assert values == [round(value * 255 / 16) for value in range(17)]


def write_idx(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    header = struct.pack(">BBBB", 0, 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(header + array.astype(np.uint8).tobytes())


@pytest.mark.parametrize("dataset", [MNIST, FashionMNIST])
def test_mnist(tmp_path, dataset):
    folder = tmp_path / dataset.__name__ / "raw"
    for prefix in ("train", "t10k"):
        write_idx(folder / f"{prefix}-images-idx3-ubyte", np.full((3, 28, 28), 51))
        write_idx(folder / f"{prefix}-labels-idx1-ubyte", np.array([9, 0, 5]))
    data = dataset(root=tmp_path, validation=0, augment="none")
    images, _, _, targets = read(data)
    assert images.unique().tolist() == pytest.approx([0.2])
    assert targets.tolist() == [9, 0, 5]
    assert data.class_names[9] == ("9" if dataset is MNIST else "Ankle boot")

    path = folder / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ValueError, match="train-images-idx3-ubyte is damaged"):
        dataset(root=tmp_path).setup()
    write_idx(path, np.zeros((2, 28, 28)))
    with pytest.raises(ValueError, match=r"train-labels-idx1-ubyte is damaged.* 3 labels for 2 images"):
        dataset(root=tmp_path).setup()
    write_idx(path, np.zeros((2, 14, 14)))
    with pytest.raises(ValueError, match=r"images are \[1, 14, 14\]"):
        dataset(root=tmp_path).setup()


@pytest.mark.parametrize("folder", [".", "svhn"])
def test_svhn(tmp_path, folder):
    (tmp_path / folder).mkdir(exist_ok=True)
    for name, value in {"train": 10, "test": 20, "extra": 30}.items():
        pixels = np.full((32, 32, 3, 2), value, np.uint8)
        savemat(tmp_path / folder / f"{name}_32x32.mat", {"X": pixels, "y": np.array([[10], [3]], np.uint8)})
    _, targets, images, test_targets = read(SVHN(root=tmp_path, validation=0))
    assert sorted(targets.tolist()) == [0, 3]
    assert test_targets.tolist() == [0, 3]
    assert images.unique().tolist() == pytest.approx([20 / 255])
    assert SVHN(extra=True, root=tmp_path, validation=0).train_dataloader().size == 4

    path = tmp_path / folder / "test_32x32.mat"
    savemat(path, {"X": np.zeros((32, 32, 3, 2), np.uint8), "y": np.array([[11], [3]], np.uint8)})
    with pytest.raises(ValueError, match=r"test_32x32\.mat .*range from 3 to 11"):
        SVHN(root=tmp_path).setup("test")
    path.write_bytes(b"no MATLAB file")
    with pytest.raises(ValueError, match=r"test_32x32\.mat is damaged"):
        SVHN(root=tmp_path).setup("test")
    savemat(path, {"Y": [1]})
    with pytest.raises(ValueError, match="it holds no X, y"):
        SVHN(root=tmp_path).setup("test")


def write_gtsrb(folder):
    columns = "Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId"
    for label in (0, 42):
        images = folder / "GTSRB/Final_Training/Images" / f"{label:05d}"
        names = [f"{track:05d}_{frame:05d}.ppm" for track in range(5) for frame in range(4)]
        for name in names:
            save(images / name, (200, 0, label), box=(5, 5, 15, 11))
        write(images / f"GT-{label:05d}.csv", columns, *(f"{name};20;16;5;5;14;10;{label}" for name in names))
    save(folder / "GTSRB/Final_Test/Images/00000.ppm", (0, 200, 0), box=(1, 2, 9, 8))
    write(folder / "GT-final_test.csv", columns, "00000.ppm;20;16;1;2;8;7;7")


@pytest.mark.parametrize("folder", [".", "gtsrb"])
def test_gtsrb_official(tmp_path, folder):
    write_gtsrb(tmp_path / folder)
    data = GTSRB(size=12, root=tmp_path, validation=0.2, augment="none")
    images, targets, test_images, test_targets = read(data)
    assert images[:, 0].unique().tolist() == pytest.approx([200 / 255])  # only pixels inside the box
    assert torch.allclose(images[:, 2] * 255, targets[:, None, None].float())
    assert test_images[:, 1].unique().tolist() == pytest.approx([200 / 255])
    assert test_targets.tolist() == [7]
    assert data.class_names[14] == "stop"
    assert len(data.class_names) == 43
    # One whole track of each class is held out.
    assert data.val_dataloader().targets.tolist() == [0] * 4 + [42] * 4

    path = tmp_path / folder / "GTSRB/Final_Training/Images/00042/00003_00002.ppm"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"00042/00003_00002\.ppm is damaged"):
        GTSRB(root=tmp_path).setup("fit")
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"no file .*00042/00003_00002\.ppm"):
        GTSRB(root=tmp_path).setup("fit")
    write(tmp_path / folder / "GT-final_test.csv", "Filename;ClassId", "00000.ppm;7")
    with pytest.raises(ValueError, match=r"GT-final_test\.csv .*needs rows with the columns Filename, Roi\.X1"):
        GTSRB(root=tmp_path).setup("test")


def test_gtsrb_frames(tmp_path):
    (tmp_path / "gtsrb32").mkdir()
    images = np.zeros((20, 32, 32, 3), np.uint8)
    images[:, 8:16, 4:28] = 250
    tracks = [f"{track:05d}_{frame:05d}.ppm" for track in range(5) for frame in range(4)]
    arrays = {"images": images, "labels": np.full(20, 3), "roi": np.tile([1 / 8, 1 / 4, 7 / 8, 1 / 2], (20, 1))}
    np.savez(tmp_path / "gtsrb32/train.npz", **arrays, track=np.array(tracks))
    np.savez(tmp_path / "gtsrb32/test.npz", **arrays, track=np.array([f"{i:05d}.ppm" for i in range(20)]))
    data = GTSRB(root=tmp_path, augment="none", validation=0.2)
    train_images, targets, test_images, _ = read(data)
    assert train_images.unique().tolist() == test_images.unique().tolist() == pytest.approx([250 / 255])
    assert targets.tolist() == [3] * 16
    track, *rest = data.val_dataloader().groups.tolist()
    assert rest == [track] * 3
    assert data.test_dataloader().groups is None
    assert not hasattr(data.train_dataloader(), "groups")  # its order varies

    np.savez(tmp_path / "gtsrb32/test.npz", **arrays, track=np.array(["00000.ppm"]))
    with pytest.raises(ValueError, match=r"test\.npz .*do not belong together"):
        GTSRB(root=tmp_path).setup("test")
    (tmp_path / "gtsrb32/train.npz").write_bytes(b"PK\x03\x04 truncated")
    with pytest.raises(ValueError, match=r"train\.npz is damaged"):
        GTSRB(root=tmp_path).setup("fit")


def write_cars(root, label=2, number=3):
    folder = root / "stanford_cars"
    fields = ["bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname"]
    rows = np.array([(6, 6, 15, 11, label, f"{i:05d}.png") for i in range(number)], [(f, "O") for f in fields])
    for split, table in {"train": "devkit/cars_train_annos.mat", "test": "cars_test_annos_withlabels.mat"}.items():
        for i in range(number):
            save(folder / f"cars_{split}/{i:05d}.png", (0, 0, 200), box=(5, 5, 15, 11))
        (folder / "devkit").mkdir(exist_ok=True)
        savemat(folder / table, {"annotations": rows})
    savemat(folder / "devkit/cars_meta.mat", {"class_names": np.array(["Acura RL", "Audi A5"], object)})


@pytest.mark.parametrize("number", [1, 3])
def test_stanford_cars(tmp_path, number):
    write_cars(tmp_path, number=number)
    data = StanfordCars(root=tmp_path, validation=0, augment="none")
    images, targets, _, _ = read(data)
    assert images[:, 2].unique().tolist() == pytest.approx([200 / 255])
    assert targets.tolist() == [1] * number
    assert data.class_names == ["Acura RL", "Audi A5"]
    write_cars(tmp_path, label=3)
    with pytest.raises(ValueError, match=r"cars_train_annos\.mat: label 2 is outside 0\.\.1"):
        StanfordCars(root=tmp_path).setup()
    with pytest.raises(FileNotFoundError, match=r"Stanford Cars: no stanford_cars/devkit/cars_meta\.mat.*; put it there"):
        StanfordCars(root=tmp_path / "stanford_cars", download=True).setup()


def test_tinyimagenet(tmp_path):
    folder = tmp_path / "tiny-imagenet-200"
    write(folder / "wnids.txt", "n02", "n01")
    write(folder / "words.txt", "n01\tgoldfish, Carassius auratus", "n02\tBoston terrier", "n03\tother")
    for wnid, colour in {"n01": (200, 0, 0), "n02": (0, 200, 0)}.items():
        save(folder / f"train/{wnid}/images/{wnid}_0.JPEG", colour, (64, 64))
    save(folder / "val/images/val_0.JPEG", (0, 0, 200), (64, 64))
    write(folder / "val/val_annotations.txt", "val_0.JPEG\tn02\t0\t0\t62\t62")
    data = TinyImageNet(root=tmp_path, validation=0, augment="none")
    images, targets, _, test_targets = read(data)
    assert data.class_names == ["goldfish, Carassius auratus", "Boston terrier"]
    assert images.mean((2, 3)).argmax(1).equal(targets)
    assert test_targets.tolist() == [1]
    assert read(TinyImageNet(root=tmp_path, size=32, validation=0, augment="none"))[0].shape == (2, 3, 32, 32)
    data = TinyImageNet(root=tmp_path, validation=0, classes="*TERRIER*")
    data.setup()
    assert data.class_names == ["Boston terrier"]
    assert data.test_dataloader().targets.tolist() == [0]
    write(folder / "val/val_annotations.txt", "val_0.JPEG\tn07\t0\t0\t62\t62")
    with pytest.raises(ValueError, match=r"val_annotations\.txt is damaged.*n07"):
        TinyImageNet(root=tmp_path).setup()


def test_cub(tmp_path):
    folder = tmp_path / "CUB_200_2011"
    write(folder / "classes.txt", "1 001.Black_footed_Albatross", "2 002.Laysan_Albatross")
    write(folder / "images.txt", "1 001.B/a.jpg", "2 002.L/b.jpg", "3 002.L/c.jpg")
    write(folder / "image_class_labels.txt", "1 1", "2 2", "3 2")
    write(folder / "train_test_split.txt", "1 1", "2 0", "3 1")
    for name, colour in {"001.B/a.jpg": (200, 0, 0), "002.L/b.jpg": (0, 200, 0), "002.L/c.jpg": (0, 200, 0)}.items():
        save(folder / "images" / name, colour)
    data = CUB200(size=32, root=tmp_path, validation=0)
    images, targets, _, test_targets = read(data)
    assert data.class_names == ["Black_footed_Albatross", "Laysan_Albatross"]
    assert images.mean((2, 3)).argmax(1).equal(targets)
    assert sorted(targets.tolist()) == [0, 1]
    assert test_targets.tolist() == [1]
    assert data.mean == pytest.approx([100 / 255, 100 / 255, 0], abs=0.02)
    (folder / "images/002.L/b.jpg").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"002\.L/b\.jpg is damaged"):
        next(iter(data.test_dataloader()))
    data.workers = 1
    with pytest.raises(ValueError, match=r"002\.L/b\.jpg is damaged"):
        next(iter(data.test_dataloader()))


@pytest.mark.parametrize("folder", [".", "imagenet"])
def test_imagenet(tmp_path, folder):
    words = {"n01": ("Boston bull", "Boston terrier"), "n02": ("crane",), "n03": ("crane",)}
    for wnid in words:
        for split in ("train", "val"):
            save(tmp_path / folder / split / wnid / "image.JPEG", (0, 100, 0))
    torch.save((words, []), tmp_path / folder / "meta.bin")
    data = ImageNet(root=tmp_path, validation=0, size=32)
    _, targets, _, test_targets = read(data)
    assert data.class_names == ["Boston bull, Boston terrier", "crane (n02)", "crane (n03)"]
    assert sorted(targets.tolist()) == test_targets.tolist() == [0, 1, 2]
    data = ImageNet(root=tmp_path, validation=0, size=32, classes="crane*")
    assert data.test_dataloader().targets.tolist() == [0, 1]


def write_folder(folder, number=10):
    for name, colour in {"cat": (200, 0, 0), "dog": (0, 200, 0)}.items():
        for i in range(number):
            save(folder / name / f"{i}.png", colour)


def test_one_folder_is_split(tmp_path):
    write_folder(tmp_path)
    data = ImageFolder(root=tmp_path, size=16, validation=0.25, test=0.2)
    images, targets, _, test_targets = read(data)
    assert data.class_names == ["cat", "dog"]
    assert images.mean((2, 3)).argmax(1).equal(targets)
    assert len(targets) + len(data.val_dataloader().targets) + len(test_targets) == 20
    assert set(test_targets.tolist()) == {0, 1}


def test_folders_for_splits(tmp_path):
    for split, number in {"train": 4, "val": 3, "test": 2}.items():
        write_folder(tmp_path / split, number)
    data = ImageFolder(root=tmp_path, size=16)
    data.setup()
    assert [loader.size for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader())] == [
        8,
        6,
        4,
    ]
    for path in (tmp_path / "test").rglob("*.png"):
        path.unlink()
    for name in ("cat", "dog", ""):
        (tmp_path / "test" / name).rmdir()
    data = ImageFolder(root=tmp_path, size=16, validation=2)
    data.setup()
    assert [loader.size for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader())] == [
        6,
        2,
        6,
    ]


def test_a_class_without_images_or_only_in_the_test_folder_is_reported_before_training(tmp_path):
    write_folder(tmp_path / "train")
    (tmp_path / "train" / "mouse").mkdir()
    with pytest.raises(ValueError, match=r"train/mouse has no images"):
        ImageFolder(root=tmp_path, size=16).setup("fit")
    (tmp_path / "train" / "mouse").rmdir()
    save(tmp_path / "test/horse/0.png", (0, 0, 1))
    with pytest.raises(ValueError, match="'horse' is none of the 2 classes"):
        ImageFolder(root=tmp_path, size=16).setup("fit")


def test_unsuitable_folders(tmp_path):
    with pytest.raises(ValueError, match="needs root"):
        ImageFolder()
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*none"):
        ImageFolder(root=tmp_path / "none").setup()
    with pytest.raises(FileNotFoundError, match="one folder of images for each class"):
        ImageFolder(root=tmp_path).setup()
    write_folder(tmp_path / "train")
    save(tmp_path / "test/mouse/0.png", (0, 0, 1))
    with pytest.raises(ValueError, match="'mouse' is none of the 2 classes"):
        ImageFolder(root=tmp_path).setup()


@pytest.fixture
def site(tmp_path):
    """URL of a server of the files in `tmp_path / "site"`."""
    (tmp_path / "site").mkdir()
    handler = partial(SimpleHTTPRequestHandler, directory=tmp_path / "site")
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_downloaded_archives_appear_only_when_complete(tmp_path, site):
    source = tmp_path / "site" / "source.zip"
    with zipfile.ZipFile(source, "w") as archive:
        archive.writestr("inner/a.txt", "content")
    md5 = hashlib.md5(source.read_bytes()).hexdigest()
    root = tmp_path / "root"
    with pytest.raises(RuntimeError, match="not found or corrupted"):
        download_archives({f"{site}/source.zip": "0" * 32}, root / "inner", inside="inner")
    assert not list(root.iterdir())
    for _ in range(2):
        download_archives({f"{site}/source.zip": md5}, root / "inner", inside="inner")
        assert (root / "inner" / "a.txt").read_text() == "content"
        assert [path.name for path in root.iterdir()] == ["inner"]
        source.unlink(missing_ok=True)  # existing folders are not downloaded again


def test_an_archive_that_unpacks_to_much_more_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez_compressed(tmp_path / "a.npz", images=np.zeros(2**25, np.uint8), labels=np.zeros(3))
    with monkeypatch.context() as patch:
        patch.setattr(zipfile.ZipFile, "open", lambda *_, **__: pytest.fail("it was unpacked"))
        with pytest.raises(ValueError, match=r"a\.npz .*it unpacks [0-9,]+ bytes to 33,55[0-9],"):
            read_arrays(tmp_path / "a.npz", "images", "labels")
    assert [*read_arrays(tmp_path / "a.npz", "labels")[0]] == [0, 0, 0]
    np.savez_compressed(tmp_path / "b.npz", images=np.zeros(2**23, np.uint8))
    assert read_arrays(tmp_path / "b.npz", "images")[0].shape == (2**23,)
