"""Streamed sets of image files, and the set made from any folder of images."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.datasets.folder import make_dataset

from anytime.data.decoding import FORMATS, open_image
from anytime.data.files import absent, errors_naming, in_threads
from anytime.data.layouts import Layout, class_folders, count_direct_images, find_layout, list_images
from anytime.data.names import Names, content_number
from anytime.data.resized import ResizedData
from anytime.data.split import Split
from anytime.data.stream import RESIZE_RATIO, LazyImages

_SUFFIXES_BEFORE = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""The suffixes that defined image files before runs recorded their images."""


class StreamedData(ResizedData):
    """Base of data sets too large for memory; takes the arguments of `ResizedData`."""

    input_size = (3, 224, 224)
    resize_ratio = RESIZE_RATIO

    def __init__(self, size: int = 224, **kwargs: Any) -> None:
        super().__init__(size=size, **kwargs)


class ImageFiles:
    """Reads the image or the content of a row; `paths` are relative to `folder`."""

    def __init__(self, folder: Path, paths: Names) -> None:
        self.folder, self.paths = folder, paths

    def __call__(self, row: int) -> Image.Image:
        return open_image(self.folder / self.paths[row])

    def contents(self, rows: Tensor) -> Tensor:
        """One number for the content of each file, int64 `[N]`."""

        def read(row: int) -> int:
            path = os.path.join(self.folder, self.paths[row])
            with errors_naming(path), open(path, "rb") as file:
                return content_number(file.read())

        return torch.tensor(in_threads(read, rows.tolist()), dtype=torch.int64)


def lazy_split(root: Path, paths: Sequence[Path | str], labels: Sequence[int], source: Path) -> Split:
    """A split whose image files are read on demand; their names are relative to `root`."""
    names = Names.of(os.path.relpath(path, root).replace(os.sep, "/") for path in paths)
    images = LazyImages(ImageFiles(root, names), torch.arange(len(paths)))
    return Split(images, torch.tensor(labels, dtype=torch.int64), source, names=names)


def check_class_folders(folder: Path, names: Sequence[str]) -> None:
    """Raises ValueError if a subfolder of `folder` is not one of `names`."""
    if unknown := sorted(set(class_folders(folder)) - set(names)):
        raise ValueError(f"{folder}: {unknown[0]!r} is none of the {len(names)} classes of the training images")


def read_class_folders(root: Path, folder: Path, names: Sequence[str], every: bool = False) -> Split:
    """All image files of the class folders in `folder`; a label is an index into `names`.

    Raises:
        FileNotFoundError: There are no images.
        ValueError: There are other subfolders, or with `every`, one of them has no images.
    """
    check_class_folders(folder, names)
    folders, others = class_folders(folder), Counter[str]()
    paths: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(names):
        for of_class in folders.get(name, []):
            found, left_out = list_images(of_class)
            others += left_out
            paths += found
            labels += [label] * len(found)
    if others:
        warnings.warn(
            f"{folder}: {_counts(others)} left out: not images in a supported format ({', '.join(FORMATS)})", stacklevel=2
        )
    if stray := count_direct_images(folder):
        what = "1 image is" if stray == 1 else f"{stray} images are"
        warnings.warn(f"{folder}: {what} left out, because they lie in no class folder", stacklevel=2)
    if not paths:
        raise FileNotFoundError(f"no images in the folders of {folder}")
    if every and (empty := sorted(set(range(len(names))) - set(labels))):
        raise ValueError(f"{folder / names[empty[0]]} has no images; add some, or remove the folder")
    return lazy_split(root, paths, labels, folder)


def _counts(others: Counter[str]) -> str:
    """`"3 files .txt and 1 file without suffix"`."""
    texts = [
        f"{number} {'file' if number == 1 else 'files'} {suffix or 'without suffix'}" for suffix, number in others.items()
    ]
    return ", ".join(sorted(texts))


class ImageFolder(StreamedData):
    """Any folder of images, one subfolder per class; streamed by workers.

    `root` holds the class folders either directly, in which case a share of the images, chosen by name, is the test split;
    or inside `train` and `test` (or `val`). With `train`, `val` and `test`, `val` is the validation split. `training`,
    `testing`, `valid` and `validation` are other names of these, in any case, and so are names such as `Training Set` and
    `train2017`. A layout that can be read in two ways is an error, as are folders that are no classes, such as `images` and
    `labels`. Files are recognised by content, whatever their suffix; hidden files and folders are ignored.

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

    @cached_property
    def layout(self) -> Layout:
        """The folders of the splits."""
        if not self.root.is_dir():
            raise FileNotFoundError(f"{absent(self.root)}; {self.options[0]} names the folder that holds the images")
        if self.by_positions:  # as before runs had a record of their images
            inside = {name: self.root / name for name in ("train", "val", "test") if (self.root / name).is_dir()}
            train, val, test = map(inside.get, ("train", "val", "test"))
            return Layout(self.root, flat=True) if train is None else Layout(train, val, test)
        return find_layout(self.root)

    def read_names(self) -> list[list[str]]:
        return [list(class_folders(self.layout.train))]

    def read(self, split: str) -> Split | None:
        layout, names = self.layout, self.read_names()[0]
        if layout.flat:
            if split == "validation":
                return None
            rest, held_out = self.divide(self._read_folder(layout.train, names, every=True), self.test, "test")
            return rest if split == "train" else held_out
        if split == "train":
            for folder in (layout.validation, layout.test):  # fail now rather than after hours of training
                if folder is not None:
                    check_class_folders(folder, names)
            return self._read_folder(layout.train, names, every=True)
        if split == "validation":
            both = layout.validation is not None and layout.test is not None
            return self._read_folder(layout.validation, names) if both and layout.validation else None
        return self._read_folder(layout.test or layout.validation or self.find("test", "val"), names)

    def _read_folder(self, folder: Path, names: Sequence[str], every: bool = False) -> Split:
        if not self.by_positions:
            return read_class_folders(self.root, folder, names, every)
        check_class_folders(folder, names)
        numbers = {path.name: names.index(name) for name, paths in class_folders(folder).items() for path in paths}
        files = make_dataset(str(folder), numbers, extensions=_SUFFIXES_BEFORE, allow_empty=True)
        if not files:
            raise FileNotFoundError(f"no images in the folders of {folder}")
        paths, labels = zip(*files, strict=True)
        return lazy_split(self.root, paths, labels, folder)
