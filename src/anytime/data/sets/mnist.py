"""MNIST and FashionMNIST, in torchvision's layout (the official idx files, unpacked)."""

from typing import ClassVar

import torchvision
from torchvision.datasets.mnist import read_image_file, read_label_file

from anytime.data.arguments import CropFlip
from anytime.data.base import ImageData, Split
from anytime.data.files import downloading, errors_naming
from anytime.data.sets.digits import DIGITS


class MNIST(ImageData):
    """MNIST: 70,000 handwritten digits, 28x28 grey; takes the arguments of `ImageData`.

    Reads `MNIST/raw/*-ubyte`.
    """

    title = "MNIST"
    homepage = "https://yann.lecun.com/exdb/mnist"
    license = "CC BY-SA 3.0"
    citation = "LeCun, Cortes & Burges 1998"
    official = (60_000, 10_000, 10)
    files = ("MNIST/raw",)
    standard_augment: ClassVar[CropFlip] = "crop"
    input_size = (1, 28, 28)

    def read_names(self) -> list[list[str]]:
        return [DIGITS]

    def read(self, split: str) -> Split | None:
        if split == "validation":
            return None
        prefix = f"{self.files[0]}/{'train' if split == 'train' else 't10k'}"
        image_path, label_path = self.find(f"{prefix}-images-idx3-ubyte"), self.find(f"{prefix}-labels-idx1-ubyte")
        with errors_naming(image_path):
            images = read_image_file(str(image_path))[:, None]
            if images.shape[1:] != self.input_size:
                raise ValueError(f"images are {list(images.shape[1:])}, not {list(self.input_size)}")
        with errors_naming(label_path):
            targets = read_label_file(str(label_path))
            if len(targets) != len(images):
                raise ValueError(f"{len(targets)} labels for {len(images)} images of {image_path.name}")
        return Split(images, targets, label_path)

    def fetch(self) -> None:
        kind = getattr(torchvision.datasets, self.title)
        with downloading(kind.mirrors[0]):
            kind(self.root, download=True)


class FashionMNIST(MNIST):
    """FashionMNIST: 70,000 pictures of clothes, 28x28 grey; takes the arguments of `ImageData`.

    Reads `FashionMNIST/raw/*-ubyte`.
    """

    title = "FashionMNIST"
    homepage = "https://github.com/zalandoresearch/fashion-mnist"
    license = "MIT"
    citation = "Xiao, Rasul & Vollgraf 2017"
    files = ("FashionMNIST/raw",)
    standard_augment = "crop+flip"

    def read_names(self) -> list[list[str]]:
        return [torchvision.datasets.FashionMNIST.classes]
