"""Sets of image files that are streamed: ImageNet, CUB-200, and any folder of images."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torchvision.datasets import ImageNet as OfficialImageNet
from torchvision.datasets.folder import make_dataset

from anytime.data.base import ImageData, Split
from anytime.data.files import IMAGE_SUFFIXES, download_archives, errors_naming, open_image, read_lines
from anytime.data.splits import hold_out
from anytime.data.stream import RESIZE_RATIO, LazyImages


class _Paths:
    """Opens the image of a row."""

    def __init__(self, paths: Sequence[Path | str]) -> None:
        self.paths = [str(path) for path in paths]

    def __call__(self, row: int) -> Image.Image:
        return open_image(self.paths[row])


def lazy_split(paths: Sequence[Path | str], labels: Sequence[int], source: Path) -> Split:
    """A part whose images are read when needed."""
    return Split(LazyImages(_Paths(paths), torch.arange(len(paths))), torch.tensor(labels, dtype=torch.int64), source)


def class_folders(folder: Path) -> list[str]:
    """Names of the folders in `folder`, sorted: one class each.

    Raises:
        FileNotFoundError: if there are none.
    """
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise FileNotFoundError(f"no folders in {folder}; it needs one folder of images for each class")
    return names


def check_class_folders(folder: Path, names: Sequence[str]) -> None:
    """Refuses, with a ValueError, folders inside `folder` that are none of `names`."""
    if unknown := sorted(set(class_folders(folder)) - set(names)):
        raise ValueError(f"{folder}: {unknown[0]!r} is none of the {len(names)} classes of the training images")


def read_class_folders(folder: Path, names: Sequence[str], every: bool = False) -> Split:
    """All image files of the folders `names` inside `folder`; labels are places in `names`.

    Raises:
        ValueError: if there are other folders; with `every`, if one of them has no images.
    """
    check_class_folders(folder, names)
    numbers = {name: number for number, name in enumerate(names)}
    found = make_dataset(str(folder), numbers, extensions=tuple(IMAGE_SUFFIXES), allow_empty=True)
    if not found:
        raise FileNotFoundError(f"no images in the folders of {folder}")
    paths, labels = zip(*found, strict=True)
    if every and (empty := sorted(set(numbers.values()) - set(labels))):
        raise ValueError(f"{folder / names[empty[0]]} has no images; add some, or remove the folder")
    return lazy_split(paths, labels, folder)


class StreamedData(ImageData):
    """Base of sets that are too large for memory.

    Args:
        size: height and width of images in pixels.
        **kwargs: arguments of `ImageData`.
    """

    input_size = (3, 224, 224)
    resize_ratio = RESIZE_RATIO

    def __init__(self, size: int = 224, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.input_size = (3, size, size)


class ImageNet(StreamedData):
    """ImageNet (ILSVRC 2012): 1,281,167 images for training, 1,000 classes; streamed by workers.

    Reads torchvision's layout in `imagenet` or in the root: `train/WNID/*.JPEG`, `val/WNID/*.JPEG`, `meta.bin`. With
    `download`, official archives put into `imagenet` are unpacked; nobody may download them for you. Labels of
    the official test images were never published, so the 50,000 validation images are the test part.

    Args:
        size: height and width of images in pixels.
        **kwargs: arguments of `ImageData`.
    """

    title = "ImageNet"
    homepage = "https://image-net.org"
    license = "non-commercial research; registration needed"
    citation = "Russakovsky et al. 2015"
    official = (1_281_167, 50_000)
    official_classes = 1000
    files = ("imagenet/meta.bin", "meta.bin")

    def _folder(self, name: str) -> Path:
        return self.find(f"imagenet/{name}", name)

    def _wnids(self) -> list[str]:
        return class_folders(self._folder("train"))

    def read_names(self) -> list[list[str]]:
        path, wnids = self.find(*self.files), self._wnids()
        with errors_naming(path):
            words = torch.load(path, weights_only=True)[0]
            names = [", ".join(words[wnid]) for wnid in wnids]
        return [[f"{name} ({wnid})" if names.count(name) > 1 else name for name, wnid in zip(names, wnids, strict=True)]]

    def read(self, part: str) -> Split | None:
        if part == "validation":
            return None
        return read_class_folders(self._folder("train" if part == "train" else "val"), self._wnids())

    def fetch(self) -> None:
        folder = self.root / "imagenet"
        for split in ("train", "val"):
            if not ((folder / split).is_dir() or (self.root / split).is_dir()):
                OfficialImageNet(folder, split)


class CUB200(StreamedData):
    """CUB-200-2011: 200 species of birds, 5,994 images for training and 5,794 for testing; streamed by workers.

    Reads `CUB_200_2011`.

    Args:
        size: height and width of images in pixels.
        **kwargs: arguments of `ImageData`.
    """

    title = "CUB-200-2011"
    homepage = "https://www.vision.caltech.edu/datasets/cub_200_2011"
    license = "non-commercial research"
    citation = "Wah et al. 2011"
    official = (5_994, 5_794)
    official_classes = 200
    files = ("CUB_200_2011",)

    def _table(self, name: str) -> dict[str, str]:
        """A file of lines `number value`."""
        path = self.find(f"CUB_200_2011/{name}")
        rows = [line.split(maxsplit=1) for line in read_lines(path)]
        with errors_naming(path):
            return {number: value for number, value in rows}  # noqa: C416  dict(rows) takes any pairs, also of characters

    def read_names(self) -> list[list[str]]:
        return [[name.partition(".")[2] or name for name in self._table("classes.txt").values()]]

    def read(self, part: str) -> Split | None:
        if part == "validation":
            return None
        labels, train = self._table("image_class_labels.txt"), self._table("train_test_split.txt")
        images = self._table("images.txt")
        folder = self.find("CUB_200_2011/images")
        with errors_naming(folder.parent / "image_class_labels.txt"):
            wanted = [number for number in images if train[number] == ("1" if part == "train" else "0")]
            numbers = [int(labels[number]) - 1 for number in wanted]
        return lazy_split([folder / images[number] for number in wanted], numbers, folder.parent)

    def fetch(self) -> None:
        url = "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz"
        md5 = "97eceeb196236b17998738112f37df78"
        download_archives({url: md5}, self.root / self.files[0], inside=self.files[0])


class ImageFolder(StreamedData):
    """Any folder of images, one folder a class; streamed by workers.

    `root` holds the folders of classes either directly, and then a share of the images is the test part, chosen by
    `split_seed`; or inside `train` and `test` (or `val`). With `train`, `val` and `test`, `val` is the validation part.

    Args:
        size: height and width of images in pixels.
        test: share (below 1) or number of images for testing, where there is no folder for them.
        **kwargs: arguments of `ImageData`.
    """

    title = "image folder"

    def __init__(self, size: int = 224, test: float | int = 0.2, **kwargs: Any) -> None:
        if kwargs.get("root") is None:
            raise ValueError("ImageFolder needs root, the folder that holds the images (--data.root)")
        super().__init__(size=size, **kwargs)
        self.test = test

    @property
    def _train(self) -> Path:
        if not self.root.is_dir():
            raise FileNotFoundError(f"there is no folder {self.root}; --data.root names the folder that holds the images")
        return self.root / "train" if (self.root / "train").is_dir() else self.root

    def read_names(self) -> list[list[str]]:
        return [class_folders(self._train)]

    def read(self, part: str) -> Split | None:
        names = class_folders(self._train)
        if self._train == self.root:
            if part == "validation":
                return None
            whole = read_class_folders(self.root, names, every=True)
            train, test = hold_out(whole.targets, self.test, self.split_seed)
            return whole[train if part == "train" else test]
        folders = {name: self.root / name for name in ("val", "test") if (self.root / name).is_dir()}
        if part == "train":
            for folder in folders.values():  # now, and not after hours of training
                check_class_folders(folder, names)
            return read_class_folders(self._train, names, every=True)
        if part == "validation":
            return read_class_folders(folders["val"], names) if len(folders) == 2 else None
        return read_class_folders(folders.get("test") or self.find("test", "val"), names)
