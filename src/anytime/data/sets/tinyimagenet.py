"""TinyImageNet, in the layout of the official archive."""

from typing import Any

import torch

from anytime.data.decoding import read_images
from anytime.data.files import download_archives, errors_naming, read_lines
from anytime.data.names import Names
from anytime.data.resized import ResizedData
from anytime.data.split import Split


class TinyImageNet(ResizedData):
    """TinyImageNet: 200 classes of ImageNet, 64x64, 100,000 images for training.

    Reads `tiny-imagenet-200`. Labels of the official test images were never published, so the 10,000 official
    validation images are the test split. Classes are numbered in the order of their WordNet IDs.

    Args:
        size: Height and width of the images in pixels; they are resized while they are read.
        **kwargs: Arguments of `ImageData`.
    """

    title = "TinyImageNet"
    homepage = "http://cs231n.stanford.edu"
    license = "non-commercial research (ImageNet's terms)"
    citation = "Le & Yang 2015"
    official = (100_000, 10_000, 200)
    files = ("tiny-imagenet-200",)
    input_size = (3, 64, 64)

    def __init__(self, size: int = 64, **kwargs: Any) -> None:
        super().__init__(size, **kwargs)

    def _wnids(self) -> list[str]:
        return sorted(read_lines(self.find("tiny-imagenet-200/wnids.txt")))

    def read_names(self) -> list[list[str]]:
        words = dict(line.partition("\t")[::2] for line in read_lines(self.find("tiny-imagenet-200/words.txt")))
        return [[words.get(wnid, wnid) for wnid in self._wnids()]]

    def read(self, split: str) -> Split | None:
        if split == "validation":
            return None
        numbers = {wnid: number for number, wnid in enumerate(self._wnids())}
        if split == "train":
            folder = self.find("tiny-imagenet-200/train")
            files = [(path, n) for wnid, n in numbers.items() for path in sorted(folder.glob(f"{wnid}/images/*.JPEG"))]
            if not files:
                raise FileNotFoundError(f"{self.title}: no images {folder}/*/images/*.JPEG")
        else:
            folder = self.find("tiny-imagenet-200/val")
            table = self.find("tiny-imagenet-200/val/val_annotations.txt")
            rows = [line.split("\t") for line in read_lines(table)]
            with errors_naming(table):
                files = [(folder / "images" / row[0], numbers[row[1]]) for row in rows]
        paths, labels = zip(*files, strict=True)
        names = Names.of(path.name for path in paths)
        return Split(read_images(paths, self.input_size), torch.tensor(labels), folder, names=names)

    def fetch(self) -> None:
        archives = {"http://cs231n.stanford.edu/tiny-imagenet-200.zip": "90528d7ca1a48142e341f4ef8d21d0de"}
        download_archives(archives, self.root / self.files[0], inside=self.files[0])
