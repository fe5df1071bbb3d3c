"""Streamed sets of image files, and the set made from any folder of images."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torchvision.datasets.folder import make_dataset

from anytime.data.base import ResizedData, Split
from anytime.data.files import IMAGE_SUFFIXES, open_image
from anytime.data.splits import hold_out
from anytime.data.stream import RESIZE_RATIO, LazyImages


class StreamedData(ResizedData):
    """Base of data sets too large for memory; takes the arguments of `ResizedData`."""

    input_size = (3, 224, 224)
    resize_ratio = RESIZE_RATIO

    def __init__(self, size: int = 224, **kwargs: Any) -> None:
        super().__init__(size=size, **kwargs)


def _open_row(paths: Sequence[str], row: int) -> Image.Image:
    return open_image(paths[row])


def lazy_split(paths: Sequence[Path | str], labels: Sequence[int], source: Path) -> Split:
    """A split whose image files are read on demand."""
    images = LazyImages(partial(_open_row, [str(path) for path in paths]), torch.arange(len(paths)))
    return Split(images, torch.tensor(labels, dtype=torch.int64), source)


def class_folders(folder: Path) -> list[str]:
    """Sorted names of the subfolders of `folder`, one class each; raises FileNotFoundError if there are none."""
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise FileNotFoundError(f"no folders in {folder}; it needs one folder of images for each class")
    return names


def check_class_folders(folder: Path, names: Sequence[str]) -> None:
    """Raises ValueError if a subfolder of `folder` is not one of `names`."""
    if unknown := sorted(set(class_folders(folder)) - set(names)):
        raise ValueError(f"{folder}: {unknown[0]!r} is none of the {len(names)} classes of the training images")


def read_class_folders(folder: Path, names: Sequence[str], every: bool = False) -> Split:
    """All image files of the subfolders `names` of `folder`; a label is an index into `names`.

    Raises:
        FileNotFoundError: There are no images.
        ValueError: There are other subfolders, or with `every`, one of them has no images.
    """
    check_class_folders(folder, names)
    numbers = {name: number for number, name in enumerate(names)}
    files = make_dataset(str(folder), numbers, extensions=tuple(IMAGE_SUFFIXES), allow_empty=True)
    if not files:
        raise FileNotFoundError(f"no images in the folders of {folder}")
    paths, labels = zip(*files, strict=True)
    if every and (empty := sorted(set(numbers.values()) - set(labels))):
        raise ValueError(f"{folder / names[empty[0]]} has no images; add some, or remove the folder")
    return lazy_split(paths, labels, folder)


class ImageFolder(StreamedData):
    """Any folder of images, one subfolder per class; streamed by workers.

    `root` holds the class folders either directly, in which case a share of the images, chosen by `split_seed`, is the
    test split; or inside `train` and `test` (or `val`). With `train`, `val` and `test`, `val` is the validation split.

    Args:
        size: Height and width of the images in pixels.
        test: Share (below 1) or number of images for testing, if there is no folder for them.
        **kwargs: Arguments of `ImageData`.
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

    def read(self, split: str) -> Split | None:
        names = class_folders(self._train)
        if self._train == self.root:
            if split == "validation":
                return None
            whole = read_class_folders(self.root, names, every=True)
            train, test = hold_out(whole.targets, self.test, self.split_seed)
            return whole[train if split == "train" else test]
        folders = {name: self.root / name for name in ("val", "test") if (self.root / name).is_dir()}
        if split == "train":
            for folder in folders.values():  # fail now rather than after hours of training
                check_class_folders(folder, names)
            return read_class_folders(self._train, names, every=True)
        if split == "validation":
            return read_class_folders(folders["val"], names) if len(folders) == 2 else None
        return read_class_folders(folders.get("test") or self.find("test", "val"), names)
